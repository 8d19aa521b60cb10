"""Histograms of activations: one pass, bounded memory, the same counts for any order and any batch split.

A bin is a float32's exponent with the first four bits of its mantissa, so that every bin is 3 to 6 % wide whatever
the scale; 20 octaves below the largest value are kept apart, what is smaller shares one bin. All counts are integers
and the window follows the maximum alone, hence nothing depends on the order of the data.

Values that may be negative take two rows a channel: C rows of the values, then C rows of the values negated.

Thread-safe histogram of one layer's activations, counted on the device that holds them.
"""

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.errors import DataError
from speedysnn.kernels import histogram
from speedysnn.kernels.histogram import CODES, MAX_CELLS, SHIFT, Counted, DeviceTable, Table, fold
from speedysnn.kernels.jit import AVAILABLE
from speedysnn.kernels.layout import flat, in_rows
from speedysnn.kernels.neuron.numba_backend import spread_over

SUB_BITS = 4
NOT_FINITE = "activations hold NaN or infinity: check the checkpoint and the input's normalisation"
OCTAVES = 20
BINS = OCTAVES * 2**SUB_BITS + 1
_SHIFT = 23 - SUB_BITS
assert _SHIFT == SHIFT


class ActivationHistogram:
    """Counts of a layer's activations, for the layer (1 row) or for each channel (C rows).

    Attributes:
        counts: (C, BINS) int64; bin 0 holds the positive values below the window.
        top: (C,) int64, the bin code just above the window.
        zeros: (C,) int64, values at or below zero.
        maximum: (C,) float32, the largest value seen.
        squared_gradients: (C, BINS) float64, sums over a bin's values of their squared gradient, for rules that need
            them; None where they were not collected.
    """

    def __init__(self, channels: int = 1) -> None:
        self.counts = torch.zeros(channels, BINS, dtype=torch.int64)
        self.top = torch.zeros(channels, dtype=torch.int64)
        self.zeros = torch.zeros(channels, dtype=torch.int64)
        self.maximum = torch.zeros(channels)
        self.squared_gradients: Tensor | None = None

    @property
    def channels(self) -> int:
        """C; 1 for a layer-wide histogram."""
        return self.counts.shape[0]

    @property
    def total(self) -> Tensor:
        """(C,) number of values counted."""
        return self.counts.sum(1) + self.zeros

    def update(self, values: Tensor) -> None:
        """Count activations given as (C, M).

        Raises:
            DataError: NaN or infinity among them.
        """
        flat = values.detach().to("cpu", torch.float32).contiguous()
        if not bool(flat.isfinite().all()):
            raise DataError(NOT_FINITE)
        positive = flat > 0
        self.zeros += (~positive).sum(1)
        if not bool(positive.any()):
            return
        peak = flat.amax(1).clamp_min(0)
        self.maximum = torch.maximum(self.maximum, peak)
        self._raise_top(self._window_top(peak.numpy()))
        added = torch.bincount(self._cells_of(flat)[positive], minlength=self.channels * BINS)
        self.counts += added.view(self.channels, BINS)

    def add_gradients(self, values: Tensor, gradients: Tensor) -> None:
        """Add the squared gradients of activations that were counted already, both given as (C, M).

        Raises:
            DataError: NaN or infinity among the gradients.
        """
        flat = values.detach().to("cpu", torch.float32).contiguous()
        squares = gradients.detach().to("cpu", torch.float64).square()
        if not bool(squares.isfinite().all()):
            raise DataError("gradients at the output hold NaN or infinity: check the checkpoint")
        if self.squared_gradients is None:
            self.squared_gradients = torch.zeros(self.channels, BINS, dtype=torch.float64)
        positive = flat > 0
        cells = self._cells_of(flat)[positive]
        added = torch.bincount(cells, squares[positive], minlength=self.channels * BINS)
        self.squared_gradients += added.view(self.channels, BINS)

    def _cells_of(self, flat: Tensor) -> Tensor:
        """The cells of `counts`, row after row, that positive values (C, M) belong to; of others anything."""
        offset = (self.top - (BINS - 1) - 1).to(torch.int32)
        index: Tensor = ((flat.view(torch.int32) >> _SHIFT) - offset[:, None]).clamp_(0, BINS - 1).to(torch.int64)
        return index.add(torch.arange(self.channels)[:, None] * BINS)

    def by_gradient(self) -> "ActivationHistogram | None":
        """The same bins with the sums of squared gradients for counts; None where these were not collected."""
        if self.squared_gradients is None:
            return None
        out = ActivationHistogram.from_state(self.state())
        out.counts, out.squared_gradients = self.squared_gradients.clone(), None
        return out

    def take(self, found: Counted) -> None:
        """Add what a table has counted."""
        zeros, maximum = self.zeros.numpy(), self.maximum.numpy()  # numpy's small steps keep the interpreter's lock
        zeros += found.table[:, 0]
        np.maximum(maximum, found.largest, out=maximum)
        self._raise_top(self._window_top(found.largest))
        fold(found.table, found.low, self.top.numpy(), self.counts.numpy())

    @staticmethod
    def _window_top(peak: Any) -> Any:
        """The code just above the octave of a float32's peak, 0 for none; arrays (C,)."""
        codes = (peak.view(np.int32) >> _SHIFT).astype(np.int64)
        return np.where(peak > 0, (codes >> SUB_BITS) + 1 << SUB_BITS, 0)

    def _raise_top(self, top: Any) -> None:
        """Move rows' windows up to a larger maximum, (C,), merging what falls out below into bin 0."""
        own = self.top.numpy()
        rows = np.flatnonzero(top > own)
        if not rows.size:
            return
        if own.any():  # something positive has been counted
            shift = np.minimum(top[rows] - own[rows], BINS - 1)[:, None]
            _shift_bins(self.counts.numpy(), rows, shift)
            if self.squared_gradients is not None:
                _shift_bins(self.squared_gradients.numpy(), rows, shift)
        own[rows] = top[rows]

    def plus(self, other: "ActivationHistogram") -> "ActivationHistogram":
        """Both together, as if one had seen all values."""
        a, b = ActivationHistogram.from_state(self.state()), ActivationHistogram.from_state(other.state())
        top = np.maximum(a.top.numpy(), b.top.numpy())
        a._raise_top(top)
        b._raise_top(top)
        a.counts += b.counts
        a.zeros += b.zeros
        a.maximum = torch.maximum(a.maximum, b.maximum)
        known = a.squared_gradients is not None and b.squared_gradients is not None
        a.squared_gradients = a.squared_gradients + b.squared_gradients if known else None  # type: ignore[operator]
        return a

    def edges(self) -> Tensor:
        """(C, BINS + 1) float64 bin edges, from 0 up to the top, cut just above the maximum seen.

        Just above, because a maximum on a bin's lower edge would leave its bin without width.
        """
        codes = self.top[:, None] - (BINS - 1) + torch.arange(BINS)
        edges = (codes.clamp_min(0) << _SHIFT).to(torch.int32).view(torch.float32).to(torch.float64)
        edges = torch.cat([torch.zeros(self.channels, 1, dtype=torch.float64), edges], 1)
        return torch.minimum(edges, self.maximum.to(torch.float64)[:, None] * (1 + 1e-6))

    def percentile(self, q: float) -> Tensor:
        """(C,) value below which q percent of all values (zeros included) lie, linear inside a bin."""
        wanted = self.total.to(torch.float64) * (q / 100) - self.zeros
        cumulated = self.counts.cumsum(1).to(torch.float64)
        index = (cumulated < wanted[:, None]).sum(1).clamp_max(BINS - 1)
        rows, edges = torch.arange(self.channels), self.edges()
        inside = self.counts[rows, index].to(torch.float64).clamp_min(1)
        before = cumulated[rows, index] - self.counts[rows, index]
        fraction = ((wanted - before) / inside).clamp(0, 1)
        low, high = edges[rows, index], edges[rows, index + 1]
        return torch.where(wanted <= 0, torch.zeros_like(low), low + fraction * (high - low)).to(torch.float32)

    def merged(self) -> "ActivationHistogram":
        """One layer-wide row out of all channels."""
        out = ActivationHistogram(1)
        target = self.top.max().reshape(1)
        rows = ActivationHistogram(self.channels)
        rows.counts, rows.top, rows.squared_gradients = self.counts.clone(), self.top.clone(), _copy_of_gradients(self)
        rows._raise_top(target.expand(self.channels).numpy())
        out.counts = rows.counts.sum(0, keepdim=True)
        if rows.squared_gradients is not None:
            out.squared_gradients = rows.squared_gradients.sum(0, keepdim=True)
        out.top, out.zeros = target, self.zeros.sum().reshape(1)
        out.maximum = self.maximum.max().reshape(1)
        return out

    def folded(self) -> "ActivationHistogram":
        """Magnitudes, C rows, of values kept in 2 C rows with both signs."""
        half = self.channels // 2
        rows = ActivationHistogram.from_state(self.state())
        rows._raise_top(torch.maximum(self.top[:half], self.top[half:]).repeat(2).numpy())
        out = ActivationHistogram(half)
        out.counts, out.top = rows.counts[:half] + rows.counts[half:], rows.top[:half].clone()
        out.zeros = self.zeros[:half] + self.zeros[half:] - self.total[:half]
        if rows.squared_gradients is not None:
            out.squared_gradients = rows.squared_gradients[:half] + rows.squared_gradients[half:]
        out.maximum = torch.maximum(self.maximum[:half], self.maximum[half:])
        return out

    def state(self) -> dict[str, Tensor]:
        """Tensors to save."""
        state = {"counts": self.counts, "top": self.top, "zeros": self.zeros, "maximum": self.maximum}
        return state if self.squared_gradients is None else {**state, "squared_gradients": self.squared_gradients}

    @staticmethod
    def from_state(state: dict[str, Tensor]) -> "ActivationHistogram":
        """The histogram saved by `state`.

        Raises:
            DataError: a tensor is missing or of the wrong shape.
        """
        try:
            out = ActivationHistogram(state["top"].shape[0])
            if "squared_gradients" in state:
                out.squared_gradients = torch.zeros(out.channels, BINS, dtype=torch.float64)
            for name, value in out.state().items():
                if state[name].shape != value.shape or state[name].dtype != value.dtype:
                    raise DataError(f"histogram: {name} has shape {tuple(state[name].shape)}")
                setattr(out, name, state[name].clone())
        except (KeyError, IndexError) as err:
            raise DataError(f"histogram: incomplete ({err})") from None
        return out


