"""The "cpu" backend of the multi-step neuron, and counts of values that are not zero, in as many threads as torch uses.

Both are compiled with numba. The sequence is read once and written once; `nonzero` and `density` read memory once and
compare several values at a time. `share` and `spread_over` also divide the work of other kernels among threads.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels import numba_neuron, numba_sequence
from speedysnn.kernels.jit import AVAILABLE, compiled
from speedysnn.kernels.layout import Layout, array, channel_dim, dense, laid_out, like, plan, reduced, values
from speedysnn.kernels.llvm_neuron import flags_of
from speedysnn.kernels.numba_sequence import backward as back
from speedysnn.kernels.reference import Rule
from speedysnn.surrogate import SURROGATES, atan, rectangle, sigmoid, triangle

Array = Any
_SLOPES = {
    "rectangle": (numba_neuron.RECTANGLE, rectangle),
    "triangle": (numba_neuron.TRIANGLE, triangle),
    "sigmoid": (numba_neuron.SIGMOID, sigmoid),
    "atan": (numba_neuron.ATAN, atan),
}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_HALVES = (torch.bfloat16, torch.float16)
_SHARE = 65536  # values from which another thread pays
NONZERO_BLOCK = 1 << 20  # values that a 32-bit counter counts: a register holds twice as many of those as of 64 bits


def refuses(drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, amplitude: Tensor | None = None) -> str:
    """Return why this backend cannot run a call, "" if it can."""
    if not AVAILABLE:
        return "numba is not installed"
    if drive.device.type != "cpu":
        return f"the drive is on {drive.device.type}"
    if drive.dtype not in _DTYPES:
        return f"{drive.dtype} is not one of its types"
    if rule.surrogate not in _SLOPES or SURROGATES[rule.surrogate] is not _SLOPES[rule.surrogate][1]:
        return f"the surrogate {rule.surrogate!r} is not one of its own"
    if channel_dim(drive, theta, v_init, amplitude) is None:
        return "theta, v_init or amplitude varies along more than one dimension"
    return ""


def forward(
    drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, constant: bool, amplitude: Tensor | None = None, *,
    inplace: bool = False, input_sum: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute A * s[t]; see `speedysnn.kernels.multistep`.

    Args:
        drive: as there.
        theta: as there.
        v_init: as there.
        rule: as there.
        constant: as there.
        amplitude: A, or None for theta.
        inplace: the output is written over the drive.
        input_sum: a dense tensor (B, ...) with the strides of one step, into which the drive's sum over the steps is
            written; or None.

    Returns:
        The output (T*B, ...).
    """
    where = _plan(drive, theta, v_init, rule, constant, amplitude)
    if inplace and not constant:  # step t has read the drive up to a step k >= t when it writes row t
        out = where.drive
    else:
        out = like(where.drive, rule.timesteps) if constant else torch.empty_like(where.drive)
    if out.numel() == 0:
        return out
    work, result = _work(drive), array(out)
    arrays = (array(where.drive), *_channels(work, theta, v_init, amplitude))
    sizes, factors = (where.inner, rule.timesteps, rule.delay), _factors(rule, constant, work)
    low, high, take_back = _clip(rule, work)
    half, separate = drive.dtype == torch.bfloat16, amplitude is not None
    flags = flags_of(constant, take_back, half, input_sum is not None, separate, rule.powers)
    sums = array(input_sum) if input_sum is not None else np.empty(0, _numpy(work))
    given = (flags, *arrays, *sizes, factors, low, high, sums, where.neurons)
    share(where.neurons, rule.timesteps, lambda begin, end, _: numba_sequence.forward(*given, begin, end, result))
    return out


