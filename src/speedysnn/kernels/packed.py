"""Binary spikes packed into bits for the backward pass, with one amplitude a channel: 1/32 of the memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels.bit_code import BIT_LANES
from speedysnn.kernels.compiled import compiled
from speedysnn.kernels.layout import flat
from speedysnn.kernels.vector_code import WORKS

if WORKS:
    from speedysnn.kernels.bit_code import pack_run, unpack_run

Array = Any
NONE, INFINITE = 2**31 - 1, 0xFF << 23  # as float32's bits: no spike yet, and infinity
PIXELS = 256  # looked at together, a group of channels after the other: they stay in the nearest cache


@dataclass(frozen=True)
class Packed:
    """Binary spikes (N, C, H, W), channels-last.

    Attributes:
        words: (N * H * W * C / 16,) int16, a bit a value.
        values: (C,) float32, what a channel's spikes are.
        shape: of the spikes.
    """

    words: Tensor
    values: Tensor
    shape: torch.Size

    def unpacked(self) -> Tensor:
        """The spikes as they were, except that -0.0 becomes 0.0."""
        out = torch.empty(self.shape, memory_format=torch.channels_last)
        _unpack(self.words.numpy(), self.values.numpy(), flat(out).numpy())
        return out


def pack(x: Tensor) -> Packed | None:
    """Pack binary spikes; None if the values are not binary or their layout does not fit."""
    fits = x.ndim == 4 and x.shape[1] % BIT_LANES == 0 and x.is_contiguous(memory_format=torch.channels_last)
    if not WORKS or not fits or x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() == 0:
        return None
    numbers, channels = flat(x).numpy(), x.shape[1]
    words = torch.empty(x.numel() // BIT_LANES, dtype=torch.int16)
    ends = np.zeros((2, channels), np.int32)
    ends[1] = NONE
    for part in (min(PIXELS * channels, numbers.size), numbers.size):  # most that is not binary is seen at once
        _pack(numbers[:part], words.numpy(), ends)
        high, low = ends
        if (low < high).any() or (high > INFINITE).any():
            return None
    return Packed(words, torch.from_numpy(high).view(torch.float32), x.shape)


@compiled
def _pack(x: Array, words: Array, ends: Array) -> None:  # pragma: no cover - compiled
    channels, found = ends.shape[1], ends.reshape(ends.size)
    spread, pixels = channels // BIT_LANES, x.size // channels
    for first in range(0, pixels, PIXELS):
        many = min(PIXELS, pixels - first)
        for g in range(spread):
            c = g * BIT_LANES
            pack_run(x, first * channels + c, channels, words, first * spread + g, spread, found, c, many, channels)


@compiled
def _unpack(words: Array, values: Array, out: Array) -> None:  # pragma: no cover - compiled
    channels = values.size
    spread, pixels = channels // BIT_LANES, out.size // channels
    for first in range(0, pixels, PIXELS):
        many = min(PIXELS, pixels - first)
        for g in range(spread):
            c = g * BIT_LANES
            unpack_run(words, first * spread + g, spread, values, c, out, first * channels + c, channels, many)
