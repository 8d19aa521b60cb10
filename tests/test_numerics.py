"""Numbers at their edges: types, T up to 1024, thresholds from 1e-6 to 1e6, layouts, empty and tiny shapes, seeds."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import speedysnn
from speedysnn import IFNeuron, SpikingNetwork, analysis, convert
from speedysnn.calibration.histogram import ActivationHistogram
from speedysnn.calibration.rules import RULES, choose
from speedysnn.kernels import Rule, multistep
from speedysnn.kernels.jit import AVAILABLE
from speedysnn.kernels.quantizer import quantize

FLOATS = (torch.float32, torch.float64, torch.bfloat16)
READINGS = ("analog", "quantized", "spiking")
BACKENDS = ("cpu", "reference") if AVAILABLE else ("reference",)
# unit roundoff, doubled: one rounding of theta, one of theta * s
SLACK = {torch.float32: 2**-23, torch.float64: 2**-23, torch.bfloat16: 2**-8}
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "cut out": lambda x: F.pad(x, (1, 2, 3, 1))[..., 3:-1, 1:-2],
}


class Small(nn.Module):
    """Convolution, batch-norm, pooling, a shortcut and a linear layer: every kind of node that time touches."""

    def __init__(self, classes: int = 3, size: int = 8) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.size, self.head = size, nn.Linear(4 * max(1, size // 2) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        x = F.max_pool2d(x, 2) if self.size > 1 else x
        return self.head((F.relu(self.b(x)) + x).flatten(1))


def images(count: int = 12, size: int = 8) -> Tensor:
    return torch.randn(count, 2, size, size, generator=torch.Generator().manual_seed(7))


def small(steps: int = 4, dtype: torch.dtype = torch.float32, **options: object) -> SpikingNetwork:
    return convert.to_spiking(Small().to(dtype), images().to(dtype), timesteps=steps, **options)


def close(ours: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    return bool((ours.double() - expected.double()).norm() <= 8 * SLACK[dtype] * expected.double().norm())


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("theta", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("steps", [1, 4, 257, 1024])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_neuron_counts_what_its_quantizer_counts(dtype: torch.dtype, steps: int, theta: float, layout: str) -> None:
    """Constant drive, every look-ahead: the same whole number of spikes, and values in the drive's type."""
    drive = LAYOUTS[layout]((images(2, 4) * 0.7 + 0.4).mul(theta).to(dtype))
    neuron = IFNeuron(torch.tensor([theta, theta / 3]), timesteps=steps).to(dtype)
    expected = neuron.counts(drive)
    assert torch.equal(expected, expected.round())
    assert expected.max() == steps
    shaped = neuron.threshold.detach().view(1, 2, 1, 1).double()
    assert neuron.quantized(drive).dtype == dtype
    torch.testing.assert_close(
        neuron.quantized(drive).double(), expected.double() * shaped / steps, rtol=SLACK[dtype], atol=0
    )
    with torch.no_grad():
        for delay in (0, 1, "full"):
            neuron.delay = delay
            out = neuron(drive, constant=True)
            assert out.dtype == dtype
            spikes = out.double().view(steps, *drive.shape) / shaped
            assert bool(((spikes - spikes.round()).abs() <= SLACK[dtype]).all())
            assert torch.equal(spikes.round().sum(0), expected.double())


