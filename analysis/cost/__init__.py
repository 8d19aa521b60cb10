"""Spikes, synaptic operations and estimated energy."""
