"""How a drive lies in memory: T rows of neurons, each with the index of its channel.

How a matrix is divided among the programs of a GPU kernel.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """A drive as T rows of `neurons` values one after the other; neuron i has theta number (i // inner) % channels.

    Attributes:
        drive: the drive, dense in memory and with the slowest stride first; copied if it was not.
        neurons: values of one step.
        channels: how many thetas there are.
        inner: neighbours in memory that share a theta.
    """

    drive: Tensor
    neurons: int
    channels: int
    inner: int


def plan(drive: Tensor, theta: Tensor, v_init: Tensor, steps: int) -> Layout | None:
    """The layout of a drive of `steps` rows, or None where theta or v_init vary along more than one dimension."""
    dim = channel_dim(drive, theta, v_init)
    if dim is None:
        return None
    drive = in_rows(drive)
    neurons = drive.numel() // steps
    if dim < 0:
        return Layout(drive, neurons, 1, max(1, neurons))
    return Layout(drive, neurons, drive.shape[dim], drive.stride(dim))


def in_rows(x: Tensor) -> Tensor:
    """The tensor dense in memory with the slowest stride first; copied if it is not."""
    return x if rows_first(x) else x.contiguous()


def promised(drive: Tensor, steps: int, constant: bool) -> Tensor:
    """Allocate an output with the strides the kernel will write, for a drive of T*B rows, or of B if constant."""
    if not rows_first(drive):
        drive = torch.empty_like(drive, memory_format=torch.contiguous_format)
    return like(drive, steps) if constant else torch.empty_like(drive)


def dense(x: Tensor) -> bool:
    """Whether a tensor's values fill one block of memory without gaps, in any order."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return True
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def flat(x: Tensor) -> Tensor:
    """A view of a dense tensor in memory order, (numel,)."""
    return x.detach().as_strided((x.numel(),), (1,))


def array(x: Tensor) -> Any:
    """A dense tensor as a numpy array in memory order; bfloat16 and float16 come as uint16 bits."""
    return (flat(x).view(torch.uint16) if x.dtype.itemsize == 2 else flat(x)).numpy()


def like(drive: Tensor, steps: int) -> Tensor:
    """Allocate a (steps * B, ...) tensor with the strides of a drive (B, ...)."""
    return torch.empty_strided(
        (steps * drive.shape[0], *drive.shape[1:]), drive.stride(), dtype=drive.dtype, device=drive.device
    )


def laid_out(x: Tensor, example: Tensor) -> Tensor:
    """The tensor (T*B, ...) with the strides of the example (B, ...); copied if they differ."""
    if x.stride()[1:] == example.stride()[1:] and (x.shape[0] < 2 or x.stride(0) == _row(example)):
        return x
    size = (_row(example), *example.stride()[1:])
    return torch.empty_strided(x.shape, size, dtype=x.dtype, device=x.device).copy_(x)


def _row(x: Tensor) -> int:
    return math.prod(x.shape[1:])


def values(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter's values as a flat tensor, (1,) or (channels,)."""
    return (x if x.dtype == dtype else x.to(dtype)).detach().reshape(-1)


def reduced(sums: Tensor, parameter: Tensor) -> Tensor:
    """A parameter's gradient from sums by channel: one for each of its values, or their total for a single one."""
    total = sums.sum() if parameter.numel() == 1 else sums
    return total.to(parameter.dtype).reshape(parameter.shape)


def channel_dim(drive: Tensor, theta: Tensor, v_init: Tensor) -> int | None:
    """The dimension theta and v_init run along, -1 for a single value, None for anything else."""
    found = -1
    for value in (theta, v_init):
        if value.numel() == 1:
            continue
        along = [i for i, size in enumerate(value.shape) if size != 1]
        dim = along[0] + drive.ndim - value.ndim
        if len(along) > 1 or dim < 1 or found not in (-1, dim) or drive.shape[dim] != value.numel():
            return None
        found = dim
    return found


def rows_first(drive: Tensor) -> bool:
    """Whether a tensor is dense in memory with the slowest stride first."""
    if drive.numel() == 0 or drive.ndim == 0:
        return False
    if drive.is_contiguous():
        return True
    return drive.stride(0) == _row(drive) and dense(drive)


WIDE = 256  # columns that a program looks at together, at most
PROGRAMS = 1024  # at most, about: each goes on through the rows


def power(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def shared(rows: int, width: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The grid of programs (rows, columns), and the tile of `size` values that one program reads at once."""
    wide = min(WIDE, power(width))
    tall, across = size // wide, -(-width // wide)
    return (max(1, min(-(-rows // tall), PROGRAMS // across)), across), (tall, wide)
