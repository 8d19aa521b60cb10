"""Learned clips: QCFS, PACT and LSQ as users write them are proven and used; look-alikes are not trusted."""

import copy

import pytest
import torch
from torch import nn

import speedysnn
from speedysnn import convert
from speedysnn.convert.clips import Clip, fit, recognise
from speedysnn.errors import ConversionError, InputError
from speedysnn.neurons import IFNeuron


class Floor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.floor()

    @staticmethod
    def backward(ctx, grad):
        return grad


class ThreshQCFS(nn.Module):
    """Scale, clamp, round to levels, scale back; the clip is called thresh."""

    def __init__(self, thresh: float = 1.3, levels: int = 8) -> None:
        super().__init__()
        self.thresh, self.L, self.relu = nn.Parameter(torch.tensor([thresh])), levels, nn.ReLU()

    def forward(self, x):
        x = torch.clamp(x / self.thresh, 0, 1)
        return Floor.apply(x * self.L + 0.5) / self.L * self.thresh


class UpQCFS(nn.Module):
    """The same with the clip called up, flooring when phi is 0."""

    def __init__(self, up: float = 1.1, t: int = 4, phi: float = 0.5) -> None:
        super().__init__()
        self.up, self.t, self.phi = nn.Parameter(torch.tensor(up)), t, phi

    def forward(self, x):
        return self.up * torch.clamp(Floor.apply(x * self.t / self.up + self.phi) / self.t, 0, 1)


class PACT(nn.Module):
    def __init__(self, alpha: float = 1.7, bits: int | None = 3) -> None:
        super().__init__()
        self.alpha, self.bits = nn.Parameter(torch.tensor(alpha)), bits

    def forward(self, x):
        y = 0.5 * (x.abs() - (x - self.alpha).abs() + self.alpha)
        return y if self.bits is None else torch.round(y * (2**self.bits - 1) / self.alpha) * self.alpha / (2**self.bits - 1)


class LSQ(nn.Module):
    def __init__(self, s: float = 0.17, nbits: int = 3) -> None:
        super().__init__()
        self.s, self.nbits = nn.Parameter(torch.tensor(s)), nbits
        self.Qn, self.Qp = 0, 2**nbits - 1

    def forward(self, x):
        return torch.round(torch.clamp(x / self.s, self.Qn, self.Qp)) * self.s


class AlphaStep(nn.Module):
    """LSQ whose step is called alpha and whose levels follow from bits; set up by the first batch."""

    def __init__(self, bits: int = 2, ready: bool = True) -> None:
        super().__init__()
        self.alpha, self.bits = nn.Parameter(torch.tensor(0.4)), bits
        self.register_buffer("init_state", torch.tensor(float(ready)))

    def forward(self, x):
        if self.init_state == 0:
            self.alpha.data.fill_(x.abs().mean())
            self.init_state.fill_(1)
        return torch.clamp(torch.round(x / self.alpha), 0, 2**self.bits - 1) * self.alpha


class Private(nn.Module):
    """A quantizer whose attributes have no usual names."""

    def __init__(self) -> None:
        super().__init__()
        self.omega, self.n = nn.Parameter(torch.tensor(1.2)), 5

    def forward(self, x):
        return Floor.apply((x / self.omega).clamp(0, 1) * self.n + 0.5) / self.n * self.omega