def _shift_bins(counts: Any, rows: Any, shift: Any) -> None:
    """Move some rows of (C, BINS) numbers down by `shift` bins each; what falls out below is added to bin 0."""
    old, index = counts[rows], np.arange(BINS) + shift
    new = np.where(index < BINS, np.take_along_axis(old, np.minimum(index, BINS - 1), 1), 0)
    new[:, :1] = np.take_along_axis(old.cumsum(1), shift, 1)
    counts[rows] = new


def _copy_of_gradients(histogram: ActivationHistogram) -> Tensor | None:
    return None if histogram.squared_gradients is None else histogram.squared_gradients.clone()


KEPT = 4  # a table stays for the next values where there are so many values to one of its cells: else it costs memory
DEPTH = BINS + 2**SUB_BITS  # codes below a row's largest, so many as a histogram's window can reach
FULL = 2**31 - 1  # values that a table's numbers hold


class HistogramCollector:
    """Counts of one layer, the same for any order, split and number of threads.

    Args:
        signed: values may be negative: rows of negated values come after those of the values.
    """

    def __init__(self, signed: bool = False) -> None:
        self._signed, self._lock = signed, threading.Lock()
        self._histogram = ActivationHistogram(0)
        self._idle: list[Table] = []  # those that no thread is adding to
        self._there: DeviceTable | None = None

    def add(self, x: Tensor, channel_dim: int | None) -> None:
        """Count activations by channel, or in one row.

        Raises:
            DataError: NaN or infinity among them; of a GPU, which is not waited for here, `histogram` raises it.
        """
        dim = -1 if channel_dim is None or x.ndim < 2 else channel_dim % x.ndim
        channels = 1 if dim < 0 else x.shape[dim]
        rows = channels * (1 + self._signed)
        with self._lock:
            if not self._histogram.channels:
                self._histogram = ActivationHistogram(rows)
        if AVAILABLE and x.device.type == "cpu" and rows * CODES <= MAX_CELLS and x.numel():
            self._count(in_rows(x.detach().to(torch.float32)), channels, dim)
        elif x.device.type != "cpu" and histogram.supports(x, rows):
            self._count_there(x, channels, dim)
        else:
            values = x.reshape(1, -1) if dim < 0 else x.movedim(dim, 0).flatten(1)
            with self._lock:
                self._histogram.update(torch.cat([values, -values]) if self._signed else values)

    def _count(self, x: Tensor, channels: int, dim: int) -> None:
        bits, inner = flat(x).view(torch.int32).numpy(), x.stride(dim) if channels > 1 else 1
        unit, finite = channels if inner == 1 else inner, list[bool]()

        def work(begin: int, end: int) -> None:
            table = self._taken(channels, (end - begin) * unit)
            finite.append(table.add(bits, inner, begin * unit, end * unit))
            if table.cells * KEPT <= table.seen:
                self._idle.append(table)
            else:
                self._settle(table)

        spread_over(bits.size // unit, bits.size, work)
        if not all(finite):
            raise DataError(NOT_FINITE)

    def _count_there(self, x: Tensor, channels: int, dim: int) -> None:
        with self._lock:
            if self._there is not None and (self._there.device != x.device or self._there.seen + x.numel() > FULL):
                self._take_there(self._there)
            if self._there is None:
                self._there = DeviceTable(channels, self._signed, DEPTH, x.device)
            self._there.add(x, dim)

    def _take_there(self, table: DeviceTable) -> None:
        found = table.counted()
        if found is None:
            raise DataError(NOT_FINITE)
        self._histogram.take(found)
        self._there = None

    def _taken(self, channels: int, values: int) -> Table:
        """A table that has room for so many values more, and that no other thread has."""
        try:
            table = self._idle.pop()
        except IndexError:
            return Table(channels, self._signed, DEPTH)
        if table.seen + values <= FULL:
            return table
        self._settle(table)
        return self._taken(channels, values)

    def _settle(self, table: Table) -> None:
        with self._lock:
            self._histogram.take(table.counted())

    def histogram(self) -> ActivationHistogram:
        """All that has been counted.

        Raises:
            DataError: NaN or infinity among what was counted on a GPU.
        """
        while self._idle:
            self._settle(self._idle.pop())
        if self._there is not None:
            self._take_there(self._there)
        return self._histogram
