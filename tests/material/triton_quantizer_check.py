"""Compare the quantizer's Triton kernels with plain torch: on a GPU, or with TRITON_INTERPRET=1."""

from itertools import product

import torch
from triton_interpreter import patch_once

from speedysnn.kernels import quantizer, reference

SHAPES = {"pictures": (7, 5, 3, 4), "units": (70, 3), "many": (3, 700), "tokens": (5, 4, 6)}


def compare(number: int, dtype: torch.dtype, shape: str, signed: bool, each: bool, device: str) -> None:
    """Values on the steps included; one theta, or one a channel."""
    g = torch.Generator().manual_seed(number)
    size, dim = SHAPES[shape], 2 if shape == "tokens" else 1
    z, grad = (torch.randn(size, generator=g).to(dtype) for _ in range(2))
    z = torch.where(torch.rand(size, generator=g) < 0.2, torch.round(z * 4) / 4, z)
    if z.ndim == 4:
        z = z.contiguous(memory_format=torch.channels_last)
    view = [size[dim] if i == dim else 1 for i in range(len(size))]
    theta = torch.rand(view if each else [1] * len(size), generator=g) + 0.2
    start = torch.rand(view if number % 2 else [1] * len(size), generator=g)
    steps, highest = 1 + number % 9, 1 + number % 3
    low, high = -steps * highest if signed else 0, steps * highest
    unit = torch.rand(view if number % 4 else [1] * len(size), generator=g) + 0.2
    own = (unit,) if number % 3 else ()  # else a spike stands for theta
    expected = reference.quantize_reference(z, theta, start, steps, low, high, *own)
    gradients = reference.gradients_reference(grad, z, theta, start, steps, low, high, *own)
    given, last = [x.to(device) for x in (grad, z, theta, start)], [x.to(device) for x in own]
    assert device == "cpu" or quantizer.triton_supports(*given[1:], *last)
    ours = quantizer.triton_forward(*given[1:], steps, low, high, *last)
    assert ours.dtype == dtype
    if dtype == torch.bfloat16 and device == "cpu":  # the interpreter cuts bfloat16 off where hardware rounds it
        assert bool(((ours - expected).abs() <= expected.abs() / 128).all())
    else:
        assert torch.equal(ours.cpu(), expected), (number, dtype, shape, signed)
    for mine, theirs in zip(quantizer.triton_backward(*given, steps, low, high, *last), gradients, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        scale = theirs.double().norm() + (0 if theirs.shape == z.shape else z.numel() ** 0.5)
        cut = dtype == torch.bfloat16 and device == "cpu" and theirs.shape == z.shape  # as above
        assert (mine.cpu().double() - theirs.double()).norm() <= (1e-2 if cut else 1e-6) * scale, (number, dtype, shape)


def main(device: str = "cpu") -> None:
    """All cases; prints how many were compared."""
    if device == "cpu":
        patch_once()
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    cases = list(product(dtypes, SHAPES, (False, True), (False, True)))
    for number, case in enumerate(cases):
        compare(number, *case, device)
    assert device == "cpu" or quantizer._matches_reference(device)
    print(len(cases))
