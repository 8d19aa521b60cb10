"""Spikes as bits come back as they were, and what is not binary is not taken."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from speedysnn import settings
from speedysnn.errors import TrainingError
from speedysnn.execution import sparse_conv
from speedysnn.execution.sparse_conv import SparseConvContext
from speedysnn.kernels.jit import AVAILABLE
from speedysnn.kernels.sparse_conv import winograd
from speedysnn.kernels.sparse_conv.bitpack import PIXELS, pack

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="numba is not installed")


def _spikes(images=3, channels=32, size=(5, 7), share=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    fired = torch.rand(images, channels, *size, generator=generator) < share
    theta = torch.rand(channels, 1, 1, generator=generator) + 0.1
    return (fired * theta).contiguous(memory_format=torch.channels_last)


def _sizes_kept(call):
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda y: sizes.append(y.numel()) or y, lambda y: y):
        out = call()
    return sizes, out


@given(
    images=st.integers(1, 9), channels=st.sampled_from([16, 48, 64]), size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    share=st.sampled_from([0.0, 0.1, 1.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_they_come_back_as_they_were(images, channels, size, share, seed):
    x = _spikes(images, channels, size, share, seed)
    kept = pack(x)
    assert kept is not None
    assert kept.words.numel() * 16 == x.numel()
    again = kept.unpacked()
    assert torch.equal(again, x)
    assert again.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("value", [0.5, -1.0, 1e-40, float("nan"), float("inf")])
@pytest.mark.parametrize("image", [0, 8])
def test_two_values_in_a_channel_are_not_binary(value, image):
    x = _spikes(9, size=(8, 8), share=0.5)
    assert PIXELS < 8 * 64
    x[image, 5, 2, 3] = value
    assert pack(x) is None


@pytest.mark.parametrize("value", [-1.0, float("nan"), -float("nan")])
def test_one_value_that_is_no_spike_is_not_binary(value):
    x = torch.zeros(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    x[:, 3] = value
    assert pack(x) is None


@pytest.mark.parametrize(
    "x", [_spikes().contiguous(), _spikes(channels=24), _spikes().double(), _spikes()[0], _spikes()[:0]]
)
def test_what_it_does_not_take(x):
    assert pack(x) is None


def test_the_weights_gradient_by_tiles_reads_bits():
    x, grad = _spikes(6, 32, (8, 12)), torch.randn(6, 16, 8, 12).contiguous(memory_format=torch.channels_last)
    for bits, numbers in zip(winograd.weight_gradients(pack(x), grad), winograd.weight_gradients(x, grad), strict=True):
        assert torch.equal(bits, numbers)


@pytest.mark.parametrize("asked", [{"tiles": "always"}, {"events": "always"}])
def test_a_call_keeps_spikes_as_bits_and_analog_values_as_they_are(asked, monkeypatch):
    monkeypatch.setattr(sparse_conv, "WORTH", 0)
    monkeypatch.setattr(sparse_conv, "PLACES", 0)
    weight, bias = torch.randn(16, 32, 3, 3), torch.randn(16)
    attrs = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    grad = torch.randn(3, 16, 8, 8)
    for x, kept in ((_spikes(size=(8, 8)), "bits"), (torch.rand(3, 32, 8, 8), "numbers")):
        given_ = x.contiguous(memory_format=torch.channels_last)
        inputs = [value.clone().requires_grad_() for value in (given_, weight, bias)]
        tensors = {"weight": inputs[1], "bias": inputs[2]}
        with settings.using(**asked):
            sizes, out = _sizes_kept(partial(SparseConvContext(1).conv2d, "conv", inputs[0], attrs, tensors))
        assert sizes == [weight.numel(), *((x.numel() // 16, 32) if kept == "bits" else (x.numel(),))]
        usual = F.conv2d(*inputs, 1, 1)
        wanted = torch.autograd.grad(usual, inputs, grad)
        for got, exact in zip(torch.autograd.grad(out, inputs, grad), wanted, strict=True):
            assert float((got - exact).norm()) < 1e-5 * float(exact.norm())


def test_without_weights_that_learn_nothing_of_the_input_is_kept(monkeypatch):
    monkeypatch.setattr(sparse_conv, "quicker", lambda *_: True)
    monkeypatch.setattr("speedysnn.execution.sparse_conv.WORTH", 0)
    attrs = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    x, weight = _spikes(size=(8, 8)).requires_grad_(), torch.randn(16, 32, 3, 3)
    sizes, out = _sizes_kept(lambda: SparseConvContext(1).conv2d("conv", x, attrs, {"weight": weight}))
    assert sizes == [weight.numel()]
    (got,) = torch.autograd.grad((out**2).sum(), x, create_graph=True)
    (wanted,) = torch.autograd.grad((F.conv2d(x, weight, None, 1, 1) ** 2).sum(), x, create_graph=True)
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-3)
    assert got.requires_grad


def test_gradients_of_gradients_of_spikes_are_refused(monkeypatch):
    monkeypatch.setattr(sparse_conv, "quicker", lambda *_: True)
    monkeypatch.setattr("speedysnn.execution.sparse_conv.WORTH", 0)
    attrs = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    weight = torch.randn(16, 32, 3, 3, requires_grad=True)
    out = SparseConvContext(1).conv2d("conv", _spikes(size=(8, 8)), attrs, {"weight": weight})
    with pytest.raises(TrainingError, match="gradients of gradients"):
        torch.autograd.grad((out**2).sum(), weight, create_graph=True)
