"""How a batch is run: cut into passes that fit the caches, on the CPU one pass a core.

A pass of one core and all its layers keeps its values in that core's share of the cache, and no layer waits for the
slowest core. Passes hold `images * T` pictures at once; how many is found from the widest layer and the cache's size.
What fits into one pass is cut as well, one pass a core, where it is work enough.

One thread an operator in some of the process's threads, while the others keep torch's thread count.

`torch.set_num_threads` sets two things: the count of the thread that calls it, and the one with which threads begin
that have not yet run an operator. A pass must change the first alone, so the two runtimes that hold it, OpenMP and MKL,
are asked themselves. Where torch was built with others, its own function does, which other threads can see.
"""

import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speedysnn import settings
from speedysnn.graph.ir import Graph

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


VARIABLE = settings.SETTINGS["images_per_pass"].variable
MOST = 1024  # pictures (images times steps) in one pass, however narrow the layers are
DEVICE_BYTES = 2**28  # of the widest layer, in one pass on an accelerator
LEAST, LEAST_BYTES = 64, 2**23  # pictures that a pass's own cost is small for, while the widest layer is no larger
WORTH = 1e7  # multiplications of a pass for every node, below which threads that run passes hold each other up
FALLBACK_CACHE = 16 * 2**20
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}

_one_at_a_time = threading.Lock()


@lru_cache(maxsize=1)
def cache_bytes() -> int:
    """Size of the largest cache of the first core, in bytes."""
    sizes = []
    for file in _CACHES.glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        if text[:-1].isdecimal() and text[-1] in _UNITS:
            sizes.append(int(text[:-1]) * _UNITS[text[-1]])
    return max(sizes, default=FALLBACK_CACHE)


def widest(graph: Graph, input_shapes: Sequence[Sequence[int]]) -> int:
    """Values of the widest neuron layer or input, for one picture."""
    features = [int(node.attrs.get("features") or 0) for node in graph.neurons]
    return max(1, *features, *(_product(shape) for shape in input_shapes))


def multiplications(graph: Graph, tensors: Callable[[str], Mapping[str, Tensor]]) -> int:
    """Of one picture, about: a layer's weights times the places of the neurons that read it, as if nothing pooled."""
    values: dict[str, int] = {}
    out = 0
    for node in reversed(graph.nodes):
        read = int(node.attrs.get("features") or 0) if node.op == "neuron" else values.get(node.name, 0)
        weight = tensors(node.name).get("weight")
        if weight is not None and weight.ndim > 1:
            out += weight.numel() * max(1, read // len(weight))
        for name in node.inputs:
            values[name] = max(values.get(name, 0), read)
    return out


def asked() -> int | None:
    """Images that one pass is to take, from the settings."""
    found: int | None = settings.get("images_per_pass")
    return found


def images_per_pass(width: int, steps: int, device: torch.device, item: int = 4, weights: int = 0) -> int:
    """Images that one pass takes, of values of `item` bytes; at least one.

    On the CPU the widest layer's input and output, each twice for what is under way, fill a core's share of the cache,
    or are twice as large as `weights`, bytes that every pass reads anew where they do not fit. Small passes are made
    larger than that, since every call of an operator costs some 0.1 ms that cores cannot share; so are those in
    bfloat16, beside whose half as long calls it counts twice.
    """
    given = asked()
    if given:
        return given
    if device.type != "cpu":
        return max(1, DEVICE_BYTES // (item * width) // steps)
    share = cache_bytes() // torch.get_num_threads()
    fits = max(share // (item * item * width), 2 * weights // (4 * item * width))
    least = min(LEAST, LEAST_BYTES // (4 * width))
    return max(1, min(MOST, max(fits, least)) // steps)


def cut(images: int, size: int, parts: int) -> list[int]:
    """Sizes of the passes, alike and a multiple of `parts` in number where more than one is needed."""
    if images <= size:
        return [images]
    count = -(-images // size)
    count = min(images, -(-count // parts) * parts)
    return [images * (i + 1) // count - images * i // count for i in range(count)]


def run(calls: Sequence[Callable[[], Any]], *, parallel: bool) -> list[Any]:
    """Results of the calls in order; in parallel with one thread of torch each, where nothing else is doing so.

    Where another thread's passes run already, this thread takes its own one after the other, each with one thread of
    torch as well: the same sums in the same order. Else it takes its share: one that slept while others worked would
    leave its core to be found by them, late.
    """
    workers = min(torch.get_num_threads(), len(calls))
    if not parallel or workers < 2:
        return [call() for call in calls]
    with single_threaded():
        if not _one_at_a_time.acquire(blocking=False):
            return [call() for call in calls]
        try:
            return _shared(calls, workers)
        finally:
            _one_at_a_time.release()


def _shared(calls: Sequence[Callable[[], Any]], workers: int) -> list[Any]:
    """The calls' results, each by whichever thread is free; after a fault none begins another."""
    results, line, pool = [None] * len(calls), iter(range(len(calls))), _pool(os.getpid(), workers - 1)

    def work() -> None:
        for i in line:
            try:
                results[i] = calls[i]()
            except BaseException:  # also on Ctrl-C, the other threads must stop
                deque(line, 0)  # nothing is left
                raise

    others = [pool.submit(copy_context().run, _inherit(work)) for _ in range(workers - 1)]
    try:
        work()
    finally:
        wait(others)
    for other in others:
        other.result()
    return results


def _inherit(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call under the gradient and autocast modes of this thread, which torch keeps for each thread apart."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    mixed, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def work() -> Any:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            if not mixed:
                return call()
            with torch.autocast("cpu", dtype):
                return call()

    return work


@cache
def _pool(process: int, workers: int) -> ThreadPoolExecutor:  # a forked child makes its own
    return ThreadPoolExecutor(workers, "speedysnn", initializer=be_single_threaded)


def _product(shape: Sequence[int]) -> int:
    out = 1
    for size in shape:
        out *= int(size)
    return out
