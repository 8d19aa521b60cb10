"""Convolutions on the CPU that multiply only the values that are not zero, and Winograd convolutions of the others."""
