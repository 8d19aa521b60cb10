"""Compiled histograms of a layer's values by channel and float32 code, on the CPU and on a GPU.

A code is the exponent of a positive float32 and the first four bits of its mantissa. `Table` counts values on the CPU
in memory order, and its range of codes grows with the values; `DeviceTable` counts them on a GPU, where the counts stay
until all values have come. Both give `Counted`, from which `speedysnn.calibration.histogram` makes its histograms.

`squared_error` sums the quantizer's error over such a histogram: the inner loop of the search for thresholds.
`speedysnn.calibration.distributions.squared_error` defines it in plain torch, and a test compares both.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels import triton_backend
from speedysnn.kernels.jit import compiled
from speedysnn.kernels.layout import in_rows, power

Array = Any
SHIFT = 19  # bits of a float32 below those of its code
CODES = 1 << (31 - SHIFT)
SIGN_BIT, MAGNITUDE_BITS = np.int32(-(2**31)), np.int32(2**31 - 1)  # the sign's bit, and all others
NOT_FINITE = 0xFF << 23  # a magnitude with these bits or larger ones is infinite or NaN
MAX_CELLS = 2**21  # most cells of a table on the CPU: a larger one would cost more than the values
MAX_DEVICE_CELLS = 2**27  # most cells of a table on a GPU, 512 MiB
SPARE = 16  # codes that a table is wider on either side than its values need: one octave
COUNT_BLOCK = 2048  # about the values that are counted together: they stay in the nearest cache
_TILE = 2048  # about the values that one program on a GPU counts


@dataclass(frozen=True)
class Counted:
    """Counts of a tensor's values by row.

    Attributes:
        table: (rows, 2 + codes) int32: the number of values that are not positive, of positive values with a code
            below `low`, and of those with code `low`, low + 1, ...
        low: the smallest code with a column of its own.
        largest: (rows,) float32, the largest positive value, 0 if there is none.
    """

    table: Array
    low: int
    largest: Array


@compiled
def raise_to(bits: Array, sign: Any, largest: Array) -> None:  # pragma: no cover - compiled
    """Raise `largest` to the values' bits, with signs flipped by `sign`; positive floats sort as their bits do."""
    for j in range(bits.size):
        largest[j] = max(largest[j], bits[j] ^ sign)


@compiled
def largest_magnitude(bits: Array) -> Any:  # pragma: no cover - compiled
    """Return the bits of the largest magnitude."""
    most = np.int32(0)
    for j in range(bits.size):
        most = max(most, bits[j] & MAGNITUDE_BITS)
    return most


