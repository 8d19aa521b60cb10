"""Convolutions that multiply only what is not zero."""
