"""Mean fan-out by hand, and against the synaptic operations that measure_cost counts."""

import pytest
import torch
from torch import nn

from speedysnn import analysis, convert
from speedysnn.analysis.cost.measure import spike_fan_out


def _network():
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2),
    )  # fmt: skip
    return convert.to_spiking(ann, torch.rand(32, 1, 8, 8), timesteps=4)


def test_by_hand() -> None:
    found = spike_fan_out(_network())
    rows = [min(8, 2 * i + 2) - max(0, 2 * i - 1) for i in range(4)]  # taps of each output row within the image
    conv = sum(rows) ** 2 * 3 * 4 / (3 * 64)
    assert found == pytest.approx({"1": conv, "3": 5.0, "6": 2.0})


class Pooled(nn.Module):
    """Two layers side by side; both are max-pooled, padded at the border, before the next weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 2, 1)
        self.f, self.g = nn.ReLU(), nn.ReLU()
        self.pool, self.last = nn.MaxPool2d(3, 2, padding=1), nn.Linear(80, 6)
        for conv in (self.a, self.b):
            nn.init.constant_(conv.bias, 100.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.f(self.a(x)), self.g(self.b(x))], 1)
        return self.last(torch.flatten(self.pool(both), 1))


def test_what_a_max_pooling_passes_on_counts() -> None:
    """64 neurons a channel; 16 pooled positions a channel, each with six weights behind it."""
    snn = convert.to_spiking(Pooled(), torch.rand(32, 1, 8, 8), timesteps=4, threshold={"f": 1.0, "g": 1.0})
    found = spike_fan_out(snn)
    assert found == pytest.approx({"f": 16 * 6 / 64, "g": 16 * 6 / 64})
    layers = analysis.measure_cost(snn, torch.rand(6, 1, 8, 8)).layers.set_index("layer")
    assert layers["spikes"]["f"] == 4 * 3 * 64, "every neuron fires at every step"
    expected = sum(found[name] * layers["spikes"][name] for name in ("f", "g"))
    assert layers["synops"]["last"] == pytest.approx(expected)


def test_synops_of_uniform_firing_follow() -> None:
    """All neurons at one spike each: synaptic operations are the sum of neurons times fan-out."""
    snn = _network()
    found, x = spike_fan_out(snn), torch.rand(6, 1, 8, 8)
    report = analysis.measure_cost(snn, x)
    spikes: dict[str, float] = {}

    def count(tap) -> None:
        spikes[tap.name] = float((tap.output != 0).sum()) / 6

    with torch.no_grad():
        snn(x, observer=count)
    synops = report.layers.set_index("layer")["synops"]
    assert synops["7"] == pytest.approx(found["6"] * spikes["6"])
    assert synops["5"] == pytest.approx(found["3"] * spikes["3"])
