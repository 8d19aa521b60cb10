"""Hand a layer's tensors to the compiled sums, where they can take them; what these add up stays in numpy arrays."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.analysis.sum_trains import LANES
from speedysnn.analysis.sums import BINS, CHANNELS, COUNTS, TOTALS, accumulate
from speedysnn.kernels.compiled import AVAILABLE
from speedysnn.kernels.layout import flat, laid_out, values

Sums = dict[str, Tensor]
Clip = tuple[float | None, float | None]
SIDE_BY_SIDE = 512  # channels in memory one after the other, at least: few would make loops short, so they come again


def takes(*tensors: Tensor) -> bool:
    """Whether the compiled sums can read these."""
    return AVAILABLE and all(x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() for x in tensors)


class Running:
    """The sums of `LayerSums` while they grow, for images that lie alike in memory.

    Args:
        z: some of the images, (B, ...), as `in_rows` gives it.
        channel_dim: of z.
        theta: of the neurons, () or (C,); `start` v_init alike.
        steps, most, least: T, and the range of a neuron's count.
        trains: outputs have T steps; else they are means over time, and nothing is known of their steps.
        lags: also sum steps beside one another.
    """

    def __init__(
        self, z: Tensor, channel_dim: int, theta: Tensor, start: Tensor, *, steps: int, most: int, least: int,
        trains: bool, lags: bool,
    ) -> None:  # fmt: skip
        self._shape, self._order, neurons = z.shape[1:], z.stride()[1:], z.shape[1:].numel()
        self._channels = channels = z.shape[channel_dim] if z.ndim > 1 else 1
        self._inner = z.stride(channel_dim) if channels > 1 else neurons
        self._again = _repeats(channels) if self._inner == 1 else 1
        own = [values(x, torch.float32).expand(channels).repeat(self._again) for x in (theta, start)]
        self._parameters = [x.numpy() for x in (*own, own[0].to(torch.float64) / steps)]
        self._limits = np.float32(steps), np.float32(most), np.float32(least)
        self._lags, self._trains, self._seen = lags, trains, np.zeros(3, np.int64)
        self._sums = _empty(channels, neurons, steps if trains else 1)

    def fits(self, z: Tensor, trains: bool) -> bool:
        """Whether these images lie as those before them."""
        return (z.shape[1:], z.stride()[1:], trains) == (self._shape, self._order, self._trains)

    def add(
        self, z: Tensor, corrected: Tensor, a: Tensor | Clip, twin: Tensor, drive: Tensor, constant: bool, out: Tensor,
        fired: int | None,
    ) -> int:  # fmt: skip
        """Add some images; returns their spike events, `fired` where a mean over time does not show them.

        `constant`: the drive holds for each step, else it is their sum. `a`: the source's activation, or the range that
        it keeps z in. Shapes: z, corrected, a, twin, drive (B, ...); out (B, ...) or (T*B, ...).
        """
        low, high = a if isinstance(a, tuple) else (None, None)
        source = np.empty(0, np.float32) if isinstance(a, tuple) else flat(laid_out(a, z)).numpy()
        own, held, *rows = (flat(laid_out(x, z)).numpy() for x in (z, corrected, twin, drive, out))
        channels = np.zeros((len(CHANNELS), self._again, self._channels))
        before, (_, *others) = int(self._sums["pulses"].sum()), self._sums.values()
        accumulate(
            own, held, source, *rows, *self._parameters, self._inner, *self._limits, constant,
            channels.reshape(len(CHANNELS), -1), *others, self._lags, np.float32(-np.inf if low is None else low),
            np.float32(np.inf if high is None else high),
        )  # fmt: skip
        self._sums["channels"] += channels.sum(1)
        fired = int(self._sums["pulses"].sum()) - before if fired is None else fired
        self._seen += fired, z.numel(), len(z)
        return fired

    def found(self) -> Sums:
        """Every sum by name."""
        found = {name: torch.from_numpy(x) for name, x in self._sums.items()}
        for name in ("fires", "full", "peak"):  # units as they lie in memory, put in order
            found[name] = found[name].as_strided(self._shape, self._order).reshape(-1)
        if not self._trains:
            del found["pulses"]
        return {**found, "events": torch.from_numpy(self._seen)}


def _repeats(channels: int) -> int:
    """How often channels come again so that blocks of them fill whole vectors."""
    whole = LANES // math.gcd(channels, LANES)
    return -(-SIDE_BY_SIDE // (channels * whole)) * whole


def _empty(channels: int, units: int, emitted: int) -> dict[str, Any]:
    """Zeros in the order in which the compiled sums take them."""
    return {
        "channels": np.zeros((len(CHANNELS), channels)),
        "totals": np.zeros(len(TOTALS)),
        "counts": np.zeros(len(COUNTS), np.int64),
        "bins": np.zeros((2, BINS + 3), np.int64),
        "pulses": np.zeros(emitted, np.int64),
        "fires": np.zeros(units, np.int32),
        "full": np.zeros(units, np.int32),
        "peak": np.zeros(units, np.float32),
    }
