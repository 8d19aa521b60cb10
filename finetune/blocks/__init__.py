"""Training block by block: towards the source's activations layer by layer, or towards what its blocks give."""
