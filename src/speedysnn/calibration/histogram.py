"""Histograms of activations: one pass over the data, bounded memory, the same counts for any order and batch split.

A bin is a float32's exponent with the first four bits of its mantissa, so that every bin is 3 to 6 % wide whatever the
scale. The window of bins covers 20 octaves below the largest value; smaller values share one bin. All counts are
integers and the window depends on the maximum alone, so that nothing depends on the order of the data. A layer whose
values may be negative has two rows a channel: C rows of the values, then C rows of the values negated.

`ActivationHistogram` is the data; `HistogramCollector` counts one layer's activations from several threads, with
compiled code on the device that holds them.
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
from speedysnn.kernels.numba_backend import spread_over

SUB_BITS = 4
_NOT_FINITE = "activations hold NaN or infinity: check the checkpoint and the input's normalisation"
OCTAVES = 20
BINS = OCTAVES * 2**SUB_BITS + 1
_SHIFT = 23 - SUB_BITS  # bits of a float32 below those of its bin
assert _SHIFT == SHIFT
REUSE = 4  # values a cell that a thread's table must have counted to be used again; else it costs memory
DEPTH = BINS + 2**SUB_BITS  # codes below a row's largest that a histogram's window can reach
FULL = 2**31 - 1  # values that a table can count


class ActivationHistogram:
    """Counts of a layer's activations, in one row for the layer or one row for each of C channels.

    Args:
        channels: number of rows.

    Attributes:
        counts: (C, BINS) int64; bin 0 holds the positive values below the window.
        top: (C,) int64, the bin code just above the window.
        zeros: (C,) int64, values at or below zero.
        maximum: (C,) float32, the largest value seen.
        squared_gradients: (C, BINS) float64, sums over a bin's values of their squared gradient, for rules that need
            them; None where they were not collected.

    Example:
        >>> import torch
        >>> from speedysnn.calibration import ActivationHistogram
        >>> hist = ActivationHistogram(channels=2)
        >>> hist.update(torch.tensor([[0.0, 1.0, 2.0, 4.0], [0.5, 0.5, -1.0, 0.0]]))
        >>> hist.total, hist.zeros, hist.maximum
        (tensor([4, 4]), tensor([1, 2]), tensor([4.0000, 0.5000]))
        >>> hist.percentile(50)[0] < hist.percentile(90)[0]
        tensor(True)
        >>> both = hist.plus(hist)  # as if all values had been counted in one
        >>> both.merged().total
        tensor([16])
    """

    def __init__(self, channels: int = 1) -> None:
        self.counts = torch.zeros(channels, BINS, dtype=torch.int64)
        self.top = torch.zeros(channels, dtype=torch.int64)
        self.zeros = torch.zeros(channels, dtype=torch.int64)
        self.maximum = torch.zeros(channels)
        self.squared_gradients: Tensor | None = None

    @property
    def channels(self) -> int:
        """The number of rows, C; 1 for a layer-wide histogram."""
        return self.counts.shape[0]

    @property
    def total(self) -> Tensor:
        """The number of values counted in every row, (C,)."""
        return self.counts.sum(1) + self.zeros

    def update(self, values: Tensor) -> None:
        """Count activations.

        Args:
            values: M values for every row, (C, M).

        Raises:
            DataError: NaN or infinity among them.
        """
        flat = values.detach().to("cpu", torch.float32).contiguous()
        if not bool(flat.isfinite().all()):
            raise DataError(_NOT_FINITE)
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
        """Add the squared gradients of activations that were counted already.

        Args:
            values: the activations, (C, M).
            gradients: of the output in them, (C, M).

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
        """Return the flat index into `counts` of every positive value (C, M); that of other values means nothing."""
        offset = (self.top - (BINS - 1) - 1).to(torch.int32)
        index: Tensor = ((flat.view(torch.int32) >> _SHIFT) - offset[:, None]).clamp_(0, BINS - 1).to(torch.int64)
        return index.add(torch.arange(self.channels)[:, None] * BINS)

    def by_gradient(self) -> "ActivationHistogram | None":
        """Return a histogram of the same bins whose counts are the sums of squared gradients.

        Returns:
            The histogram, or None where gradients were not collected.
        """
        if self.squared_gradients is None:
            return None
        out = ActivationHistogram.from_state(self.state())
        out.counts, out.squared_gradients = self.squared_gradients.clone(), None
        return out

    def take(self, found: Counted) -> None:
        """Add the counts of a table of `speedysnn.kernels.histogram`."""
        zeros, maximum = self.zeros.numpy(), self.maximum.numpy()  # numpy's small steps keep the interpreter's lock
        zeros += found.table[:, 0]
        np.maximum(maximum, found.largest, out=maximum)
        self._raise_top(self._window_top(found.largest))
        fold(found.table, found.low, self.top.numpy(), self.counts.numpy())

    @staticmethod
    def _window_top(peak: Any) -> Any:
        """Return the code just above the octave of every row's peak, 0 where the peak is 0; arrays (C,)."""
        codes = (peak.view(np.int32) >> _SHIFT).astype(np.int64)
        return np.where(peak > 0, (codes >> SUB_BITS) + 1 << SUB_BITS, 0)

    def _raise_top(self, top: Any) -> None:
        """Move the rows' windows up to `top` (C,) where it is larger; bins that fall out below are added to bin 0."""
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
        """Add two histograms.

        Args:
            other: a histogram with as many rows.

        Returns:
            A new histogram, equal to one that has counted the values of both.
        """
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
        """Return the bins' edges, from 0 up to just above the maximum seen.

        Returns:
            The edges, (C, BINS + 1) float64. The last one lies just above the maximum, as a maximum on a bin's lower
            edge would leave its bin without width.
        """
        codes = self.top[:, None] - (BINS - 1) + torch.arange(BINS)
        edges = (codes.clamp_min(0) << _SHIFT).to(torch.int32).view(torch.float32).to(torch.float64)
        edges = torch.cat([torch.zeros(self.channels, 1, dtype=torch.float64), edges], 1)
        return torch.minimum(edges, self.maximum.to(torch.float64)[:, None] * (1 + 1e-6))

    def percentile(self, q: float) -> Tensor:
        """Return the value below which q percent of all values lie, zeros included; it is linear inside a bin.

        Args:
            q: in 0..100.

        Returns:
            One value a row, (C,), in the activation's unit.
        """
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
        """Return a histogram with one row that holds the values of all rows."""
        out = ActivationHistogram(1)
        target = self.top.max().reshape(1)
        rows = ActivationHistogram(self.channels)
        rows.counts, rows.top, rows.squared_gradients = self.counts.clone(), self.top.clone(), _gradients_copy(self)
        rows._raise_top(target.expand(self.channels).numpy())
        out.counts = rows.counts.sum(0, keepdim=True)
        if rows.squared_gradients is not None:
            out.squared_gradients = rows.squared_gradients.sum(0, keepdim=True)
        out.top, out.zeros = target, self.zeros.sum().reshape(1)
        out.maximum = self.maximum.max().reshape(1)
        return out

    def folded(self) -> "ActivationHistogram":
        """Return the histogram of magnitudes, C rows, of a layer kept in 2 C rows with both signs."""
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
        """Return the tensors to save, by name."""
        state = {"counts": self.counts, "top": self.top, "zeros": self.zeros, "maximum": self.maximum}
        return state if self.squared_gradients is None else {**state, "squared_gradients": self.squared_gradients}

    @staticmethod
    def from_state(state: dict[str, Tensor]) -> "ActivationHistogram":
        """Restore the histogram that `state` gave.

        Args:
            state: tensors by name.

        Returns:
            A new histogram with copies of the tensors.

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
    """Move rows of `counts` (C, BINS) down by `shift` bins; bins that fall out below are added to bin 0."""
    old, index = counts[rows], np.arange(BINS) + shift
    new = np.where(index < BINS, np.take_along_axis(old, np.minimum(index, BINS - 1), 1), 0)
    new[:, :1] = np.take_along_axis(old.cumsum(1), shift, 1)
    counts[rows] = new


def _gradients_copy(histogram: ActivationHistogram) -> Tensor | None:
    return None if histogram.squared_gradients is None else histogram.squared_gradients.clone()


class HistogramCollector:
    """Thread-safe histogram of one layer's activations; the same for any order, split and number of threads.

    Every thread counts into a table of its own, and full or rarely used tables are added to the histogram. Values on a
    GPU are counted there, without waiting for it.

    Args:
        signed: values may be negative; rows of the negated values follow the rows of the values.

    Example:
        >>> import torch
        >>> from speedysnn.calibration.histogram import HistogramCollector
        >>> collector = HistogramCollector()
        >>> collector.add(torch.ones(2, 3, 4, 4), channel_dim=1)
        >>> collector.histogram().total
        tensor([32, 32, 32])
    """

    def __init__(self, signed: bool = False) -> None:
        self._signed, self._lock = signed, threading.Lock()
        self._histogram = ActivationHistogram(0)
        self._idle: list[Table] = []  # tables that no thread is adding to
        self._gpu: DeviceTable | None = None

    def add(self, x: Tensor, channel_dim: int | None) -> None:
        """Count activations by channel, or in one row.

        Args:
            x: activations (B, ...).
            channel_dim: the dimension of the channels; None counts all values in one row.

        Raises:
            DataError: NaN or infinity among them. For values on a GPU, which is not waited for here, `histogram`
                raises it.
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
            self._count_on_device(x, channels, dim)
        else:
            values = x.reshape(1, -1) if dim < 0 else x.movedim(dim, 0).flatten(1)
            with self._lock:
                self._histogram.update(torch.cat([values, -values]) if self._signed else values)

    def _count(self, x: Tensor, channels: int, dim: int) -> None:
        bits, inner = flat(x).view(torch.int32).numpy(), x.stride(dim) if channels > 1 else 1
        unit, finite = channels if inner == 1 else inner, list[bool]()

        def work(begin: int, end: int) -> None:
            table = self._borrow(channels, (end - begin) * unit)
            finite.append(table.add(bits, inner, begin * unit, end * unit))
            if table.cells * REUSE <= table.seen:
                self._idle.append(table)
            else:
                self._settle(table)

        spread_over(bits.size // unit, bits.size, work)
        if not all(finite):
            raise DataError(_NOT_FINITE)

    def _count_on_device(self, x: Tensor, channels: int, dim: int) -> None:
        with self._lock:
            if self._gpu is not None and (self._gpu.device != x.device or self._gpu.seen + x.numel() > FULL):
                self._take_device_table(self._gpu)
            if self._gpu is None:
                self._gpu = DeviceTable(channels, self._signed, DEPTH, x.device)
            self._gpu.add(x, dim)

    def _take_device_table(self, table: DeviceTable) -> None:
        found = table.counted()
        if found is None:
            raise DataError(_NOT_FINITE)
        self._histogram.take(found)
        self._gpu = None

    def _borrow(self, channels: int, values: int) -> Table:
        """Return a table that no other thread uses and that has room for so many values more."""
        try:
            table = self._idle.pop()
        except IndexError:
            return Table(channels, self._signed, DEPTH)
        if table.seen + values <= FULL:
            return table
        self._settle(table)
        return self._borrow(channels, values)

    def _settle(self, table: Table) -> None:
        """Add a table's counts to the histogram; the table is not used again."""
        with self._lock:
            self._histogram.take(table.counted())

    def histogram(self) -> ActivationHistogram:
        """Return the histogram of all values counted so far.

        Raises:
            DataError: NaN or infinity among what was counted on a GPU.
        """
        while self._idle:
            self._settle(self._idle.pop())
        if self._gpu is not None:
            self._take_device_table(self._gpu)
        return self._histogram
