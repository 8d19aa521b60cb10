"""Conversion as a whole: refusals all at once, user handlers, the source untouched, calibration, the digits networks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedysnn import convert, data
from speedysnn.assets.digits import load_digits_net
from speedysnn.errors import ConversionError, DataError, InputError


class Refused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.silu, self.unused = nn.Linear(4, 4), nn.SiLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.silu(self.a(x))
        gate = torch.sigmoid(y)
        return F.relu(y * gate)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return F.relu(x)
        return x


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3))


def test_all_problems_are_reported_at_once() -> None:
    report = convert.inspect(Refused(), torch.randn(2, 4))
    assert not report.supported
    assert [row.path for row in report.problems] == ["silu", "sigmoid", "mul"]
    assert all(row.source.startswith("test_conversion.py:") and row.advice for row in report.problems)
    assert (report.activations_found, report.neurons, report.never_called) == (2, 1, ("unused",))
    assert len(report.frame) == len(report.rows) == len(report.to_json()["operators"])
    with pytest.raises(ConversionError) as caught:
        convert.to_spiking(Refused(), torch.randn(8, 4))
    assert all(word in str(caught.value) for word in ("silu", "sigmoid", "mul", "test_conversion.py:"))


def test_user_handlers_win() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.ReLU())
    with pytest.raises(ConversionError):
        convert.to_spiking(net, torch.randn(8, 4))
    with pytest.raises(ConversionError, match="differs from the source"):
        convert.to_spiking(net, torch.randn(8, 4), handlers={nn.SiLU: lambda call: call.ref()})
    with pytest.raises(ConversionError, match="nothing to convert"):
        convert.to_spiking(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(8, 4), handlers={nn.ReLU: lambda c: c.ref()})


def test_control_flow_is_refused_with_its_line() -> None:
    with pytest.raises(ConversionError, match=r"test_conversion\.py:\d+"):
        convert.to_spiking(Branching(), torch.randn(4, 4))


@pytest.mark.parametrize("mode", ["normal", "bad argument", "exception"])
def test_the_source_is_left_as_it_is(mode: str) -> None:
    net = small().train()
    net[0].eval()
    net[3].bias.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    if mode == "normal":
        convert.to_spiking(net, torch.randn(16, 4))
    elif mode == "bad argument":
        with pytest.raises(InputError):
            convert.to_spiking(net, torch.randn(16, 4), threshold="mean")
    else:
        with pytest.raises(ConversionError):
            convert.to_spiking(net, torch.randn(16, 5))
    assert [m.training for m in net.modules()] == [True, False, True, True, True]
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, False]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_thresholds_do_not_depend_on_order_or_split(granularity: str) -> None:
    net, x = small(), torch.round(torch.randn(130, 4) * 16) / 16
    for p in net.parameters():  # dyadic numbers, so that every split computes the same activations to the bit
        p.data = torch.round(p.data * 64) / 64
    thetas = []
    for images in (x, x.flip(0), list(x.split(1)), list(x.split(7)), (part for part in x.split(64))):
        snn = convert.to_spiking(net, images, granularity=granularity)
        assert snn.provenance["calibration_images"] == 130
        thetas.append(snn.neurons["1"].threshold)
    assert all(torch.equal(theta, thetas[0]) for theta in thetas)


@pytest.mark.parametrize(
    ("calibration", "error", "words"),
    [
        (lambda: [], DataError, "no batch"),
        (lambda: torch.full((4, 4), float("nan")), DataError, "NaN"),
        (lambda: [torch.randn(4, 4), torch.randn(4, 5)], DataError, "does not run"),
        (lambda: torch.zeros(0, 4), DataError, "image|batch|empty"),
        (lambda: "digits", DataError, "text"),
    ],
)
def test_bad_calibration_is_named(calibration, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        convert.to_spiking(small(), calibration())


def test_dead_layers_and_given_thresholds() -> None:
    net, x = small(), torch.randn(32, 4)
    net[0].bias.data[0] = -100.0
    snn = convert.to_spiking(net, x)
    theta = snn.neurons["1"].threshold
    assert theta[0] == theta.max(), "a dead channel takes the layer's largest threshold"
    given = convert.to_spiking(net, x, threshold={"1": 2.0})
    torch.testing.assert_close(given.neurons["1"].threshold, torch.full((6,), 2.0))
    given.recalibrate()
    torch.testing.assert_close(given.neurons["1"].threshold, torch.full((6,), 2.0))
    for threshold, words in (({"9": 1.0}, "no neuron is called"), ({"1": [1.0, 2.0]}, "expected a number or 6")):
        with pytest.raises(InputError, match=words):
            convert.to_spiking(net, x, threshold=threshold)
    net[0].bias.data[:] = -100.0
    with pytest.raises(ConversionError, match="layer '1'"):
        convert.to_spiking(net, x)


@pytest.mark.parametrize("options", [{"granularity": "neuron"}, {"v_init": 1.5}, {"correct": "biases"}, {"spikes": "wavy"}])
def test_bad_options_are_named(options: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        convert.to_spiking(small(), torch.randn(8, 4), **options)


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_digits_reach_the_source_and_the_error_falls_with_t(pool: str) -> None:
    """Within 0.5 points at T = 8 and 16; the logits' error falls as T doubles and is at most 0.02 at T = 128."""
    net, test = load_digits_net(pool), data.load("digits", "test")
    x, y = (torch.stack(column) for column in zip(*((i, torch.tensor(c)) for i, c in (test[k] for k in range(len(test)))), strict=True))
    snn = convert.to_spiking(net, data.load("digits", "train"))
    with torch.no_grad():
        source = net(x)
        accuracy = (source.argmax(1) == y).float().mean()
        errors = []
        for steps in (8, 16, 32, 64, 128):  # accuracies of all images, errors of the first hundred
            snn.timesteps = steps
            snn.recalibrate()
            out = snn(x if steps <= 16 else x[:100])
            errors.append(float((out[:100] - source[:100]).norm() / source[:100].norm()))
            if steps <= 16:
                assert (out.argmax(1) == y).float().mean() >= accuracy - 0.005
    assert errors == sorted(errors, reverse=True), errors
    assert errors[-1] <= 0.02, errors
