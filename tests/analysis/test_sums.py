"""The compiled sums of a layer against their definition in plain torch."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from speedysnn import analysis, convert
from speedysnn.kernels.jit import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="numba is not installed")

CASES: dict[str, dict[str, Any]] = {
    "binary": {},
    "look-ahead": {"delay": 1},
    "full": {"delay": "full"},
    "ternary": {"spikes": "ternary"},
    "graded": {"spikes": "graded:3"},
    "powers": {"spikes": "power2:3", "delay": "full"},
    "one theta a layer": {"granularity": "layer"},
    "floor": {"v_init": 0.0},
    "corrected": {"correct": "bias+potential"},
    "signed": {"allow_hybrid": True},
}


def network(case: str) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    middle: nn.Module = nn.Tanh() if case == "signed" else nn.ReLU()
    ann = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 6, 3), middle, nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(54, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip
    x = torch.randn(40, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return convert.to_spiking(ann, x, 4, **CASES[case]), x


@pytest.mark.parametrize("case", sorted(CASES))
def test_one_read_gives_the_figures_of_the_definition(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    snn, x = network(case)
    ours = analysis.measure_noise(snn, x)
    monkeypatch.setattr("speedysnn.analysis.noise.layer.supports", lambda *_: False)
    expected = analysis.measure_noise(snn, x)
    numbers = expected.layers.select_dtypes("number").columns
    for name in numbers:
        a, b = ours.layers[name].to_numpy(float), expected.layers[name].to_numpy(float)
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=name)
    others = [name for name in expected.layers.columns if name not in numbers]
    pd.testing.assert_frame_equal(ours.layers[others], expected.layers[others])
    assert ours.layers.residual.max() < 1e-6


def test_passes_beside_one_another_add_up() -> None:
    snn, x = network("binary")
    whole = analysis.measure_noise(snn, x)
    snn.images_per_pass = 3
    parts = analysis.measure_noise(snn, x)
    for name in whole.layers.select_dtypes("number").columns:
        np.testing.assert_allclose(parts.layers[name], whole.layers[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", sorted(CASES))
def test_details_are_those_of_the_definition(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    snn, x = network(case)
    ours = analysis.measure_noise(snn, x, detail="full")
    monkeypatch.setattr("speedysnn.analysis.noise.layer.supports", lambda *_: False)
    expected = analysis.measure_noise(snn, x, detail="full")
    for name, detail in expected.details.items():
        own = ours.details[name]
        assert (own.rounding == detail.rounding).all()
        assert (own.noise == detail.noise).all()
        assert own.units == detail.units
        assert own.spikes_per_step == detail.spikes_per_step
        np.testing.assert_allclose(own.channels, detail.channels, rtol=1e-7, atol=1e-9, err_msg=name)
    for column in ("channel_correlation", "step_correlation"):
        both = [report.layers[column].to_numpy(float) for report in (ours, expected)]
        np.testing.assert_allclose(*both, rtol=1e-9, err_msg=column)


@pytest.mark.parametrize("channels", [1, 3, 12, 16, 600, 5000])
def test_however_many_channels(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few come again in a block, four rows of them are added at once, and many are cut across blocks."""
    torch.manual_seed(0)
    snn = convert.to_spiking(nn.Sequential(nn.Conv2d(2, channels, 1), nn.ReLU(), nn.Flatten()), torch.randn(8, 2, 4, 5), 3)
    x = torch.randn(33, 2, 4, 5)
    ours = analysis.measure_noise(snn, x)
    monkeypatch.setattr("speedysnn.analysis.noise.layer.supports", lambda *_: False)
    expected = analysis.measure_noise(snn, x)
    name = next(iter(ours.details))
    np.testing.assert_allclose(ours.details[name].channels, expected.details[name].channels, rtol=1e-7, atol=1e-9)
    assert ours.details[name].units == expected.details[name].units
    for column in ours.layers.select_dtypes("number").columns:
        np.testing.assert_allclose(ours.layers[column], expected.layers[column], rtol=1e-9, atol=1e-9, err_msg=column)
