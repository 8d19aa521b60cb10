"""Counts of a layer's values by channel and float32 code on a GPU: they stay there until all values have come."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels import cuda
from speedysnn.kernels.counting import CODES, NOT_FINITE, SHIFT, Counted, span
from speedysnn.kernels.grids import power
from speedysnn.kernels.layout import in_rows

MAX_DEVICE_CELLS = 2**27  # cells of a table, 512 MiB
_TILE = 2048  # values that one program counts, about


def supports(x: Tensor, rows: int) -> bool:
    """Whether values can be counted where they lie."""
    return _right(x.device.type) and 0 < rows * CODES <= MAX_DEVICE_CELLS and x.is_floating_point() and x.numel() > 0


class DeviceTable:
    """Counts of a layer's values by row and code while they come in; see `counting.Table`.

    Args:
        channels: of the layer, or 1; as many rows more are of negated values if it is `signed`.
        signed: likewise.
        depth: codes that are told apart below each row's largest.
        device: where the values lie.
    """

    def __init__(self, channels: int, signed: bool, depth: int, device: torch.device) -> None:
        rows = channels * (1 + signed)
        self._channels, self._signed, self._depth, self.device = channels, signed, depth, device
        self._table = torch.zeros(rows, CODES, dtype=torch.int32, device=device)
        self._peaks = torch.zeros(rows + 1, dtype=torch.int32, device=device)  # the last is the largest magnitude
        self.seen = 0

    def add(self, x: Tensor, dim: int) -> None:
        """Count activations whose channels lie along `dim`, -1 for none; nothing waits for it."""
        from speedysnn.kernels import triton_counting

        x = in_rows(x.detach().to(torch.float32) if x.dtype == torch.float64 else x.detach())
        inner = x.numel() if dim < 0 else x.stride(dim)
        across = inner == 1 and self._channels > 1
        width = self._channels if across else inner
        rows, wide = x.numel() // width, min(_TILE, power(width))
        tall = min(_TILE // wide, power(rows))
        with cuda.on(x):
            triton_counting.count_bins[-(-rows // tall), -(-width // wide)](
                x, self._table, self._peaks, self._peaks[-1:], rows, width, self._channels, CODES, SHIFT, across,
                self._signed, tall, wide,
            )  # fmt: skip
        self.seen += x.numel()

    def counted(self) -> Counted | None:
        """What has been counted; None where a value was not finite. The GPU is waited for twice."""
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
def _right(device: str) -> bool:
    """Whether Triton is there and its compiled code counts as torch does, what is on trial in a few values."""
    if not cuda.usable(device):
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
