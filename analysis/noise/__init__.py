"""Every layer's noise against the source activations, and its causes."""
