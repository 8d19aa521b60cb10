"""Kernels of the multi-step neuron: numba and LLVM on the CPU, Triton on a GPU."""
