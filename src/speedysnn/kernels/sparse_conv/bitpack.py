"""Binary spikes packed into bits for the backward pass: one bit a value, one amplitude a channel.

A word holds sixteen channels that lie side by side. `pack` also finds out whether the values are binary at all: it
keeps the largest and the smallest spike of every channel, which have to be equal.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels.jit import WORKS, Writer, compiled, intrinsic, ir, types
from speedysnn.kernels.layout import flat

Array = Any
BIT_LANES = 16  # channels of a word
NONE, INFINITE = 2**31 - 1, 0xFF << 23  # bits of a float32: no spike yet, and infinity
PIXELS = 256  # pixels whose groups of channels are packed one after the other: they stay in the nearest cache


class _Bits(Writer):
    """Writes the code for one group of channels, pixel after pixel."""

    def __init__(self, context: Any, builder: Any, types_: Any, args: Any) -> None:
        super().__init__(context, builder, types_, args)
        self.reals, self.bits = ir.VectorType(self.real, BIT_LANES), ir.VectorType(ir.IntType(1), BIT_LANES)
        self.zero = ir.Constant(self.reals, [0.0] * BIT_LANES)


def _pack(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Write the body of `pack_run`; the largest and smallest spikes, compared by their bits, stay in registers."""
    w, b = _Bits(context, builder, signature.args, args), builder
    x, words, ends = w.pointer(0), w.pointer(3), w.pointer(6)
    first, apart, to, spread, c, many = (args[i] for i in (1, 2, 4, 5, 7, 8))
    places = [c, b.add(c, args[9])]
    words_, before = ir.VectorType(w.word, BIT_LANES), b.block
    begun, none = [w.vector(ends, place, words_) for place in places], ir.Constant(words_, [2**31 - 1] * BIT_LANES)
    body, done = w.blocks("body", "done")
    b.branch(body)
    b.position_at_end(body)
    (i,), (high, low) = w.phis(w.index, [w.number(0)], before), w.phis(words_, begun, before)
    value = w.vector(x, b.add(first, b.mul(i, apart)), w.reals)
    fired = b.fcmp_unordered("!=", value, w.zero)
    b.store(b.bitcast(fired, ir.IntType(BIT_LANES)), b.gep(words, [b.add(to, b.mul(i, spread))]))
    bits = b.bitcast(value, words_)
    some = b.select(fired, bits, none)
    higher = b.select(b.icmp_signed(">", bits, high), bits, high)
    lower = b.select(b.icmp_signed("<", some, low), some, low)
    later = b.add(i, w.number(1))
    w.close([i, high, low], [later, higher, lower], body)
    b.cbranch(b.icmp_signed("<", later, many), body, done)
    b.position_at_end(done)
    for result, place in zip((higher, lower), places, strict=True):
        w.store(result, ends, place)
    return context.get_dummy_value()


def _unpack(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Write the body of `unpack_run`."""
    w, b = _Bits(context, builder, signature.args, args), builder
    words, values, out = w.pointer(0), w.pointer(3), w.pointer(5)
    first, spread, c, to, apart, many = (args[i] for i in (1, 2, 4, 6, 7, 8))
    spike, before = w.vector(values, c, w.reals), b.block
    body, done = w.blocks("body", "done")
    b.branch(body)
    b.position_at_end(body)
    (i,) = w.phis(w.index, [w.number(0)], before)
    fired = b.bitcast(b.load(b.gep(words, [b.add(first, b.mul(i, spread))])), w.bits)
    w.store(b.select(fired, spike, w.zero), out, b.add(to, b.mul(i, apart)))
    later = b.add(i, w.number(1))
    w.close([i], [later], body)
    b.cbranch(b.icmp_signed("<", later, many), body, done)
    b.position_at_end(done)
    return context.get_dummy_value()


if WORKS:

    @intrinsic  # type: ignore[untyped-decorator]
    def pack_run(
        _: Any, x: Any, first: Any, apart: Any, words: Any, to: Any, spread: Any, ends: Any, c: Any, many: Any,
        channels: Any,
    ) -> Any:  # fmt: skip
        """Set words[to + i * spread] to the bits x[first + i * apart + k] != 0, k < 16, for i < many, at least one.

        The largest value and the smallest one that is not 0 go to ends[c + k] and ends[channels + c + k] as bits; they
        are compared as whole numbers, which puts NaN beyond infinity.
        """
        return types.void(x, first, apart, words, to, spread, ends, c, many, channels), _pack

    @intrinsic  # type: ignore[untyped-decorator]
    def unpack_run(
        _: Any, words: Any, first: Any, spread: Any, values: Any, c: Any, out: Any, to: Any, apart: Any, many: Any
    ) -> Any:  # fmt: skip
        """Set out[to + i * apart + k] to values[c + k] where bit k < 16 of words[first + i * spread] is set, else 0."""
        return types.void(words, first, spread, values, c, out, to, apart, many), _unpack


@dataclass(frozen=True)
class Packed:
    """Binary spikes (N, C, H, W), channels-last.

    Attributes:
        words: (N * H * W * C / 16,) int16, one bit for each value.
        values: (C,) float32, the amplitude of a channel's spikes.
        shape: of the spikes.
    """

    words: Tensor
    values: Tensor
    shape: torch.Size

    def unpacked(self) -> Tensor:
        """Return the spikes as they were, except that -0.0 becomes 0.0."""
        out = torch.empty(self.shape, memory_format=torch.channels_last)
        _unpack_all(self.words.numpy(), self.values.numpy(), flat(out).numpy())
        return out


def pack(x: Tensor) -> Packed | None:
    """Pack spikes (N, C, H, W); return None if the values are not binary or their layout does not fit."""
    fits = x.ndim == 4 and x.shape[1] % BIT_LANES == 0 and x.is_contiguous(memory_format=torch.channels_last)
    if not WORKS or not fits or x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() == 0:
        return None
    numbers, channels = flat(x).numpy(), x.shape[1]
    words = torch.empty(x.numel() // BIT_LANES, dtype=torch.int16)
    ends = np.zeros((2, channels), np.int32)
    ends[1] = NONE
    for part in (min(PIXELS * channels, numbers.size), numbers.size):  # a few pixels tell most that is not binary
        _pack_all(numbers[:part], words.numpy(), ends)
        high, low = ends
        if (low < high).any() or (high > INFINITE).any():
            return None
    return Packed(words, torch.from_numpy(high).view(torch.float32), x.shape)


@compiled
def _pack_all(x: Array, words: Array, ends: Array) -> None:  # pragma: no cover - compiled
    """Pack all pixels; `ends` (2, C) takes the bits of the channels' largest and smallest spikes."""
    channels, found = ends.shape[1], ends.reshape(ends.size)
    spread, pixels = channels // BIT_LANES, x.size // channels
    for first in range(0, pixels, PIXELS):
        many = min(PIXELS, pixels - first)
        for g in range(spread):
            c = g * BIT_LANES
            pack_run(x, first * channels + c, channels, words, first * spread + g, spread, found, c, many, channels)


@compiled
def _unpack_all(words: Array, values: Array, out: Array) -> None:  # pragma: no cover - compiled
    """Unpack all pixels."""
    channels = values.size
    spread, pixels = channels // BIT_LANES, out.size // channels
    for first in range(0, pixels, PIXELS):
        many = min(PIXELS, pixels - first)
        for g in range(spread):
            c = g * BIT_LANES
            unpack_run(words, first * spread + g, spread, values, c, out, first * channels + c, channels, many)
