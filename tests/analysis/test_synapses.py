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
