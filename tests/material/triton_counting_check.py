"""Compare counts made by Triton with those of torch on the CPU: on a GPU, or with TRITON_INTERPRET=1."""

from itertools import product

import torch
from triton_interpreter import patch_once

from speedysnn.calibration.histogram import DEPTH, ActivationHistogram
from speedysnn.kernels.histogram import DeviceTable, supports

LAYOUTS = {
    "first": lambda x: x,
    "last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: x[:, :, ::2],
}


def compare(number: int, dtype: torch.dtype, layout: str, dim: int | None, signed: bool, device: str) -> None:
    """Some images in two parts, the second of larger values."""
    x = torch.randn(4, 5, 7, 6, generator=torch.Generator().manual_seed(number)) * 10.0 ** (number % 5 - 2)
    x[:, 0], x[:, 1] = -x[:, 0].abs(), x[:, 1] * 1e-3
    x = LAYOUTS[layout](x.to(dtype)) if number % 4 else x.to(dtype).flatten(1)
    along = -1 if dim is None else min(dim, x.ndim - 1)
    channels = 1 if dim is None else x.shape[along]
    ours, expected = (ActivationHistogram(channels * (1 + signed)) for _ in range(2))
    table = DeviceTable(channels, signed, DEPTH, torch.device(device))
    for part in (x[:1], x[1:] * 3):
        assert supports(part.to(device), channels)
        table.add(part.to(device), along)
        rows = part.reshape(1, -1) if dim is None else part.movedim(along, 0).flatten(1)
        expected.update(torch.cat([rows, -rows]) if signed else rows)
    ours.take(table.counted())
    for name, value in expected.state().items():
        assert torch.equal(ours.state()[name], value), (name, number, dtype, layout, dim, signed)


def not_finite(device: str) -> None:
    """Each kind of what is not finite is noticed."""
    for bad in (float("nan"), -float("nan"), float("inf"), -float("inf")):
        table, x = DeviceTable(3, False, DEPTH, torch.device(device)), torch.rand(2, 3, 4)
        x[1, 2, 3] = bad
        table.add(x.to(device), 1)
        assert table.counted() is None, bad


def main(device: str = "cpu") -> None:
    """All cases; prints how many were compared."""
    if device == "cpu":
        patch_once()
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    cases = list(product(dtypes, LAYOUTS, (None, 1, 3), (False, True)))
    for number, case in enumerate(cases):
        compare(number, *case, device)
    not_finite(device)
    print(len(cases))
