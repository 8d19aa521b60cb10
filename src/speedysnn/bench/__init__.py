"""Benchmarks: what a network costs beside its source and beside other simulators, in one process and one run."""
