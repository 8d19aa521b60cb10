"""Memory layouts: a drive as T rows of neurons for every kernel, and the tiles that a GPU kernel's programs read.

Kernels work on flat arrays in memory order. `plan` says where a neuron of a dense drive finds its channel's theta;
`like`, `promised` and `laid_out` allocate or copy tensors with the strides that a kernel expects; `shared` cuts a
matrix into tiles for the programs of a GPU kernel.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WIDE = 256  # most columns in a tile
PROGRAMS = 1024  # about the most programs of a kernel; each works through several tiles where there are more


@dataclass(frozen=True)
class Layout:
    """A drive as T rows of `neurons` values, one row after the other; neuron i uses theta (i // inner) % channels.

    Attributes:
        drive: the drive, dense in memory with the slowest stride first; a copy if it was not.
        neurons: number of values in one row.
        channels: number of thetas.
        inner: number of neighbours in memory that share a theta.
    """

    drive: Tensor
    neurons: int
    channels: int
    inner: int


def plan(drive: Tensor, theta: Tensor, v_init: Tensor, steps: int, amplitude: Tensor | None = None) -> Layout | None:
    """Return the layout of a drive of `steps` rows, or None where its parameters vary along several dimensions."""
    dim = channel_dim(drive, theta, v_init, amplitude)
    if dim is None:
        return None
    drive = in_rows(drive)
    neurons = drive.numel() // steps
    if dim < 0:
        return Layout(drive, neurons, 1, max(1, neurons))
    return Layout(drive, neurons, drive.shape[dim], drive.stride(dim))


def in_rows(x: Tensor) -> Tensor:
    """Return the tensor if it is dense in memory with the slowest stride first, else a contiguous copy."""
    return x if rows_first(x) else x.contiguous()


def promised(drive: Tensor, steps: int, constant: bool) -> Tensor:
    """Allocate an output (T*B, ...) with the strides the kernel will write; the drive is (B, ...) if `constant`."""
    if not rows_first(drive):
        drive = torch.empty_like(drive, memory_format=torch.contiguous_format)
    return like(drive, steps) if constant else torch.empty_like(drive)


def dense(x: Tensor) -> bool:
    """Tell whether a tensor's values fill one block of memory without gaps, in any order."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return True
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def flat(x: Tensor) -> Tensor:
    """Return a view of a dense tensor in memory order, (numel,)."""
    return x.detach().as_strided((x.numel(),), (1,))


def array(x: Tensor) -> Any:
    """Return a dense tensor as a flat numpy array that shares its memory; bfloat16 and float16 come as uint16 bits."""
    return (flat(x).view(torch.uint16) if x.dtype.itemsize == 2 else flat(x)).numpy()


def like(drive: Tensor, steps: int) -> Tensor:
    """Allocate a (steps * B, ...) tensor with the strides of a drive (B, ...)."""
    return torch.empty_strided(
        (steps * drive.shape[0], *drive.shape[1:]), drive.stride(), dtype=drive.dtype, device=drive.device
    )


def laid_out(x: Tensor, example: Tensor) -> Tensor:
    """Return the tensor (T*B, ...) with the strides of the example (B, ...), as a copy if its strides differ."""
    if x.stride()[1:] == example.stride()[1:] and (x.shape[0] < 2 or x.stride(0) == _row(example)):
        return x
    size = (_row(example), *example.stride()[1:])
    return torch.empty_strided(x.shape, size, dtype=x.dtype, device=x.device).copy_(x)


def _row(x: Tensor) -> int:
    """Return the number of values in one element of the first dimension."""
    return math.prod(x.shape[1:])


def values(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a parameter's values as a flat tensor, (1,) or (channels,)."""
    return (x if x.dtype == dtype else x.to(dtype)).detach().reshape(-1)


def reduced(sums: Tensor, parameter: Tensor) -> Tensor:
    """Return a parameter's gradient, in its shape and type, from the gradient's sums by channel."""
    total = sums.sum() if parameter.numel() == 1 else sums
    return total.to(parameter.dtype).reshape(parameter.shape)


def channel_dim(drive: Tensor, theta: Tensor, v_init: Tensor, amplitude: Tensor | None = None) -> int | None:
    """Return the drive's dimension that theta, v_init and amplitude vary along: -1 for none, None for several."""
    found = -1
    for value in (theta, v_init, amplitude):
        if value is None or value.numel() == 1:
            continue
        along = [i for i, size in enumerate(value.shape) if size != 1]
        dim = along[0] + drive.ndim - value.ndim
        if len(along) > 1 or dim < 1 or found not in (-1, dim) or drive.shape[dim] != value.numel():
            return None
        found = dim
    return found


def rows_first(drive: Tensor) -> bool:
    """Tell whether a tensor is not empty and dense in memory with the slowest stride first."""
    if drive.numel() == 0 or drive.ndim == 0:
        return False
    if drive.is_contiguous():
        return True
    return drive.stride(0) == _row(drive) and dense(drive)


def power(n: int) -> int:
    """Return the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def shared(rows: int, width: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return a kernel's grid (rows, columns) of programs, and the tile (rows, columns) that each reads at once."""
    wide = min(WIDE, power(width))
    tall, across = size // wide, -(-width // wide)
    return (max(1, min(-(-rows // tall), PROGRAMS // across)), across), (tall, wide)
