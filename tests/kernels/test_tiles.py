"""A convolution by tiles and its gradients are torch's, and are taken where they are quicker and something learns."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from speedysnn import analysis, convert, settings
from speedysnn.execution import runner, scheduling, sparse_conv
from speedysnn.execution.sparse_conv import SparseConvContext
from speedysnn.kernels.jit import AVAILABLE
from speedysnn.kernels.sparse_conv import autograd, winograd

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="numba is not installed")
ATTRS = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}


def _case(images, channels, outputs, size, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        out = torch.randn(*shape, generator=generator)
        return out.contiguous(memory_format=torch.channels_last) if out.ndim == 4 else out

    return draw(images, channels, *size), draw(outputs, channels, 3, 3), draw(outputs), draw(images, outputs, *size)


def _wanted(x, weight, bias, grad):
    exact = [value.double().requires_grad_() for value in (x, weight, bias)]
    return torch.autograd.grad(F.conv2d(*exact, 1, 1), exact, grad.double())


def _apart(got, wanted):
    assert got.shape == wanted.shape
    return float((got - wanted).norm() / wanted.norm())


@given(
    images=st.integers(1, 5), channels=st.sampled_from([16, 32, 48]), outputs=st.sampled_from([16, 32, 64]),
    size=st.tuples(st.sampled_from([4, 8, 20]), st.sampled_from([4, 8, 12])), seed=st.integers(0, 99),
)  # fmt: skip
def test_results_and_gradients_equal_those_of_the_convolution(images, channels, outputs, size, seed):
    x, weight, bias, grad = _case(images, channels, outputs, size, seed)
    out = winograd.convolve(x, winograd.laid_out(weight), bias)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert _apart(out, F.conv2d(x.double(), weight.double(), bias.double(), 1, 1)) < 5e-6
    by_input, by_weight, by_bias = _wanted(x, weight, bias, grad)
    own = winograd.convolve(grad, winograd.laid_out(winograd.turned(weight)))
    assert own.is_contiguous(memory_format=torch.channels_last)
    assert _apart(own, by_input) < 5e-6
    to_weight, to_bias = winograd.weight_gradients(x, grad)
    assert _apart(to_weight, by_weight) < 2e-5
    assert _apart(to_bias, by_bias) < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_images_are_shared_by_threads_and_come_in_blocks(threads):
    x, weight, bias, grad = _case(7, 64, 96, (32, 28))
    by_input, by_weight, _ = _wanted(x, weight, bias, grad)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        own, (to_weight, _) = winograd.convolve(grad, winograd.laid_out(winograd.turned(weight))), winograd.weight_gradients(x, grad)
    finally:
        torch.set_num_threads(before)
    assert winograd._cut(64, 96, 32, 28).block < 7 * 8
    assert _apart(own, by_input) < 5e-6
    assert _apart(to_weight, by_weight) < 2e-5


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (32, 28)])
def test_bfloat16_is_rounded_once(size):
    x, weight, bias, _ = _case(5, 32, 48, size)
    x, points = x.bfloat16(), winograd.laid_out(weight)
    out = winograd.convolve(x, points, bias)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, winograd.convolve(x.float(), points, bias).bfloat16())
    x[2, 1, 1, 1] = float("nan")
    found = winograd.convolve(x, points, bias).isnan().flatten(1).any(1)
    assert found.tolist() == [i == 2 for i in range(5)]


def test_nan_stays_where_it_can_be_seen():
    x, weight, _, grad = _case(2, 16, 16, (8, 8))
    grad[1, 3, 2, 2] = float("nan")
    own = winograd.convolve(grad, winograd.laid_out(winograd.turned(weight)))
    assert own[1].isnan().any()
    assert not own[0].isnan().any()
    to_weight, to_bias = winograd.weight_gradients(x, grad)
    assert to_weight[3].isnan().any()
    assert to_bias.isnan().tolist() == [i == 3 for i in range(16)]


@pytest.mark.parametrize(
    ("change", "takes"),
    [
        ({}, True),
        ({"channels": (8, 16)}, False),
        ({"channels": (16, 24)}, False),
        ({"kernel": (1, 1)}, False),
        ({"stride": (2, 2)}, False),
        ({"padding": (0, 0)}, False),
        ({"size": (8, 14)}, False),
    ],
)
def test_what_it_takes(change, takes):
    given_ = {"channels": (16, 32), "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "size": (8, 12)}
    assert winograd.supports(**{**given_, **change}) is takes


@pytest.fixture
def tiled(monkeypatch):
    """Tiles wherever they can be, no events."""
    monkeypatch.setenv("SPEEDYSNN_TILES", "always")
    for table in ("FORWARD", "GRADIENT"):
        monkeypatch.setattr(sparse_conv, table, ((0, -1.0),))
    monkeypatch.setattr("speedysnn.execution.sparse_conv.WORTH", 0)
    monkeypatch.setattr("speedysnn.execution.sparse_conv.PLACES", 0)
    monkeypatch.setattr(autograd, "gradient_by_events", lambda *_: pytest.fail("by events"))


def _convolved(inputs, attrs=ATTRS):
    x, weight, bias = inputs
    return SparseConvContext(1).conv2d("conv", x, attrs, {"weight": weight, "bias": bias})


@pytest.mark.parametrize("learns", [(True, True, True), (False, True, True), (True, False, False), (True, True, False)])
def test_a_call_takes_them_for_what_learns(learns, tiled):
    x, weight, bias, grad = _case(3, 16, 32, (8, 8))
    inputs = [value.clone().requires_grad_(on) for value, on in zip((x, weight, bias), learns, strict=True)]
    out = _convolved(inputs)
    assert 1e-8 < _apart(out.detach(), F.conv2d(x.double(), weight.double(), bias.double(), 1, 1)) < 5e-6
    some = [value for value in inputs if value.requires_grad]
    wanted = [value for value, on in zip(_wanted(x, weight, bias, grad), learns, strict=True) if on]
    for got, exact in zip(torch.autograd.grad(out, some, grad), wanted, strict=True):
        assert 1e-8 < _apart(got, exact) < 2e-5


def test_events_stay_where_they_are_quicker_than_tiles(tiled, monkeypatch):
    monkeypatch.setattr(sparse_conv, "FORWARD", ((0, 1.0 / sparse_conv.BESIDE_TILES),))
    x, weight, bias, _ = _case(3, 16, 32, (8, 8))
    monkeypatch.setattr(winograd, "convolve", lambda *_: pytest.fail("by tiles"))
    out = _convolved((x, weight.requires_grad_(), bias))
    assert _apart(out.detach(), F.conv2d(x.double(), weight.detach().double(), bias.double(), 1, 1)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_calls_in_bfloat16_take_them_without_gradients(tiled, dtype):
    x, weight, bias, _ = _case(3, 16, 32, (8, 8))
    x = x.bfloat16().to(dtype)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), 1, 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = _convolved((x, weight, bias))
        usual = F.conv2d(x, weight, bias, 1, 1)
    assert out.dtype == dtype
    assert _apart(out, exact) < (5e-6 if dtype == torch.float32 else _apart(usual, exact))


def test_calls_without_gradients_take_them_unless_told_not_to(tiled, monkeypatch):
    x, weight, bias, _ = _case(3, 16, 32, (8, 8))
    exact = F.conv2d(x.double(), weight.double(), bias.double(), 1, 1)
    for variable in ("SPEEDYSNN_TILES", "SPEEDYSNN_EVENTS"):
        with torch.no_grad():
            assert 1e-8 < _apart(_convolved((x, weight.requires_grad_(), bias)), exact) < 5e-6
            with monkeypatch.context() as patch:
                patch.setenv(variable, "never")
                assert _convolved((x, weight, bias)) is None
    monkeypatch.setattr("speedysnn.execution.sparse_conv.PLACES", 64 + 1)
    assert _convolved((x, weight, bias)) is None  # too few to lay weights out for
    monkeypatch.setattr("speedysnn.execution.sparse_conv.PLACES", 64)
    assert _convolved((x, weight, bias)) is not None
    monkeypatch.setenv("SPEEDYSNN_TILES", "never")
    assert _convolved((x, weight, bias)) is None  # nor for what learns


def test_a_call_lays_out_before_its_passes_what_the_last_one_used(tiled, monkeypatch):
    ann = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, padding=1))
    x, made, before, laid_out, run = torch.rand(4, 3, 8, 8), [], [], winograd.laid_out, scheduling.run
    snn = convert.to_spiking(ann.append(torch.nn.ReLU()).eval(), x, timesteps=2)
    snn.images_per_pass = 2
    monkeypatch.setattr(winograd, "laid_out", lambda weight: made.append(0) or laid_out(weight))
    monkeypatch.setattr(scheduling, "run", lambda calls, parallel: before.append(len(made)) or run(calls, parallel=parallel))
    with torch.no_grad():
        for expected in ((0, 1), (2, 2)):
            for parameter in snn.parameters():
                parameter.data.mul_(1.01)  # what was laid out is old
            ours = snn(x)
            assert (before[-1], len(made)) == expected
            monkeypatch.setenv("SPEEDYSNN_TILES", "never")
            assert _apart(ours, copy.deepcopy(snn)(x)) < 1e-2
            monkeypatch.setenv("SPEEDYSNN_TILES", "always")


def test_the_source_itself_is_torchs(tiled, monkeypatch):
    ann = torch.nn.Sequential(
        torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU()
    ).eval()  # fmt: skip
    x, used, convolve = torch.rand(4, 16, 8, 8), [], winograd.convolve
    snn = convert.to_spiking(ann, x, timesteps=2)
    monkeypatch.setattr(winograd, "convolve", lambda *given: used.append(len(given[0])) or convolve(*given))
    with torch.no_grad():
        for reading, expected in (("analog", []), ("quantized", [4, 4]), ("spiking", [8])):
            used.clear()
            with snn.reading(reading):
                snn(x)
            assert used == expected


def test_gradients_of_gradients_are_torchs(tiled):
    x, weight, bias, grad = _case(2, 16, 16, (4, 4))
    found = []
    for call in (_convolved, lambda inputs: F.conv2d(*inputs, 1, 1)):
        inputs = [value.double().float().requires_grad_() for value in (x, weight, bias)]
        (first,) = torch.autograd.grad((call(inputs) ** 2 * grad).sum(), inputs[1], create_graph=True)
        found.append(torch.autograd.grad((first**2).sum(), inputs[0])[0])
    assert _apart(*found) < 1e-5


def test_transforms_of_torch_see_torchs_convolution(tiled):
    x, weight, bias, _ = _case(2, 16, 16, (4, 4))

    def total(weight):
        out = _convolved((x, weight, bias))
        return (F.conv2d(x, weight, bias, 1, 1) if out is None else out).sum()

    got = torch.func.grad(total)(weight)
    assert torch.allclose(got, torch.func.grad(lambda w: F.conv2d(x, w, bias, 1, 1).sum())(weight), rtol=1e-4, atol=1e-3)


def test_tiles_are_left_out_unless_they_are_asked_for(tiled, monkeypatch):
    x, weight, bias, _ = _case(3, 16, 32, (8, 8))
    monkeypatch.delenv("SPEEDYSNN_TILES")
    assert _convolved((x, weight.requires_grad_(), bias)) is None
    for quick in (True, False):
        monkeypatch.setattr(sparse_conv, "quicker", lambda *_, quick=quick: quick)
        with settings.using(tiles="measure"):
            with torch.no_grad():
                assert (_convolved((x, weight, bias)) is not None) is quick
            assert _convolved((x, weight, bias)) is None  # where gradients are recorded no stopwatch decides


def test_the_quicker_way_is_measured_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("SPEEDYSNN_CACHE", str(tmp_path))
    monkeypatch.setattr(sparse_conv, "_known", {})
    calls = []
    seconds = iter([3.0, 1.0] * sparse_conv.ROUNDS)
    monkeypatch.setattr(sparse_conv, "_seconds", lambda call: calls.append(call) or next(seconds))
    x = torch.zeros(1, 16, 8, 8)
    assert not sparse_conv.quicker(("what", 16), x, torch.clone, torch.clone)
    assert len(calls) == 2 * sparse_conv.ROUNDS
    assert not sparse_conv.quicker(("what", 16), x, torch.clone, torch.clone)
    assert len(calls) == 2 * sparse_conv.ROUNDS
    assert list(json.loads((tmp_path / "crossover.json").read_text()).values()) == [pytest.approx(1 / 3)]


def test_calls_share_what_they_lay_out_while_weights_stay(tiled, monkeypatch):
    ann = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, padding=1))
    x, made, laid_out = torch.rand(4, 3, 8, 8), [], winograd.laid_out
    snn = convert.to_spiking(ann.append(torch.nn.ReLU()).eval(), x, timesteps=2)
    monkeypatch.setattr(winograd, "laid_out", lambda weight: made.append(0) or laid_out(weight))
    with torch.no_grad():
        snn(x)
        assert len(made) == 1
        with runner.reuse_packed_weights(snn, len(x)):
            assert len(made) == 2  # what the last call used, at once
            snn(x), snn.read("quantized", x), snn(x)
        assert len(made) == 2
        for parameter in snn.parameters():
            parameter.data.mul_(1.01)
        ours = snn(x)
        assert len(made) == 3
        monkeypatch.setenv("SPEEDYSNN_TILES", "never")
        assert _apart(ours, snn(x)) < 1e-2


def test_measurements_beside_one_another_of_one_network(tiled):
    """Each leaves while the other may still read what they share; nothing old stays for the next call."""
    ann = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, padding=1))
    x = torch.rand(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    snn = convert.to_spiking(ann.append(torch.nn.ReLU()).eval(), x, timesteps=12)  # 85 images are taken at once

    def measured():
        noise = analysis.measure_noise(snn, (x[:32] for _ in range(8)))
        return noise.layers.select_dtypes("number").to_numpy(float)

    alone = measured()
    with ThreadPoolExecutor(3) as pool:
        beside = list(pool.map(lambda _: measured(), range(6)))
    for each in beside:
        np.testing.assert_allclose(each, alone, rtol=1e-9)
    assert snn.weight_buffers.held is None
    for parameter in snn.parameters():
        parameter.data.mul_(1.3)
    assert not np.allclose(measured(), alone, rtol=1e-3, equal_nan=True)