def backward(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, constant: bool,
    amplitude: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Compute the gradients of drive, theta, v_init and, where it is given, amplitude from the output's.

    The membranes are computed again.
    """
    work = _work(drive)
    where = _plan(drive.detach().to(work), theta, v_init, rule, constant, amplitude)
    grad_x = torch.empty_like(where.drive)
    sums = np.zeros((3, max(1, _workers(where.neurons, rule.timesteps)), where.channels))
    if drive.numel():
        outputs = laid_out(grad.detach().to(work), like(where.drive, rule.timesteps) if constant else where.drive)
        kind = _SLOPES[rule.surrogate][0]
        arrays = (array(where.drive), array(outputs), *_channels(work, theta, v_init, amplitude))
        rest = (
            where.inner, rule.timesteps, rule.delay, constant, _factors(rule, constant, work), *_slopes(rule, work),
            *_clip(rule, work), rule.signed, kind, _numpy(work)(not rule.detach_reset), where.neurons,
        )  # fmt: skip
        separate = amplitude is not None
        result, flags = array(grad_x), flags_of(constant, False, amplitude=separate, powers=rule.powers)
        share(
            where.neurons,
            rule.timesteps,
            lambda begin, end, i: back(flags, *arrays, *rest, begin, end, result, sums[0, i], sums[1, i], sums[2, i]),
        )
    own = (theta, v_init) if amplitude is None else (theta, v_init, amplitude)
    found = (reduced(torch.from_numpy(x.sum(0)), value) for x, value in zip(sums, own, strict=False))
    return grad_x.to(drive.dtype), *found


def _plan(
    drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, constant: bool, amplitude: Tensor | None
) -> Layout:
    """Return the layout of a drive that `refuses` has accepted."""
    where = plan(drive, theta, v_init, 1 if constant else rule.timesteps, amplitude)
    assert where is not None
    return where


def _work(drive: Tensor) -> torch.dtype:
    """Return the type that is computed in: the drive's, float32 at least."""
    return torch.promote_types(drive.dtype, torch.float32)


def _numpy(dtype: torch.dtype) -> Any:
    return np.float64 if dtype == torch.float64 else np.float32


def _channels(dtype: torch.dtype, theta: Tensor, v_init: Tensor, amplitude: Tensor | None) -> tuple[Any, Any, Any]:
    """Return theta, v_init and amplitude as flat arrays; theta stands for an amplitude that is not given."""
    th = values(theta, dtype).numpy()
    return th, values(v_init, dtype).numpy(), th if amplitude is None else values(amplitude, dtype).numpy()


@lru_cache(maxsize=256)
def _factors(rule: Rule, constant: bool, dtype: torch.dtype) -> Any:
    """Return t/k of every step, or t for a constant drive."""
    steps = range(1, rule.timesteps + 1)
    return np.array([float(t) if constant else t / rule.seen(t) for t in steps], _numpy(dtype))


@lru_cache(maxsize=256)
def _slopes(rule: Rule, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the levels 0..N of a step's spikes, and the surrogate's width, half of it, its inverse, and pi."""
    number = _numpy(dtype)
    shape = [rule.width, rule.width / 2, 1 / rule.width, np.pi]
    return np.arange(rule.max_spikes + 1, dtype=number), np.array(shape, number)


@lru_cache(maxsize=256)
def _clip(rule: Rule, dtype: torch.dtype) -> tuple[Any, Any, bool]:
    """Return the least and the most spikes of a step, and whether a neuron that has fired may take spikes back."""
    number = _numpy(dtype)
    low = number(-rule.max_spikes if rule.signed or rule.powers else 0)
    return low, number(rule.max_spikes), rule.min_spikes < 0 and not rule.signed


@cache
def _pool(process: int, workers: int) -> ThreadPoolExecutor:  # a forked child makes its own
    return ThreadPoolExecutor(workers, thread_name_prefix="speedysnn")


def _workers(neurons: int, steps: int) -> int:
    """Return how many threads pay for so much work."""
    return max(1, min(torch.get_num_threads(), neurons * steps // _SHARE))


def share(neurons: int, steps: int, work: Callable[[int, int, int], Any]) -> None:
    """Divide neurons among threads at whole blocks; every thread calls work(begin, end, its number)."""
    workers = _workers(neurons, steps)
    block = numba_sequence.NEURON_BLOCK
    _run_parallel([neurons * i // workers // block * block for i in range(workers)] + [neurons], work)


def spread_over(items: int, size: int, work: Callable[[int, int], Any]) -> None:
    """Divide items, `size` values in all, among threads; every thread calls work(begin, end)."""
    workers = max(1, min(torch.get_num_threads(), items, size // _SHARE))
    _run_parallel([items * i // workers for i in range(workers + 1)], lambda begin, end, _: work(begin, end))


def _run_parallel(bounds: list[int], work: Callable[[int, int, int], Any]) -> None:
    """Call work(begin, end, i) for the i-th piece between the bounds, each in a thread, the first in this one."""
    if len(bounds) == 2:
        work(bounds[0], bounds[1], 0)
        return
    pool = _pool(os.getpid(), torch.get_num_threads())
    others = [pool.submit(work, bounds[i], bounds[i + 1], i) for i in range(1, len(bounds) - 1)]
    work(bounds[0], bounds[1], 0)
    for other in others:
        other.result()


@compiled
def tally(row: Array) -> int:  # pragma: no cover - compiled
    """Count the elements of a row that are not zero."""
    total = 0
    for first in range(0, row.size, NONZERO_BLOCK):
        found: Any = np.int32(0)
        part = row[first : first + NONZERO_BLOCK]
        for j in range(part.size):  # an index from 0 on is never negative, so that the loop is vectorized
            found = np.int32(found + np.int32(part[j] != 0))
        total += found
    return total


@compiled
def tally_some(values: Array, size: int, every: int) -> int:  # pragma: no cover - compiled
    """Count the elements that are not zero in every `every`-th piece of `size` elements."""
    total = 0
    for first in range(0, values.size, size * every):
        total += tally(values[first : first + size])
    return total


def density(x: Tensor, samples: int = 8) -> float:
    """Estimate the share of values that are not zero.

    Args:
        x: a batch (B, ...).
        samples: at least so many samples, spread over the batch, are looked at.

    Returns:
        The share in these samples, 0 for an empty tensor.

    Example:
        >>> import torch
        >>> from speedysnn.kernels.numba_backend import density
        >>> density(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        0.25
    """
    batch = x.shape[0]
    every = max(1, batch // samples)
    size = x.numel() // batch if batch else 0
    counted = size * -(-batch // every)
    if counted == 0:
        return 0.0
    if _supports(x, _HALVES) and (batch == 1 or x.stride(0) == size):  # samples lie one after the other
        return int(tally_some(array(x), size, every)) / counted  # as bits: spikes have no negative zero
    some = x[::every]
    return nonzero(some.float() if some.dtype in _HALVES else some) / counted


def _supports(x: Tensor, further: tuple[torch.dtype, ...] = ()) -> bool:
    """Tell whether the compiled count supports a tensor of float32 or of a further type."""
    return AVAILABLE and x.device.type == "cpu" and x.dtype in (torch.float32, *further) and dense(x)


def nonzero(x: Tensor) -> int:
    """Count the values of a tensor that are not zero; dense float32 on the CPU is counted by compiled code.

    Args:
        x: any tensor.

    Returns:
        The number of values that are not zero; NaN is one of them.

    Example:
        >>> import torch
        >>> from speedysnn.kernels.numba_backend import nonzero
        >>> nonzero(torch.tensor([0.0, 1.0, -0.0, 2.0]))
        2
    """
    if x.numel() == 0 or not _supports(x):
        return int(torch.count_nonzero(x))
    values, found = array(x), dict[int, int]()

    def work(begin: int, end: int, i: int) -> None:
        found[i] = int(tally(values[begin:end]))

    share(values.size, 1, work)
    return sum(found.values())
