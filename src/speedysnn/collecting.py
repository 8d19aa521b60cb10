"""Thread-safe histogram of one layer's activations, counted on the device that holds them."""

import threading

import torch
from torch import Tensor

from speedysnn.errors import DataError
from speedysnn.histogram import BINS, NOT_FINITE, SUB_BITS, ActivationHistogram
from speedysnn.kernels import counting_cuda
from speedysnn.kernels.compiled import AVAILABLE
from speedysnn.kernels.counting import CODES, MAX_CELLS, Table
from speedysnn.kernels.counting_cuda import DeviceTable
from speedysnn.kernels.cpu import spread_over
from speedysnn.kernels.layout import flat, in_rows

KEPT = 4  # a table stays for the next values where there are so many values to one of its cells: else it costs memory
DEPTH = BINS + 2**SUB_BITS  # codes below a row's largest, so many as a histogram's window can reach
FULL = 2**31 - 1  # values that a table's numbers hold


class Collecting:
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
        elif x.device.type != "cpu" and counting_cuda.supports(x, rows):
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
