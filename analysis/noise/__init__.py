"""Every layer's noise against the source's activations, and its causes."""