class SoftClip(nn.Module):
    """Owns an alpha, and is no clip."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return torch.relu(x) * self.alpha


class AcrossBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return torch.minimum(torch.relu(x), self.alpha) + 1e-3 * x.flatten()[0].clamp(-1, 0)


def net(activation) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), activation(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), activation(),
        nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip


CASES = {
    "qcfs thresh": (ThreshQCFS, 1.3, 8),
    "qcfs up": (UpQCFS, 1.1, 4),
    "qcfs floor": (lambda: UpQCFS(phi=0.0), 1.1, 4),
    "pact": (PACT, 1.7, 7),
    "pact plain": (lambda: PACT(bits=None), 1.7, None),
    "lsq": (LSQ, 0.17 * 7, 7),
    "lsq alpha": (AlphaStep, 1.2, 3),
}


@pytest.mark.parametrize("case", CASES)
def test_conversion_uses_the_learned_clip(case: str, tmp_path) -> None:
    make, value, levels = CASES[case]
    source, images = net(make), torch.rand(64, 1, 8, 8)
    assert convert.inspect(source, images[:2]).supported
    snn = convert.to_spiking(source, images, 4)
    assert snn.calibration.rules == {"2": "clip", "5": "clip"}
    assert snn.provenance["analog_error"] < 1e-5
    for neuron in snn.neurons.values():
        assert neuron.steps == levels
        torch.testing.assert_close(neuron.threshold, torch.full((8,), value))
    with torch.no_grad(), snn.reading("analog"):
        torch.testing.assert_close(snn(images), source(images), rtol=1e-4, atol=1e-5)
    snn.timesteps = levels or 1024
    snn.recalibrate()
    with torch.no_grad(), snn.reading("quantized"):
        twin = snn(images)
    error = (twin - source(images)).norm() / source(images).norm()
    assert error < (1e-4 if levels else 0.02)
    torch.testing.assert_close(snn.neurons["2"].threshold, torch.full((8,), value))
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    with torch.no_grad(), again.reading("analog"), snn.reading("analog"):
        assert torch.equal(again(images), snn(images))
    again.set_spikes("graded:2")
    torch.testing.assert_close(again.recalibrate().neurons["2"].threshold, torch.full((8,), value / 2))


def test_full_look_ahead_at_t_equal_l_is_the_source() -> None:
    source, images = net(ThreshQCFS), torch.rand(64, 1, 8, 8)
    snn = convert.to_spiking(source, images, 8, delay="full", granularity="layer")
    with torch.no_grad():
        torch.testing.assert_close(snn(images), source(images), rtol=1e-4, atol=1e-5)


def test_user_line_for_other_names() -> None:
    source, images = net(Private), torch.rand(32, 1, 8, 8)
    with pytest.raises(ConversionError):
        convert.to_spiking(source, images)
    for levels in (None, 5, lambda m: m.n):
        snn = convert.to_spiking(source, images, handlers={Private: convert.as_clip(lambda m: m.omega, levels)})
        assert (snn.neurons["2"].steps, snn.calibration.rules["2"]) == (5, "clip")
    for wrong in (convert.as_clip(lambda m: 2 * m.omega), convert.as_clip(lambda m: m.omega, 4)):
        with pytest.raises(ConversionError, match="on a probe"):
            convert.to_spiking(source, images, handlers={Private: wrong})
    for broken in (lambda m: m.alpha, lambda m: -m.omega, lambda m: torch.ones(3)):
        with pytest.raises(ConversionError, match="cannot be read"):
            convert.to_spiking(source, images, handlers={Private: convert.as_clip(broken)})


def test_look_alikes_are_not_trusted() -> None:
    assert recognise(SoftClip()) is None
    assert recognise(AcrossBatch()) is None
    unready = AlphaStep(ready=False)
    assert recognise(unready) is None
    assert (unready.init_state.item(), unready.alpha.item()) == (0, pytest.approx(0.4)), "the probe left its mark"
    assert recognise(LSQ(s=-0.2)) is None
    source = net(SoftClip)
    assert set(convert.to_spiking(source, torch.rand(32, 1, 8, 8)).calibration.rules.values()) == {"mse"}


def test_own_entry_and_keep_analog() -> None:
    source, images = net(ThreshQCFS), torch.rand(32, 1, 8, 8)
    snn = convert.to_spiking(source, images, threshold={"2": "mse"})
    assert snn.calibration.rules == {"2": "mse", "5": "clip"}
    with pytest.raises(ConversionError, match="cannot stay analog"):
        convert.to_spiking(source, images, keep_analog=["2"])
    plain = convert.to_spiking(net(lambda: PACT(bits=None)), images, keep_analog=["2"], allow_hybrid=True)
    assert (list(plain.neurons), plain.calibration.rules["5"]) == (["3.spikes", "5"], "clip")


def test_source_is_left_alone_and_modules_of_one_class_differ() -> None:
    source = net(ThreshQCFS)
    source[5].thresh.data.fill_(0.6)
    before = copy.deepcopy(source.state_dict())
    snn = convert.to_spiking(source, torch.rand(32, 1, 8, 8), granularity="layer")
    assert [n.threshold.item() for n in snn.neurons.values()] == pytest.approx([1.3, 0.6])
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_staircase_and_its_limits() -> None:
    z = torch.linspace(-1, 3, 997)
    neuron = IFNeuron(1.5, ceiling=1.5, steps=6, timesteps=6)
    torch.testing.assert_close(neuron.analog(z), Clip(1.5, 6)(z))
    torch.testing.assert_close(neuron.quantized(z[:, None])[:, 0], neuron.analog(z))
    assert fit(nn.ReLU6(), 6.0) == Clip(6.0)
    for options in ({"steps": 0, "ceiling": 1.0}, {"steps": 4}, {"steps": 4, "ceiling": 1.0, "floor": None}):
        with pytest.raises(InputError, match="steps"):
            IFNeuron(1.0, **options)
