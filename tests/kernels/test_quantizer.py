"""The compiled quantizer against the plain one: forward bit for bit, backward to rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speedysnn.kernels import quantizer, reference
from speedysnn.kernels import quantizer as quantizer_cpu

SHAPES = {"(B, C)": (5, 3), "(B, C, H, W)": (2, 3, 5, 7), "(B,)": (9,)}


def both(z, theta, v_init, steps, highest, signed, grad):
    """(output, gradients) from the compiled kernel and from plain torch."""
    low, high = -steps * highest if signed else 0, steps * highest
    assert quantizer_cpu.numba_supports(z, theta, v_init)
    ours = quantizer_cpu.numba_forward(z, theta, v_init, steps, low, high)
    plain = quantizer.levels(z, theta, v_init, steps, highest, signed) * (theta.to(z.dtype) / steps)
    return (ours, *quantizer_cpu.numba_backward(grad, z, theta, v_init, steps, low, high)), (
        plain, *reference.gradients_reference(grad, z, theta, v_init, steps, low, high),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.integers(1, 17), st.integers(1, 3), st.booleans(), st.booleans(),
       st.sampled_from((torch.float32, torch.float64)), st.booleans(), st.integers(0, 10**6))  # fmt: skip
def test_agrees_with_plain_torch(shape, steps, highest, signed, channels, dtype, last, seed) -> None:
    """Any layout, one theta or one a channel, values on the steps included."""
    generator = torch.Generator().manual_seed(seed)
    size = SHAPES[shape]
    z = torch.randn(size, generator=generator, dtype=dtype)
    z = torch.where(torch.rand(size, generator=generator) < 0.2, torch.round(z * 4) / 4, z)
    grad = torch.randn(size, generator=generator, dtype=dtype)
    if len(size) == 4 and last:
        z, grad = z.contiguous(memory_format=torch.channels_last), grad
    theta = torch.rand(3 if channels and len(size) > 1 else 1, generator=generator) + 0.2
    v_init = torch.rand(theta.shape, generator=generator)
    view = [1] * len(size)
    if theta.numel() > 1:
        view[1] = 3
    ours, plain = both(z, theta.view(view), v_init.view(view), steps, highest, signed, grad)
    assert torch.equal(ours[0], plain[0])
    for mine, other in zip(ours[1:], plain[1:], strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_many_neurons_over_threads(threads) -> None:
    """Pieces of whole blocks: what lies on a border belongs to one of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        z, grad = torch.randn(4, 7, 61, 101), torch.ones(4, 7, 61, 101)
        theta, v_init = torch.rand(1, 7, 1, 1) + 0.5, torch.full((1, 7, 1, 1), 0.5)
        ours, plain = both(z, theta, v_init, 4, 1, False, grad)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])
    np.testing.assert_allclose(ours[2].numpy(), plain[2].numpy(), rtol=1e-4, atol=1e-3)


def test_what_it_does_not_take() -> None:
    """Types and shapes of others go the plain way, with the same values."""
    theta, start = torch.ones(()), torch.full((), 0.5)
    z = torch.linspace(-1, 2, 31)
    assert not quantizer_cpu.numba_supports(z.bfloat16(), theta, start)
    assert not quantizer_cpu.numba_supports(z[:0], theta, start)
    assert not quantizer_cpu.numba_supports(z.view(31, 1).expand(31, 4), torch.rand(31, 4) + 1, start)
    half = quantizer.quantize(z.bfloat16(), theta, start, 4)
    torch.testing.assert_close(half.float(), quantizer.quantize(z.bfloat16().float(), theta, start, 4))
