"""The event-driven convolution is the convolution, whatever it is given, and runs where it pays."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speedysnn import convert, settings
from speedysnn.execution import scheduling, sparse_conv
from speedysnn.execution.sparse_conv import SparseConvContext
from speedysnn.kernels import sparse_conv as by_events
from speedysnn.kernels.jit import AVAILABLE
from speedysnn.kernels.sparse_conv import autograd

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="numba is not installed")


def _case(channels, outputs, kernel, stride, padding, size, share, seed, images=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, *size, generator=generator)
    x = torch.where(torch.rand(x.shape, generator=generator) < share, x, 0.0).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, *kernel, generator=generator)
    attrs = {"stride": stride, "padding": padding, "dilation": (1, 1), "groups": 1}
    return x, weight, torch.randn(outputs, generator=generator), attrs


def _both(x, weight, bias, attrs):
    wanted = F.conv2d(x, weight, bias, attrs["stride"], attrs["padding"])
    plan = by_events.EventPlan(weight, bias, attrs["stride"], attrs["padding"], wanted.shape[3])
    return wanted, plan.run(x)


@given(
    channels=st.integers(1, 20), outputs=st.sampled_from([8, 16, 64, 256]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)), size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]), biased=st.booleans(), seed=st.integers(0, 99),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)  # fmt: skip
def test_equals_the_convolution(channels, outputs, kernel, stride, padding, size, share, biased, seed, layout):
    x, weight, bias, attrs = _case(channels, outputs, kernel, stride, padding, size, share, seed)
    wanted, got = _both(x, weight.contiguous(memory_format=layout), bias if biased else None, attrs)
    assert got.shape == wanted.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)


@given(
    channels=st.integers(1, 20), outputs=st.sampled_from([8, 64, 256]), kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)), biased=st.booleans(), seed=st.integers(0, 99),
    kind=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_with_halved_weights_equals_the_convolution_of_theirs(channels, outputs, kernel, size, biased, seed, kind):
    x, weight, bias, attrs = _case(channels, outputs, kernel, (1, 1), (1, 1), size, 0.3, seed)
    x, bias = x.to(kind), bias if biased else None
    wanted = F.conv2d(x.float(), weight.bfloat16().float(), bias, 1, 1)
    plan = by_events.EventPlan(weight, bias, attrs["stride"], attrs["padding"], wanted.shape[3], half=True)
    got = plan.run(x)
    assert plan.half is (outputs > 8)  # few outputs share a block with those of the next pixels
    exact = wanted if plan.half else F.conv2d(x.float(), weight, bias, 1, 1)
    assert got.dtype == torch.float32
    assert torch.allclose(got, exact, rtol=1e-4, atol=1e-4)


def test_halved_weights_are_torchs_bfloat16():
    plan = by_events.EventPlan(torch.randn(64, 8, 1, 1), None, (1, 1), (0, 0), 4, half=True)
    for value in (0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3.14159, float("inf"), 1e-40, 3.4e38):
        bits = torch.full((32,), value)
        words = np.zeros(16, np.uint32)
        by_events.halve(bits.numpy().view(np.uint32), words)
        wanted = torch.full((32,), value).bfloat16()
        assert words.view(np.uint16).tolist() == wanted.view(torch.int16).numpy().view(np.uint16).tolist()
    assert plan.half


def test_many_channels_come_in_chunks_and_blocks():
    x, weight, bias, attrs = _case(200, 192, (3, 3), (1, 1), (1, 1), (6, 6), 0.2, 0, images=4)
    wanted, got = _both(x, weight, bias, attrs)
    plan = by_events.EventPlan(weight, bias, (1, 1), (1, 1), 6)
    assert plan.chunk < 200
    assert plan.width == max(w for w in range(8, by_events.WIDEST + 1, 8) if 192 % w == 0)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6


def test_threads_change_no_bit():
    x, weight, bias, attrs = _case(16, 16, (3, 3), (1, 1), (1, 1), (32, 32), 0.2, 0, images=16)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_both(x, weight, bias, attrs)[1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_nan_and_infinity_are_not_dropped():
    x, weight, bias, attrs = _case(8, 8, (3, 3), (1, 1), (1, 1), (5, 5), 0.3, 0)
    x[0, 3, 2, 2], x[1, 2, 0, 0] = float("nan"), float("inf")
    wanted, got = _both(x, weight, bias, attrs)
    assert torch.equal(wanted.isnan(), got.isnan())
    assert torch.equal(wanted.isinf(), got.isinf())


@pytest.mark.parametrize(
    ("change", "takes"),
    [
        ({}, True),
        ({"groups": 2}, False),
        ({"dilation": (2, 1)}, False),
        ({"padding": "same"}, False),
        ({"outputs": 12}, False),
        ({"dtype": torch.float64}, False),
        ({"layout": torch.contiguous_format}, False),
    ],
)
def test_what_it_takes(change, takes):
    x, weight, _, attrs = _case(4, change.get("outputs", 8), (3, 3), (1, 1), (1, 1), (6, 6), 0.3, 0)
    x = x.to(change.get("dtype", torch.float32)).contiguous(memory_format=change.get("layout", torch.channels_last))
    attrs |= {key: change[key] for key in ("groups", "dilation", "padding") if key in change}
    assert by_events.supports(x, weight, attrs) is takes


def _network():
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 10),
    ).eval()  # fmt: skip
    x = torch.rand(8, 3, 16, 16)
    return convert.to_spiking(ann, x, timesteps=4), x


def test_a_network_says_the_same_both_ways(monkeypatch):
    snn, x = _network()
    seen = []
    run = by_events.EventPlan.run
    monkeypatch.setattr(by_events.EventPlan, "run", lambda self, x: seen.append(self) or run(self, x))
    with torch.no_grad():
        monkeypatch.setenv("SPEEDYSNN_EVENTS", "never")
        usual = snn(x)
        assert not seen
        monkeypatch.setenv("SPEEDYSNN_EVENTS", "always")
        sparse = snn(x)
    assert len(set(seen)) == 2  # the first convolution sees the image, which is no spike train
    assert float((usual - sparse).norm() / usual.norm()) < 1e-2  # a spike may move at a tie


def test_a_network_in_bfloat16_says_the_same_both_ways(monkeypatch):
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
                        nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 10)).eval()  # fmt: skip
    x = torch.rand(8, 3, 8, 8)
    snn = convert.to_spiking(ann, x, timesteps=8)
    halves = []
    run = by_events.EventPlan.run
    monkeypatch.setattr(by_events.EventPlan, "run", lambda self, x: halves.append(self.half) or run(self, x))
    with torch.no_grad():
        monkeypatch.setenv("SPEEDYSNN_EVENTS", "never")
        exact = snn(x)
        with torch.autocast("cpu", torch.bfloat16):
            usual = snn(x)
            monkeypatch.setenv("SPEEDYSNN_EVENTS", "always")
            assert not halves
            sparse = snn(x)
    assert halves == [True, True]
    assert _apart(sparse, exact) < 2 * _apart(usual, exact)


def _apart(some, exact):
    return float((some.float() - exact).norm() / exact.norm())


def test_memory_for_weights_is_used_again_and_holds_todays_weights(monkeypatch):
    monkeypatch.setenv("SPEEDYSNN_EVENTS", "always")
    snn, x = _network()
    with torch.no_grad():
        before = snn(x)
        kept = [array for free in snn.weight_buffers._free.values() for array in free]
        for parameter in snn.parameters():
            parameter.data.mul_(1.5)  # which leaves its version as it was
        after = snn(x)
        monkeypatch.setenv("SPEEDYSNN_EVENTS", "never")
        wanted = snn(x)
    assert len(kept) == 2
    assert {id(array) for free in snn.weight_buffers._free.values() for array in free} == set(map(id, kept))
    assert not torch.equal(before, after)
    assert _apart(after, wanted) < 1e-2
    assert not copy.deepcopy(snn).weight_buffers._free


def test_a_call_lays_out_before_its_passes_what_the_last_one_used(monkeypatch):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU()
    x = torch.rand(8, 3, 16, 16)
    snn = convert.to_spiking(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)).eval(), x, timesteps=4)
    snn.images_per_pass = 2
    made, before = [], []
    start, run = by_events.EventPlan.__init__, scheduling.run
    monkeypatch.setattr(by_events.EventPlan, "__init__", lambda self, *args: made.append(0) or start(self, *args))
    monkeypatch.setattr(scheduling, "run", lambda calls, parallel: before.append(len(made)) or run(calls, parallel=parallel))
    found = []
    with torch.no_grad():
        for images in (x, x, x[..., :9, :9].contiguous()):
            for parameter in snn.parameters():
                parameter.data.mul_(1.01)  # what was laid out is old
            made.clear()
            monkeypatch.setenv("SPEEDYSNN_EVENTS", "always")
            ours = snn(images)
            found.append((before[-1], len(made)))
            monkeypatch.setenv("SPEEDYSNN_EVENTS", "never")
            assert _apart(ours, copy.deepcopy(snn)(images)) < 1e-2
    assert found == [(0, 2), (2, 2), (2, 4)]  # pictures of another size are laid out for otherwise


@given(
    channels=st.integers(1, 20), outputs=st.sampled_from([8, 96]),  # each pair with a width is compiled once
    kernel=st.tuples(st.integers(1, 4), st.sampled_from([1, 3, 4])),
    size=st.tuples(st.integers(4, 17), st.integers(4, 17)), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_gradient_of_the_weights_equals_torchs(channels, outputs, kernel, size, share, seed, data):
    padding = tuple(data.draw(st.integers(0, k - 1)) for k in kernel)
    x, weight, bias, _ = _case(channels, outputs, kernel, (1, 1), padding, size, share, seed, images=5)
    assert autograd.supports_gradient(kernel, (1, 1), padding)
    exact = weight.double().requires_grad_()
    y = F.conv2d(x.double(), exact, bias.double(), 1, padding)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=torch.channels_last)
    (wanted,) = torch.autograd.grad(y, exact, grad.double())
    got = autograd.gradient_by_events(x, grad, kernel, padding)
    assert got.shape == weight.shape
    assert float((got - wanted).norm()) <= 1e-5 * float(wanted.norm())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradient_of_the_weights_of_many_images_and_channels(threads):
    x, weight, bias, _ = _case(200, 192, (3, 3), (1, 1), (1, 1), (12, 12), 0.2, 0, images=7)
    exact = weight.double().requires_grad_()
    y = F.conv2d(x.double(), exact, bias.double(), 1, 1)
    grad = y.detach().float().contiguous(memory_format=torch.channels_last)
    (wanted,) = torch.autograd.grad(y, exact, grad.double())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = autograd.gradient_by_events(x, grad, (3, 3), (1, 1))
    finally:
        torch.set_num_threads(before)
    assert float((got - wanted).norm()) < 1e-6 * float(wanted.norm())


def test_gradients_are_the_same_both_ways(monkeypatch):
    x, weight, bias, attrs = _case(16, 32, (3, 3), (1, 1), (1, 1), (8, 8), 0.2, 0)
    monkeypatch.setenv("SPEEDYSNN_EVENTS", "always")
    inputs = [value.clone().requires_grad_() for value in (x, weight, bias)]
    out = SparseConvContext(1).conv2d("conv", inputs[0], attrs, {"weight": inputs[1], "bias": inputs[2]})
    usual = F.conv2d(*inputs, 1, 1)
    grad = torch.randn_like(usual)
    assert type(out.grad_fn).__name__ == "_ConvolutionBackward"
    for got, wanted in zip(torch.autograd.grad(out, inputs, grad), torch.autograd.grad(usual, inputs, grad), strict=True):
        assert float((got - wanted).norm()) < 1e-5 * float(wanted.norm())


@pytest.mark.parametrize(("stride", "padding"), [((2, 2), (1, 1)), ((1, 1), (3, 1))])
def test_gradients_that_it_does_not_take_are_torchs(stride, padding, monkeypatch):
    x, weight, bias, attrs = _case(8, 8, (3, 3), stride, padding, (8, 8), 0.2, 0)
    monkeypatch.setenv("SPEEDYSNN_EVENTS", "always")
    monkeypatch.setattr(autograd, "gradient_by_events", lambda *_: pytest.fail("not one of its own"))
    weight.requires_grad_()
    out = SparseConvContext(1).conv2d("conv", x, attrs, {"weight": weight, "bias": bias})
    (got,) = torch.autograd.grad(out.sum(), weight)
    (wanted,) = torch.autograd.grad(F.conv2d(x, weight, bias, stride, padding).sum(), weight)
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reading", ["spiking", "quantized"])
def test_a_network_learns_the_same_both_ways(reading, monkeypatch):
    snn, x = _network()
    found = {}
    for way in ("never", "always"):
        monkeypatch.setenv("SPEEDYSNN_EVENTS", way)
        with snn.reading(reading):
            found[way] = torch.autograd.grad(snn(x).square().sum(), list(snn.parameters()))
    for usual, sparse in zip(*found.values(), strict=True):
        assert float((usual - sparse).norm()) <= 5e-2 * float(usual.norm())  # a spike may move at a tie


def test_dense_inputs_and_small_work_take_the_usual_way(monkeypatch):
    monkeypatch.delenv("SPEEDYSNN_EVENTS", raising=False)
    monkeypatch.setenv("SPEEDYSNN_TILES", "never")
    x, weight, bias, attrs = _case(16, 16, (3, 3), (1, 1), (1, 1), (8, 8), 0.5, 0)
    tensors = {"weight": weight, "bias": bias}
    with torch.no_grad():
        assert SparseConvContext(3).conv2d("small", x, attrs, tensors) is None
        monkeypatch.setattr(sparse_conv, "crossover", lambda *_: pytest.fail("no stopwatch unless it is asked for"))
        assert SparseConvContext(10**6).conv2d("dense", x, attrs, tensors) is None
        few = torch.where(torch.rand_like(x) < 0.2, x, 0.0)
        assert SparseConvContext(10**6).conv2d("sparse", few, attrs, tensors) is not None


def test_a_stopwatch_decides_only_where_it_is_asked_for_and_nothing_is_recorded(monkeypatch):
    x, weight, bias, attrs = _case(16, 16, (3, 3), (1, 1), (1, 1), (8, 8), 0.5, 0)
    asked = []
    monkeypatch.setattr(sparse_conv, "crossover", lambda *_: asked.append(1) or 0.6)
    with settings.using(events="measure"):
        with torch.no_grad():
            assert SparseConvContext(10**6).conv2d("x", x, attrs, {"weight": weight, "bias": bias}) is not None
        assert asked == [1]
        weight.requires_grad_()
        assert SparseConvContext(10**6).conv2d("x", x, attrs, {"weight": weight, "bias": bias}) is None
        settings.repeatable(lambda: SparseConvContext(10**6).conv2d("x", x, attrs, {"weight": weight.detach(), "bias": bias}))()
    assert asked == [1]


def test_a_crossover_is_measured_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("SPEEDYSNN_CACHE", str(tmp_path))
    monkeypatch.setattr(sparse_conv, "_known", {})
    x, weight, bias, _ = _case(16, 16, (3, 3), (1, 1), (1, 1), (8, 8), 0.2, 0)

    def measured():
        plan = by_events.EventPlan(weight, bias, (1, 1), (1, 1), 8)
        return sparse_conv.crossover((16, 16, 3, 3), x, plan.run, lambda some: F.conv2d(some, weight, bias, 1, 1))

    first = measured()
    assert 0 <= first <= 1
    assert list(json.loads((tmp_path / "crossover.json").read_text()).values()) == [first]
    (tmp_path / "crossover.json").write_text(json.dumps({key: 0.123 for key in sparse_conv._known}))
    monkeypatch.setattr(sparse_conv, "_known", {})
    assert measured() == 0.123
    (tmp_path / "crossover.json").write_text("[1, 2")
    monkeypatch.setattr(sparse_conv, "_known", {})
    assert 0 <= measured() <= 1
