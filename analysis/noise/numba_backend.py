"""The sums of a layer on the CPU: `Running` hands a pass's tensors to compiled code, which reads memory once.

`accumulate` goes through the elements block by block; `numba_block` and `numba_channels` have its parts, and `schema`
says what each sum means. A block's values lie in `work`, so that the loops with divisions are short enough for the
compiler to do several elements at a time.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.analysis.noise.moments import BINS
from speedysnn.analysis.noise.numba_block import add_block, add_starts, add_trains, add_units, clip_into, count_bins
from speedysnn.analysis.noise.numba_channels import BLOCK, LANES, ROWS, Array, add_channels, over_time, spread, summed
from speedysnn.analysis.noise.schema import CHANNELS, COUNTS, HISTOGRAMS, TOTALS, indices
from speedysnn.kernels.jit import AVAILABLE
from speedysnn.kernels.layout import flat, laid_out, values

SIDE_BY_SIDE = 512  # channels in memory one after the other, at least: fewer are repeated, since short loops are slow
STARTED, START = indices("started", "start")
ROUNDING, NOISE = indices("rounding", "noise")
Sums = dict[str, Tensor]
Clip = tuple[float | None, float | None]


@summed
def accumulate(
    z: Array, corrected: Array, a: Array, twin: Array, drive: Array, out: Array, theta: Array, start: Array,
    amplitude: Array, width: Array, step: Array, inner: int, timesteps: Any, max_count: Any, min_count: Any,
    constant: bool, channels: Array, totals: Array, counts: Array, bins: Array, pulses: Array, fires: Array,
    full: Array, peak: Array, lags: bool, clip: bool, source_floor: Any, source_ceiling: Any,
) -> None:  # pragma: no cover - compiled
    """Add every element to the sums, which lie as `schema` orders them; theta to step (theta/T, A/T) are one a channel.

    With `clip` the source's activation is z kept between `source_floor` and `source_ceiling`, and `a` is not read.
    Without `lags` the sums of adjacent steps stay 0.
    """
    n, emitted, seen = z.size, pulses.size, 1 if constant else np.int64(timesteps)
    when, rounded, missed = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.uint32)
    work, each, begun = np.empty((ROWS, BLOCK)), np.empty((2, BLOCK), theta.dtype), np.zeros(n // fires.size, np.int32)
    few, tables = np.empty(BLOCK, np.float32), np.zeros((2, 8, bins.shape[1]), np.int64)
    clipped = np.empty(BLOCK if clip else 0, a.dtype)
    high, factor = np.float64(max_count) / timesteps, timesteps if constant else timesteps / timesteps
    low = -high if min_count < 0 else 0.0
    c, left, laid, size = 0, inner, -1, BLOCK
    if inner == 1 and theta.size <= BLOCK:  # every block begins with the first channel
        size = BLOCK - BLOCK % theta.size
    for first in range(0, n, size):
        m = min(size, n - first)
        own, held = z[first : first + m], corrected[first : first + m]
        if clip:
            clip_into(own, source_floor, source_ceiling, clipped)
        source = clipped[:m] if clip else a[first : first + m]
        over_time(out, first, m, n, when, work, pulses, lags)
        if inner > 1 or c != laid:  # else each element has the channel it had in the block before
            spread(c, left, inner, theta, start, amplitude, width, step, each, work, m)
            laid = c
        add_block(
            own, held, source, twin[first : first + m], drive[first : first + m], each[0], each[1], factor,
            np.float64(emitted), timesteps, max_count, min_count, work, rounded, missed, few, totals, counts,
        )  # fmt: skip
        count_bins(rounded[:m], tables[ROUNDING])
        count_bins(missed[:m], tables[NOISE])
        c, left = add_channels(own, source, held, c, left, inner, max_count, min_count, work, channels)
        add_starts(when[:m], counts)
        add_units(source, when, first, max_count, few, fires, full, peak, begun)
        if lags:
            add_trains(drive[first : first + m], each[0, :m], seen, emitted, high, low, work, totals, counts)
    bins += tables.sum(1)
    for image in range(begun.size):
        counts[STARTED] += begun[image] != 0
        counts[START] += begun[image]


def supports(*tensors: Tensor) -> bool:
    """Tell whether the compiled sums can read these tensors.

    Returns:
        True on the CPU, for float32 that is not empty, where numba is there.
    """
    return AVAILABLE and all(x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() for x in tensors)


class Running:
    """The sums of `LayerSums` while they grow, for images that lie alike in memory.

    Args:
        z: some of the images, (B, ...), as `in_rows` gives it.
        channel_dim: of z.
        theta: of the neurons, () or (C,).
        start: v_init, () or (C,).
        amplitude: what a spike stands for, () or (C,).
        timesteps, max_count, min_count: T, and the range of a neuron's count.
        trains: outputs have T timesteps; else they are means over time, and nothing is known of their timesteps.
        lags: also sum products of adjacent timesteps.
    """

    def __init__(
        self, z: Tensor, channel_dim: int, theta: Tensor, start: Tensor, *, amplitude: Tensor, timesteps: int,
        max_count: int, min_count: int, trains: bool, lags: bool,
    ) -> None:  # fmt: skip
        self._shape, self._order, neurons = z.shape[1:], z.stride()[1:], z.shape[1:].numel()
        self._channels = channels = z.shape[channel_dim] if z.ndim > 1 else 1
        self._inner = z.stride(channel_dim) if channels > 1 else neurons
        self._again = _repeats(channels) if self._inner == 1 else 1
        own = [values(x, torch.float32).expand(channels).repeat(self._again) for x in (theta, start, amplitude)]
        steps = (own[i].to(torch.float64) / timesteps for i in (0, 2))
        self._parameters = [x.numpy() for x in (*own, *steps)]
        self._limits = np.float32(timesteps), np.float32(max_count), np.float32(min_count)
        self._lags, self._trains, self._seen = lags, trains, np.zeros(3, np.int64)
        self._sums = _empty(channels, neurons, timesteps if trains else 1)

    def fits(self, z: Tensor, trains: bool) -> bool:
        """Tell whether these images lie in memory as those before them.

        Returns:
            True where `add` may take them.
        """
        return (z.shape[1:], z.stride()[1:], trains) == (self._shape, self._order, self._trains)

    def add(
        self, z: Tensor, corrected: Tensor, a: Tensor | Clip, twin: Tensor, drive: Tensor, constant: bool, out: Tensor,
        fired: int | None,
    ) -> int:  # fmt: skip
        """Add some images.

        Args:
            z: the source's pre-activation, (B, ...).
            corrected: z with the neuron's offset added.
            a: the source's activation, (B, ...), or the floor and the ceiling that make it of z.
            twin: output of the quantized reading, (B, ...).
            drive: what the neuron integrated, (B, ...).
            constant: the drive is that of each step, else it is the sum over all of them.
            out: outputs, (T*B, ...), or their mean over time, (B, ...).
            fired: the spike events, where a mean over time does not show them.

        Returns:
            The spike events.
        """
        clip = isinstance(a, tuple)
        floor, ceiling = a if isinstance(a, tuple) else (None, None)
        source = np.empty(0, np.float32) if isinstance(a, tuple) else flat(laid_out(a, z)).numpy()
        own, held, *rows = (flat(laid_out(x, z)).numpy() for x in (z, corrected, twin, drive, out))
        channels = np.zeros((len(CHANNELS), self._again, self._channels))
        before, (_, *others) = int(self._sums["pulses"].sum()), self._sums.values()
        accumulate(
            own, held, source, *rows, *self._parameters, self._inner, *self._limits, constant,
            channels.reshape(len(CHANNELS), -1), *others, self._lags, clip,
            np.float32(-np.inf if floor is None else floor), np.float32(np.inf if ceiling is None else ceiling),
        )  # fmt: skip
        self._sums["channels"] += channels.sum(1)
        fired = int(self._sums["pulses"].sum()) - before if fired is None else fired
        self._seen += fired, z.numel(), len(z)
        return fired

    def found(self) -> Sums:
        """Give the sums so far.

        Returns:
            Every sum by name.
        """
        found = {name: torch.from_numpy(x) for name, x in self._sums.items()}
        for name in ("fires", "full", "peak"):  # units as they lie in memory, put in order
            found[name] = found[name].as_strided(self._shape, self._order).reshape(-1)
        if not self._trains:
            del found["pulses"]
        return {**found, "events": torch.from_numpy(self._seen)}


def _repeats(channels: int) -> int:
    """How often channels are repeated so that blocks of them fill whole vectors."""
    whole = LANES // math.gcd(channels, LANES)
    return -(-SIDE_BY_SIDE // (channels * whole)) * whole


def _empty(channels: int, units: int, emitted: int) -> dict[str, Any]:
    """Zeros in the order in which the compiled sums take them."""
    return {
        "channels": np.zeros((len(CHANNELS), channels)),
        "totals": np.zeros(len(TOTALS)),
        "counts": np.zeros(len(COUNTS), np.int64),
        "bins": np.zeros((len(HISTOGRAMS), BINS + 3), np.int64),
        "pulses": np.zeros(emitted, np.int64),
        "fires": np.zeros(units, np.int32),
        "full": np.zeros(units, np.int32),
        "peak": np.zeros(units, np.float32),
    }
