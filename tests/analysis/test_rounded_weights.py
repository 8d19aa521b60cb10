"""The fifth cause: what rounded weights add in their own layer, beside the four that are there without them."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from speedysnn import analysis, convert
from speedysnn.analysis.noise.layer import PARTS
from speedysnn.analysis.report.figures import causes
from speedysnn.analysis.report.verdict import verdict
from speedysnn.errors import ConversionError, InputError
from speedysnn.integer import rounded_weights
from speedysnn.network import SpikingNetwork

SHARES = [f"share_{part}" for part in PARTS]
FOUR = SHARES[:4]


def network(seed: int = 0, **options: Any) -> tuple[SpikingNetwork, torch.Tensor]:
    torch.manual_seed(seed)
    sizes = (6, 10, 9, 8, 3)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    x = torch.rand(48, 6)
    return convert.to_spiking(nn.Sequential(*layers[:-1]), x, **{"timesteps": 4, **options}), x


def measured(snn: SpikingNetwork, x: torch.Tensor, bits: int | None) -> analysis.NoiseReport:
    return analysis.measure_noise(snn, x, weight_bits=bits, try_settings=0)


def test_the_share_is_what_numpy_finds() -> None:
    """Q(z') - Q(z''), z'' being what the weights before rounding make of the spikes that reach the layer."""
    snn, x = network(correct="none")
    found, spikes, analog = measured(snn, x, 3).layers.set_index("layer"), [x.double().numpy()], []
    plain = [{key: x.detach().clone() for key, x in snn.tensors(name).items()} for name in ("0", "2", "4")]
    rounded = [rounded_weights(snn, 3)[name].float() for name in ("0", "2", "4")]
    with torch.no_grad(), snn.reading("analog"):
        snn(x, observer=lambda tap: analog.append(tap.output.double().numpy()))
    with torch.no_grad():
        for name, weight in zip(("0", "2", "4"), rounded, strict=True):
            snn.layers[name].weight.data = weight.clone()
        snn(x, observer=lambda tap: spikes.append(tap.steps().mean(0).double().numpy()))
    for i, (neuron, own) in enumerate(zip(snn.neurons.values(), plain, strict=True)):
        bias, theta = own["bias"].detach().double().numpy(), neuron.threshold.detach().double().numpy()
        counts = [
            np.clip(np.floor(4 * (spikes[i] @ w.detach().double().numpy().T + bias) / theta + 0.5), 0, 4)
            for w in (rounded[i], own["weight"])
        ]
        e = spikes[i + 1] - analog[i]
        share = ((counts[0] - counts[1]) * theta / 4 * e).sum() / (e * e).sum()
        assert share == pytest.approx(found.loc[neuron_name(snn, i), "share_weights"], abs=2e-3)
        assert abs(share) > 0.01


def neuron_name(snn: SpikingNetwork, i: int) -> str:
    return list(snn.neurons)[i]


@settings(max_examples=12)
@given(
    seed=st.integers(0, 50), bits=st.integers(2, 8), timesteps=st.integers(1, 6), delay=st.sampled_from((0, 1, "full")),
    spikes=st.sampled_from(("binary", "ternary", "graded:2")),
)  # fmt: skip
def test_the_shares_add_up_to_one(seed: int, bits: int, timesteps: int, delay: Any, spikes: str) -> None:
    snn, x = network(seed, timesteps=timesteps, delay=delay, spikes=spikes)
    layers = measured(snn, x, bits).layers
    assert ((layers[SHARES].sum(axis=1) - 1).abs() < 1e-6).all()
    assert (layers["residual"] < 1e-5).all()
    assert ((layers["affine_share"] >= 0) & (layers["affine_share"] <= layers["share_propagated"].clip(0))).all()


def test_without_rounding_nothing_changes_and_the_share_is_nothing() -> None:
    snn, x = network()
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    none = measured(snn, x, None)
    assert (none.layers["share_weights"] == 0).all()
    assert "weight_bits" not in none.outputs
    assert ((none.layers[FOUR].sum(axis=1) - 1).abs() < 1e-6).all()
    some = measured(snn, x, 2)
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())
    assert some.outputs["weight_bits"] == 2
    pd.testing.assert_frame_equal(measured(snn, x, None).layers, none.layers)
    assert (measured(snn, x, 16).layers["share_weights"].abs() < 0.02).all()


def test_layers_between_which_values_meet_have_their_own_part() -> None:
    """A residual block with pooling: the shares add up, and the first layer's propagated share stays 0."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.pool, self.out = nn.MaxPool2d(2), nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).relu()
            x = (self.inner(x) + x).relu()
            out: torch.Tensor = self.out(self.pool(x).flatten(1))
            return out

    torch.manual_seed(0)
    images = torch.rand(24, 1, 8, 8)
    snn = convert.to_spiking(Net(), images, timesteps=4, correct="none")
    layers = measured(snn, images, 3).layers
    assert ((layers[SHARES].sum(axis=1) - 1).abs() < 1e-6).all()
    assert (layers["share_weights"].abs() > 0.01).all()
    assert layers["share_propagated"].iloc[0] == pytest.approx(0, abs=1e-3)


def test_the_page_and_the_verdict_name_it(tmp_path: Any) -> None:
    snn, x = network()
    report = measured(snn, x, 2)
    assert report.to_json()["layers"][0]["share_weights"] == report.layers["share_weights"].iloc[0]
    page = (report.save(tmp_path / "report") / "report.html").read_text(encoding="utf-8")
    assert ">weights<" in page
    assert "weights" in [text.get_text() for text in causes(report.layers).legends[0].get_texts()]
    assert "weights" not in [text.get_text() for text in causes(measured(snn, x, None).layers).legends[0].get_texts()]
    rows = report.layers.copy()
    rows[SHARES] = 0.0
    rows["share_weights"] = 1.0
    text = " ".join(verdict(rows, report.outputs))
    assert "of its squared error is weights: its weights have too few bits" in text
    assert '2 bits of its weights cost that: use more there, or to_integer(rounding="reconstruct")' in text
    assert "finetune.Config(weight_bits=2)" in text


def test_what_cannot_be_rounded_is_refused() -> None:
    snn, x = network()
    with pytest.raises(InputError, match="weight_bits: expected a whole number of 2 to 16, got 1"):
        measured(snn, x, 1)
    hybrid = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 2))
    images = torch.rand(40, 4)
    with pytest.raises(ConversionError, match="silu"):
        measured(convert.to_spiking(hybrid, images, allow_hybrid=True), images, 4)
    assert math.isfinite(measured(snn, x, 4).outputs["sqnr_db"])