@pytest.mark.parametrize("steps", [4, 300, 1024])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16], ids=str)
def test_readings_of_a_network_stay_finite_and_in_type(dtype: torch.dtype, steps: int) -> None:
    snn, x = small(steps, dtype), images(3).to(dtype)
    exact = copy.deepcopy(snn).double()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            snn.set_delay(0)
            for reading in READINGS:
                with snn.reading(reading):
                    means, last = snn(x, per_step=True), snn(x)
                assert means.dtype == last.dtype == dtype
                assert bool(means.isfinite().all())
                torch.testing.assert_close(means[-1], last, rtol=0.02, atol=0.02)
            with snn.reading("analog"), exact.reading("analog"):
                assert close(snn(x), exact(x.double()), torch.bfloat16)
            with snn.reading("quantized"):
                twin = snn(x)
            snn.set_delay("full")
            assert torch.equal(snn(x), twin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("delay", [0, 1])
def test_streaming_runs_in_every_type(dtype: torch.dtype, delay: int) -> None:
    """The look-ahead's last outputs come when no input does, and must be of the same type."""
    snn, x = small(5, dtype, delay=delay), images(3).to(dtype)
    with torch.no_grad():
        out = [y for tick in range(snn.latency) if (y := snn.step(x if tick < 5 else None)) is not None]
        assert len(out) == 5
        assert {y.dtype for y in out} == {dtype}
        tolerance = 1e-4 if dtype.itemsize >= 4 else 0.1
        torch.testing.assert_close(torch.stack(out).double().mean(0), snn(x).double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("steps", [300, 1024])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pooled_counts_stay_whole_beyond_what_the_type_holds(dtype: torch.dtype, steps: int) -> None:
    """bfloat16 counts to 256, float16 to 2048 and sums to 65504: totals over time must not be kept in them."""

    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(F.relu(x), 2)

    x = (images(2, 4) * 50 + 60).to(dtype)
    snn = convert.to_spiking(Pooled(), x, timesteps=steps, granularity="layer")
    with torch.no_grad():
        counts = next(iter(snn.neurons.values())).counts(x)
        theta = next(iter(snn.neurons.values())).threshold
        expected = F.max_pool2d(counts, 2) * theta / steps
        assert close(snn(x), expected, dtype if dtype in SLACK else torch.bfloat16)
        assert close(snn(x, per_step=True)[-1], expected, torch.bfloat16)


@pytest.mark.parametrize("theta", [1e-6, 3e-3, 1.0, 700.0, 1e6])
def test_thresholds_survive_a_change_of_type(theta: float) -> None:
    neuron = IFNeuron(theta)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        moved = copy.deepcopy(neuron).to(dtype)
        assert moved.threshold.item() == pytest.approx(theta, rel=2e-6)
        assert moved.v_init.item() == 0.5
        assert moved.float().threshold.item() == neuron.threshold.item()


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_a_network_scaled_by_a_power_of_two_gives_scaled_answers(scale: float) -> None:
    """Thresholds between 1e-6 and 1e6; the analog reading bit for bit, theta up to the rounding of its logarithm."""
    ann = Small().eval()
    ann.norm = nn.Identity()
    scaled = copy.deepcopy(ann)
    with torch.no_grad():
        for layer in (scaled.a, scaled.b, scaled.head):
            layer.bias *= scale
    x = images()
    one, other = convert.to_spiking(ann, x), convert.to_spiking(scaled, x * scale)
    for a, b in zip(one.neurons.values(), other.neurons.values(), strict=True):
        torch.testing.assert_close(b.threshold, a.threshold * scale, rtol=3e-6, atol=0)
        b.set_threshold(a.threshold * scale)
    with one.reading("analog"), other.reading("analog"):
        assert torch.equal(other(x * scale), one(x) * scale)
    torch.testing.assert_close(other(x * scale) / scale, one(x), rtol=1e-4, atol=1e-4)


@given(
    st.integers(-20, 20), st.integers(1, 40), st.sampled_from(FLOATS), st.sampled_from(BACKENDS),
    st.sampled_from([(0, 1, False), (-1, 1, False), (0, 3, False), (0, 2, True)]), st.integers(0, 40), st.integers(0, 999),
)  # fmt: skip
def test_spikes_and_gradients_scale_with_powers_of_two(
    power: int, steps: int, dtype: torch.dtype, backend: str, kind: tuple[int, int, bool], delay: int, seed: int
) -> None:
    """Bit for bit: drive and theta times 2^k give theta * s times 2^k, and so for every gradient in its unit."""
    g, scale = torch.Generator().manual_seed(seed), 2.0**power
    drive = torch.randn(steps * 2, 3, generator=g).add(0.3).to(dtype)
    theta, start = torch.rand(1, 3, generator=g) + 0.2, torch.rand(1, 3, generator=g)
    rule = Rule(steps, min(delay, steps), kind[0], kind[1], signed=kind[2])
    found = []
    for unit in (1.0, scale):
        leaves = [x.clone().requires_grad_() for x in (drive * unit, theta * unit, start)]
        out = multistep(*leaves, rule, backend=backend)
        found.append([out, *torch.autograd.grad(out.sum(), leaves)])
    for ours, expected, unit in zip(found[1], found[0], (scale, 1, 1, scale), strict=True):
        assert torch.equal(ours, expected * unit)


@given(st.integers(-20, 20), st.integers(1, 1024), st.sampled_from(FLOATS), st.booleans(), st.integers(0, 999))
def test_the_quantizer_scales_with_powers_of_two(
    power: int, steps: int, dtype: torch.dtype, signed: bool, seed: int
) -> None:
    g, scale = torch.Generator().manual_seed(seed), 2.0**power
    z, theta = torch.randn(5, 3, generator=g).to(dtype), torch.rand(1, 3, generator=g) + 0.2
    half = torch.tensor(0.5)
    one = quantize(z, theta, half, steps, signed=signed)
    assert torch.equal(quantize(z * scale, theta * scale, half, steps, signed=signed), one * scale)


@settings(max_examples=20)
@given(st.integers(-20, 20), st.sampled_from(sorted(RULES)), st.integers(1, 64), st.integers(0, 999))
def test_chosen_thresholds_scale_with_powers_of_two(power: int, rule: str, steps: int, seed: int) -> None:
    values = torch.randn(2, 300, generator=torch.Generator().manual_seed(seed))
    found = []
    for unit in (1.0, 2.0**power):
        hist = ActivationHistogram(2)
        hist.update(values * unit)
        hist.add_gradients(values * unit, torch.ones_like(values))
        found.append(choose(hist, f"{rule}:99" if rule == "percentile" else rule, torch.tensor(0.5), steps))
    torch.testing.assert_close(found[1], found[0] * 2.0**power, rtol=0 if rule in EXACT else 1e-6, atol=0)


EXACT = ("mse", "output-mse", "max", "percentile")  # the others fit a law, whose logarithms round


@given(
    st.integers(1, 64), st.sampled_from(FLOATS), st.sampled_from(BACKENDS), st.sampled_from([1e-6, 0.3, 1e6]),
    st.integers(0, 999),
)  # fmt: skip
def test_what_came_in_is_spiked_or_left_on_the_membrane(
    steps: int, dtype: torch.dtype, backend: str, theta: float, seed: int
) -> None:
    """Soft reset loses nothing: n = max over t of floor(S[t]/theta + v_init), and 0 <= u < 1 while nothing is taken."""
    g = torch.Generator().manual_seed(seed)
    th, start = torch.tensor(theta), torch.rand((), generator=g)
    signs = (1.0, torch.randn(steps, 40, generator=g).sign())
    for sign in signs:
        drive = (torch.rand(steps, 40, generator=g) * th * sign * 0.99).to(dtype)
        out = multistep(drive, th, start, Rule(steps), backend=backend)
        wide = torch.promote_types(dtype, torch.float32)
        total, most = torch.zeros(40, dtype=wide), torch.zeros(40, dtype=wide)
        for x in drive.to(wide):
            total = total + x
            most = torch.maximum(most, torch.floor(total / th.to(wide) + start.to(wide)))
        spikes = (out.double() / theta).round().sum(0)
        assert torch.equal(spikes, most.double())
        if isinstance(sign, float):
            left = total.double() / theta + start.double() - spikes
            assert bool(((left > -1e-4) & (left < 1 + 1e-4)).all())


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("delay", [0, 1, "full"])
@pytest.mark.parametrize("reading", READINGS)
def test_no_image_gives_no_answer_of_the_right_shape(reading: str, delay: object, grad: bool) -> None:
    snn = small(delay=delay)
    with torch.set_grad_enabled(grad), snn.reading(reading):
        for x in (torch.zeros(0, 2, 8, 8), torch.zeros(4, 0, 2, 8, 8)):
            assert snn(x).shape == (0, 3)
            assert snn(x, per_step=True).shape == (4, 0, 3)
    if reading == "spiking" and not grad:
        steps = [y for _ in range(snn.latency) if (y := snn.step(torch.zeros(0, 2, 8, 8))) is not None]
        assert [y.shape for y in steps] == [(0, 3)] * 4


@pytest.mark.parametrize("reading", READINGS)
def test_images_of_one_pixel_and_networks_of_one_class(reading: str) -> None:
    ann, x = Small(classes=1, size=1).eval(), images(9, 1)
    snn = convert.to_spiking(ann, x, timesteps=64, delay="full")
    with torch.no_grad(), snn.reading(reading):
        assert snn(x).shape == (9, 1)
        torch.testing.assert_close(snn(x), ann(x), rtol=0.05, atol=0.05)
        assert torch.equal(snn(x[:1]), snn(x)[:1])


def test_one_class_has_no_accuracy_but_a_noise() -> None:
    snn = convert.to_spiking(Small(classes=1), images())
    found = analysis.evaluate(snn, [(images(), torch.zeros(12, dtype=torch.int64))])
    assert found.accuracy is None
    assert 0 < found.sqnr_db < 100


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("grad", [False, True])
def test_how_an_image_lies_in_memory_changes_no_bit(layout: str, grad: bool) -> None:
    """Of the answers, and of the thresholds chosen from it."""
    ann, x = Small().eval(), images()
    snn, other = convert.to_spiking(ann, x), convert.to_spiking(ann, LAYOUTS[layout](x))
    assert all(map(torch.equal, snn.state_dict().values(), other.state_dict().values()))
    with torch.set_grad_enabled(grad):
        for reading in READINGS:
            with snn.reading(reading):
                assert torch.equal(snn(LAYOUTS[layout](x)), snn(x))


def test_sequences_and_vectors_that_do_not_lie_in_rows() -> None:
    ann = nn.Sequential(nn.Conv1d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 6, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(10, 3, 8)
    snn = convert.to_spiking(ann, x)
    for other in (x.transpose(0, 2).contiguous().transpose(0, 2), x.repeat_interleave(3, 1)[:, ::3]):
        assert not other.is_contiguous()
        torch.testing.assert_close(snn(other), snn(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16], ids=str)
def test_a_saved_network_keeps_its_bits_and_types(dtype: torch.dtype, tmp_path: Path) -> None:
    snn, x = small(dtype=dtype, delay=1), images(3).to(dtype)
    loaded = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    assert list(loaded.state_dict()) == list(snn.state_dict())  # optimizers know parameters by their place
    for ours, theirs in zip(loaded.state_dict().values(), snn.state_dict().values(), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        for reading in READINGS:
            with snn.reading(reading), loaded.reading(reading):
                assert torch.equal(loaded(x), snn(x))


@pytest.mark.parametrize("correct", ["none", "bias+potential"])
def test_a_seed_gives_the_same_bits(correct: str, tmp_path: Path) -> None:
    """Shuffled data, conversion and file; and conversion draws no random number itself."""
    for name in ("a", "b"):
        torch.manual_seed(3)
        ann = Small()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images()), batch_size=5, shuffle=True)
        ann(images())  # batch-norm learns something
        state = torch.get_rng_state()
        snn = convert.to_spiking(ann, images(), correct=correct)
        assert torch.equal(torch.get_rng_state(), state)
        snn = convert.to_spiking(ann, loader, correct=correct)
        speedysnn.save(snn, tmp_path / name)
    for file in ("network.json", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.skipif(not AVAILABLE, reason="numba is not installed")
def test_gradients_of_layers_of_several_blocks_are_the_references(constant: bool) -> None:
    """Every block of neurons is gone through, not the first one alone (2,048 neurons)."""
    torch.manual_seed(0)
    shape = (6, 16, 8, 8) if constant else (4 * 6, 16, 8, 8)
    drive = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(4 * 6, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    found = []
    for backend in ("cpu", "reference"):
        x, theta = drive.clone().requires_grad_(), torch.full((1, 16, 1, 1), 1.5).requires_grad_()
        start = torch.tensor(0.5).requires_grad_()
        multistep(x, theta, start, Rule(4), constant=constant, backend=backend).backward(grad)
        found.append((x.grad, theta.grad, start.grad))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
