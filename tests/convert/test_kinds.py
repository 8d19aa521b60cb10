"""Kinds of calls that were once bent or lost, each as a table whose right values come from torch itself."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import speedysnn
from speedysnn import convert
from speedysnn.convert.calibrate import CalibrationWarning
from speedysnn.errors import InputError
from speedysnn.neurons.layer import IFNeuron


class Between(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Linear(8, 16), function, nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


LIMITS = (
    (-1.0, 1.0), (0.0, 1.0), (-0.2, 0.4), (-0.4, 0.2), (-0.1, 2.0), (None, 0.5), (-0.3, None), (-1e38, 0.3),
    (-math.inf, 0.4), (-0.2, math.inf), (0.0, None),
)  # fmt: skip
CLAMPS: dict[str, Callable[[float | None, float | None], Callable[[Tensor], Tensor]]] = {
    "x.clamp": lambda low, high: lambda x: x.clamp(low, high),
    "torch.clip": lambda low, high: lambda x: torch.clip(x, max=high, min=low),
    "one side at a time": lambda low, high: lambda x: _sides(x, low, high),
    "F.hardtanh": lambda low, high: lambda x: F.hardtanh(x, -1e38 if low is None else low, 1e38 if high is None else high),
    "nn.Hardtanh": lambda low, high: nn.Hardtanh(-math.inf if low is None else low, math.inf if high is None else high),
    "as_neuron": lambda low, high: Own(low, high),
}  # fmt: skip


def _sides(x: Tensor, low: float | None, high: float | None) -> Tensor:
    x = x if low is None else x.clamp_min(low)
    return x if high is None else torch.clamp_max(x, high)


class Own(nn.Module):
    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("how", CLAMPS)
def test_spikes_reach_every_clamp(how: str, limits: tuple[float | None, float | None]) -> None:
    torch.manual_seed(0)
    net, x = Between(CLAMPS[how](*limits)).eval(), torch.randn(128, 8)
    own = {Own: convert.as_neuron(*limits)} if how == "as_neuron" else None
    snn = convert.to_spiking(net, x, 1024, threshold="max", delay="full", correct="none", handlers=own)
    with torch.no_grad():
        assert snn.provenance["analog_error"] < 1e-5
        assert relative(snn(x), net(x)) < 0.01


@pytest.mark.parametrize("limits", [(-0.2, 0.4), (None, 0.5), (-0.3, None)], ids=str)
def test_a_neuron_that_could_not_count_so_far_is_refused(limits: tuple[float | None, float | None]) -> None:
    with pytest.raises(InputError, match="as far below 0 as above"):
        IFNeuron(floor=limits[0], ceiling=limits[1])


class Gated(nn.Module):
    """Squeeze and excitation whose little ReLUs are silent on every image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), nn.Linear(2, 8), nn.Linear(8, 3)
        nn.init.constant_(self.down.bias, -3.0)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        low = self.down(y.mean((2, 3)))
        gate = self.up(torch.relu(low) + F.relu6(low)).sigmoid()
        return self.head((y * gate[:, :, None, None]).mean((2, 3)))


def test_layers_that_never_fire_are_named_and_kept(tmp_path) -> None:
    x = torch.rand(32, 3, 8, 8)
    with pytest.warns(CalibrationWarning, match=r"'relu_1', 'relu6'"):
        snn = convert.to_spiking(Gated().eval(), x, allow_hybrid=True)
    assert [snn.neurons[name].threshold.max().item() for name in ("relu_1", "relu6")] == [1.0, 6.0]
    snn.recalibrate()
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    assert torch.equal(again(x), snn(x))
