"""Counts of a layer's values by channel and float32 code on a GPU: they stay there until all values have come."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels import cuda
from speedysnn.kernels.counting import CODES, NOT_FINITE, SHIFT, Counted
from speedysnn.kernels.layout import in_rows

MOST = 2**27  # cells of a table, 512 MiB
_TILE = 2048  # values that one program counts, about


def takes(x: Tensor, rows: int) -> bool:
    """Whether values can be counted where they lie."""
    return _right(x.device.type) and 0 < rows * CODES <= MOST and x.is_floating_point() and x.numel() > 0


class DeviceTable:
    """Counts of a layer's values by row and code while they come in; see `counting.Table`.

    Args:
        channels: of the layer, or 1; as many rows more are of negated values if it is `signed`.
        signed: likewise.
        device: where the values lie.
    """

    def __init__(self, channels: int, signed: bool, device: torch.device) -> None:
        rows = channels * (1 + signed)
        self._channels, self._signed, self.device = channels, signed, device
        self._table = torch.zeros(rows, CODES, dtype=torch.int32, device=device)
        self._peaks, self._worst = (torch.zeros(n, dtype=torch.int32, device=device) for n in (rows, 1))
        self.seen = 0

    def add(self, x: Tensor, dim: int) -> None:
        """Count activations whose channels lie along `dim`, -1 for none; nothing waits for it."""
        from speedysnn.kernels import triton_counting

        x = in_rows(x.detach().to(torch.float32) if x.dtype == torch.float64 else x.detach())
        inner = x.numel() if dim < 0 else x.stride(dim)
        across = inner == 1 and self._channels > 1
        width = self._channels if across else inner
        rows, wide = x.numel() // width, min(_TILE, _power(width))
        tall = min(_TILE // wide, _power(rows))
        with cuda.on(x):
            triton_counting.tally[-(-rows // tall), -(-width // wide)](
                x, self._table, self._peaks, self._worst, rows, width, self._channels, CODES, SHIFT, across,
                self._signed, tall, wide,
            )  # fmt: skip
        self.seen += x.numel()

    def finite(self) -> bool:
        """Whether all values were."""
        return int(self._worst) < NOT_FINITE

    def counted(self) -> Counted:
        """What has been counted."""
        used = torch.nonzero(self._table.any(0)).flatten()
        low, high = (int(used[0]), int(used[-1]) + 1) if used.numel() else (1, 1)
        codes: Any = self._table[:, low:high].cpu().numpy()
        each = self.seen // self._channels
        rest = np.stack([each - codes.sum(1), np.zeros(len(codes))], 1).astype(np.int32)
        return Counted(np.concatenate([rest, codes], 1), low, self._peaks.cpu().numpy().view(np.float32))


@cache
def _right(device: str) -> bool:
    """Whether Triton is there and its compiled code counts as torch does, what is on trial in a few values."""
    if not cuda.usable(device):
        return False
    x = torch.randn(64, 3, 5, generator=torch.Generator().manual_seed(0))
    table = DeviceTable(3, True, torch.device(device))
    table.add(x.to(device), 1)
    found, rows = table.counted(), x.movedim(1, 0).flatten(1)
    both = torch.cat([rows, -rows])
    codes = (both.view(torch.int32) >> SHIFT).clamp_min(0) + torch.arange(6)[:, None] * CODES
    expected = torch.bincount(codes.flatten(), minlength=6 * CODES).view(6, CODES).numpy()
    held = found.table[:, 2:]
    return (
        np.array_equal(expected[:, found.low : found.low + held.shape[1]], held)
        and np.array_equal(expected[:, 0], found.table[:, 0])
        and np.array_equal(both.amax(1).numpy(), found.largest)
    )


def _power(n: int) -> int:
    """The power of two that is n, or the next."""
    return 1 << (n - 1).bit_length()
