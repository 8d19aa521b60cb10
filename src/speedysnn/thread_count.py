"""One thread an operator in some of the process's threads, while the others keep torch's thread count.

`torch.set_num_threads` sets two things: the count of the thread that calls it, and the one with which threads begin
that have not yet run an operator. A pass must change the first alone, so the two runtimes that hold it, OpenMP and MKL,
are asked themselves. Where torch was built with others, its own function does, which other threads can see.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

Setter = Callable[[int], int | None]


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread an operator in this thread; no other thread sees it, and after the block its count is as before."""
    count = torch.get_num_threads()  # torch sets it up in a thread that is new, and does not do so again
    before = _set_one()
    try:
        yield
    finally:
        for set_own, given in before:
            set_own(count if given is None else given)
        if not before:
            torch.set_num_threads(count)


def be_single_threaded() -> None:
    """The same for the rest of this thread's life: a pool's worker."""
    torch.get_num_threads()
    _set_one()


def _set_one() -> list[tuple[Setter, int | None]]:
    """One thread an operator in this thread; what set it, and what was there before where it tells."""
    setters = _setters()
    if not setters:
        torch.set_num_threads(1)
    return [(set_own, set_own(1)) for set_own in setters]


@cache
def _setters() -> tuple[Setter, ...]:
    """OpenMP's and MKL's functions for the count of the thread that calls them; none where OpenMP's is not found."""
    if "OpenMP" not in torch.__config__.parallel_info().split("ATen parallel backend:")[-1]:
        return ()
    try:
        library = ctypes.CDLL(torch._C.__file__)  # which finds what torch's own libraries hold
        openmp = library.omp_set_num_threads
    except (OSError, AttributeError):
        return ()
    openmp.argtypes, openmp.restype = (ctypes.c_int,), None
    try:
        mkl = library.MKL_Set_Num_Threads_Local  # gives back what it was; 0 stands for the process's
    except AttributeError:
        return (openmp,)
    mkl.argtypes, mkl.restype = (ctypes.c_int,), ctypes.c_int
    return openmp, mkl
