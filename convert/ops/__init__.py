"""Handlers of the operators of torch, one file a kind; each file ends in its rows of `convert.HANDLERS`."""