@compiled
def block_of(channels: int, inner: int) -> int:  # pragma: no cover - compiled
    """Return the values of a block: whole rows of channels, or neighbours of one channel."""
    return channels * max(1, COUNT_BLOCK // channels) if inner == 1 else min(inner, COUNT_BLOCK)


@compiled
def peak(
    bits: Array, channels: int, inner: int, signed: bool, begin: int, end: int, peaks: Array
) -> Any:  # pragma: no cover - compiled
    """Return the bits of the largest magnitude of values begin..end - 1.

    `peaks` (2, C) is raised to the bits of every channel's largest value, and of its largest negated value if `signed`.
    """
    block = block_of(channels, inner)
    high, i, c, most = np.zeros((2, block), np.int32), begin, begin // inner % channels, np.int32(0)
    while i < end:
        run = end if inner == 1 else i + inner
        while i < run:
            part = bits[i : min(run, i + block)]
            most = max(most, largest_magnitude(part))
            raise_to(part, np.int32(0), high[0])
            if signed:
                raise_to(part, SIGN_BIT, high[1])
            i += part.size
        for j in range(block):
            at = j % channels if inner == 1 else c
            for k in range(2):
                peaks[k, at], high[k, j] = max(peaks[k, at], high[k, j]), 0
        c = (c + 1) % channels
    return most


@compiled
def add(
    bits: Array, sign: Any, low: int, base: Array, place: Array, table: Array
) -> None:  # pragma: no cover - compiled
    """Count values, with signs flipped by `sign`, in the rows that begin at `base`; `place` is scratch memory."""
    for j in range(bits.size):
        code = (bits[j] ^ sign) >> SHIFT
        place[j] = base[j] + (code - low + np.int32(2) if code >= low else min(max(code, np.int32(0)), np.int32(1)))
    for j in range(bits.size):
        table[place[j]] += np.int32(1)


@compiled
def count_bins(
    bits: Array, channels: int, inner: int, signed: bool, begin: int, end: int, low: Any, table: Array
) -> None:  # pragma: no cover - compiled
    """Count values begin..end - 1, whole rows of channels or whole channels, in a table as `Counted` describes it.

    If `signed`, the rows from `channels` on count the negated values.
    """
    block, flat_, apart = block_of(channels, inner), table.reshape(table.size), table.shape[1]
    base, place = np.empty(block, np.int32), np.empty(block, np.uint32)  # signed, an index might count from the end
    i, c = begin, begin // inner % channels
    for j in range(block):
        base[j] = j % channels * apart
    while i < end:
        run = end if inner == 1 else i + inner
        if inner > 1:
            base[:] = c * apart
        while i < run:
            part = bits[i : min(run, i + block)]
            add(part, np.int32(0), low, base, place, flat_)
            if signed:
                add(part, SIGN_BIT, low, base, place, flat_[channels * apart :])
            i += part.size
        c = (c + 1) % channels


@compiled
def fold(table: Array, low: int, top: Array, counts: Array) -> None:  # pragma: no cover - compiled
    """Add a table's counts to rows of bins that end below the code `top`; smaller codes go to the first bin."""
    bins = counts.shape[1]
    for row in range(table.shape[0]):
        first = low - (top[row] - bins)
        counts[row, 0] += table[row, 1]
        for k in range(2, table.shape[1]):
            if table[row, k]:
                counts[row, min(max(first + k - 2, 0), bins - 1)] += table[row, k]


@compiled
def span(peaks: Array) -> tuple[int, int]:  # pragma: no cover - compiled
    """Return the smallest and the largest code of the positive peaks; (CODES, 0) where there are none."""
    least, most = CODES, 0
    for bits in peaks:
        if bits > 0:
            least, most = min(least, bits >> SHIFT), max(most, bits >> SHIFT)
    return least, most


class Table:
    """A growing histogram of a layer's values by row and code; not thread-safe.

    Positive values below the smallest normal number count as zeros.

    Args:
        channels: of the layer, or 1.
        signed: as many rows more count the negated values.
        depth: codes that are kept apart below each row's largest.
    """

    def __init__(self, channels: int, signed: bool, depth: int) -> None:
        self._channels, self._signed, self._depth = channels, signed, depth
        self._peaks, self._low = np.zeros((1 + signed, channels), np.int32), CODES
        self._table = np.zeros((channels * (1 + signed), 2), np.int32)
        self.seen = 0

    @property
    def cells(self) -> int:
        """The number of counters."""
        return int(self._table.size)

    def add(self, bits: Array, inner: int, begin: int, end: int) -> bool:
        """Count values begin..end - 1, float32 as int32; return False and count none if one is not finite."""
        peaks = np.zeros((2, self._channels), np.int32)
        if peak(bits, self._channels, inner, self._signed, begin, end, peaks) >= NOT_FINITE:
            return False
        np.maximum(self._peaks, peaks[: 1 + self._signed], out=self._peaks)
        self._widen()
        count_bins(bits, self._channels, inner, self._signed, begin, end, np.int32(self._low), self._table)
        self.seen += end - begin
        return True

    def _widen(self) -> None:
        """Widen the range of codes to the present peaks; values counted below the range before stay there."""
        least, most = span(self._peaks.reshape(-1))
        codes = self._table.shape[1] - 2
        high = self._low + codes if codes else 0
        if least > most or (max(1, least - self._depth) >= self._low and most < high):
            return
        low, high = min(self._low, max(1, least - self._depth - SPARE)), max(high, most + 1 + SPARE)
        wider = np.zeros((len(self._table), (high - low + 2) | 1), np.int32)  # odd: rows differ in their cache sets
        first = self._low - low + 2
        wider[:, :2], wider[:, first : first + codes] = self._table[:, :2], self._table[:, 2:]
        self._low, self._table = low, wider

    def counted(self) -> Counted:
        """Return the counts so far."""
        return Counted(self._table, self._low, self._peaks.reshape(-1).view(np.float32))


def supports(x: Tensor, rows: int) -> bool:
    """Tell whether `DeviceTable` supports a tensor's values, counted in so many rows."""
    fits = 0 < rows * CODES <= MAX_DEVICE_CELLS and x.is_floating_point() and x.numel() > 0
    return _matches_torch(x.device.type) and fits


class DeviceTable:
    """A histogram of a layer's values by row and code on a GPU; see `Table`.

    Args:
        channels: of the layer, or 1.
        signed: as many rows more count the negated values.
        depth: codes that are kept apart below each row's largest.
        device: the GPU.
    """

    def __init__(self, channels: int, signed: bool, depth: int, device: torch.device) -> None:
        rows = channels * (1 + signed)
        self._channels, self._signed, self._depth, self.device = channels, signed, depth, device
        self._table = torch.zeros(rows, CODES, dtype=torch.int32, device=device)
        self._peaks = torch.zeros(rows + 1, dtype=torch.int32, device=device)  # the last is the largest magnitude
        self.seen = 0

    def add(self, x: Tensor, dim: int) -> None:
        """Count activations whose channels are dimension `dim`, -1 for none; the GPU is not waited for."""
        from speedysnn.kernels import triton_kernels

        x = in_rows(x.detach().to(torch.float32) if x.dtype == torch.float64 else x.detach())
        inner = x.numel() if dim < 0 else x.stride(dim)
        across = inner == 1 and self._channels > 1
        width = self._channels if across else inner
        rows, wide = x.numel() // width, min(_TILE, power(width))
        tall = min(_TILE // wide, power(rows))
        with triton_backend.on(x):
            triton_kernels.count_bins[-(-rows // tall), -(-width // wide)](
                x, self._table, self._peaks, self._peaks[-1:], rows, width, self._channels, CODES, SHIFT, across,
                self._signed, tall, wide,
            )  # fmt: skip
        self.seen += x.numel()

    def counted(self) -> Counted | None:
        """Return the counts so far, or None where a value was not finite; the GPU is waited for twice."""
        peaks: Any = self._peaks.cpu().numpy()
        if peaks[-1] >= NOT_FINITE:
            return None
        largest = peaks[:-1]
        least, most = span(largest)
        low = max(1, least - self._depth) if least <= most else 1
        smaller = self._table[:, 1:low].sum(1, keepdim=True)
        table: Any = torch.cat([smaller, smaller, self._table[:, low : most + 1]], 1).to(torch.int32).cpu().numpy()
        table[:, 0] = self.seen // self._channels - table[:, 1:].sum(1)
        return Counted(table, low, largest.view(np.float32))


@cache
def _matches_torch(device: str) -> bool:
    """Tell whether Triton runs on such a device and, in a trial with a few values, counts as torch does."""
    if not triton_backend.usable(device):
        return False
    x = torch.randn(64, 3, 5, generator=torch.Generator().manual_seed(0))
    table = DeviceTable(3, True, CODES, torch.device(device))
    table.add(x.to(device), 1)
    found, rows = table.counted(), x.movedim(1, 0).flatten(1)
    both = torch.cat([rows, -rows])
    codes = (both.view(torch.int32) >> SHIFT).clamp_min(0) + torch.arange(6)[:, None] * CODES
    expected = torch.bincount(codes.flatten(), minlength=6 * CODES).view(6, CODES).numpy()
    if found is None:
        return False
    held = found.table[:, 2:]
    return (
        np.array_equal(expected[:, found.low : found.low + held.shape[1]], held)
        and np.array_equal(expected[:, 0], found.table[:, 0])
        and np.array_equal(both.amax(1).numpy(), found.largest)
    )


@compiled
def _errors(
    edges: Array, density: Array, theta: Array, start: Array, steps: int, max_count: int, out: Array
) -> None:  # pragma: no cover - compiled
    """Write for every row and theta the sum over filled bins of density times the error's integral across the bin."""
    rows, bins = density.shape
    for row in range(rows):
        v = start[row]
        v3 = v * v * v
        cells = (v3 + (1 - v) ** 3) / 3
        for j in range(theta.shape[1]):
            step = theta[row, j] / steps
            inverse = 1.0 / step
            total = 0.0
            last, before = -1, 0.0
            for b in range(bins):
                if density[row, b] == 0.0:
                    continue
                if last != b:
                    w = edges[row, b] * inverse + v
                    n = min(np.floor(w), max_count)
                    before = n * cells + (v3 - (v - (w - n)) ** 3) / 3
                w = edges[row, b + 1] * inverse + v
                n = min(np.floor(w), max_count)
                after = n * cells + (v3 - (v - (w - n)) ** 3) / 3
                total += (after - before) * density[row, b]
                last, before = b + 1, after
            out[row, j] = total * step * step * step


def squared_error(
    edges: Tensor, density: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, max_spikes: int = 1
) -> Tensor:
    """Sum the quantizer's squared error over a histogram for every candidate theta, in as many threads as torch uses.

    Args:
        edges: the bins' edges, (C, bins + 1) float64.
        density: count over width of every bin, (C, bins) float64.
        theta: J candidates a channel, (C, J) float64.
        v_init: (C,) float64.
        timesteps: T.
        max_spikes: N.

    Returns:
        The errors (C, J), in the activation's unit squared.
    """
    out = np.zeros(tuple(theta.shape))
    arrays = [np.ascontiguousarray(x.numpy()) for x in (edges, density, theta, v_init)]
    workers = max(1, min(torch.get_num_threads(), len(out)))
    bounds = np.linspace(0, len(out), workers + 1).astype(int)

    def work(i: int) -> None:
        rows = slice(bounds[i], bounds[i + 1])
        _errors(*(x[rows] for x in arrays), timesteps, timesteps * max_spikes, out[rows])

    if workers == 1:
        work(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    return torch.from_numpy(out)
