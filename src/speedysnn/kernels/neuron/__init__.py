"""The neuron over time: a reference and its compiled backends."""
