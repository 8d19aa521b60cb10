"""The schema: every sum and column has its row, kernels take their places from it, and a user's entry needs no file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from speedysnn import analysis, convert
from speedysnn.analysis import COLUMNS, SUMS, Column, Sum
from speedysnn.analysis.noise import numba_backend, numba_block, numba_channels, schema
from speedysnn.analysis.noise.layer import LayerSums, row_of
from speedysnn.errors import InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.neurons import IFNeuron

STEPS = 4
POWERS = {"E1": "e", "E2": "ee", "E3": "eee", "E4": "eeee", "G1": "g", "G2": "gg", "G3": "ggg", "G4": "gggg",
          "SIZE": "a", "POWER": "aa", "SOURCE": "s", "Z1": "z", "Z2": "zz", "D1": "d", "D2": "dd", "O1": "o"}  # fmt: skip


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Entries that a test makes are gone after it."""
    columns, rows = dict(COLUMNS), dict(SUMS)
    yield
    for held, before in ((COLUMNS, columns), (SUMS, rows)):
        held.clear()
        held.update(before)


@pytest.fixture
def snn() -> Any:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 8), nn.ReLU(), nn.Linear(8, 3))
    return convert.to_spiking(ann, torch.randn(24, 2, 6, 6), STEPS)


def images(count: int = 24) -> torch.Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def layer_sums(amplitude: tuple[float, ...] | None = None) -> tuple[LayerSums, dict[str, np.ndarray]]:
    """Sums of one layer, and what ten lines of numpy make of the same tensors."""
    g = torch.Generator().manual_seed(3)
    neuron = IFNeuron(torch.tensor([0.7, 1.0, 1.6]), timesteps=STEPS)
    neuron.set_amplitude(None if amplitude is None else torch.tensor(amplitude))
    z = torch.randn(20, 3, 2, 2, generator=g)
    drive = z + 0.7 * torch.randn(STEPS, 20, 3, 2, 2, generator=g)
    plain = drive.mean(0) + 0.3 * torch.randn(20, 3, 2, 2, generator=g)  # what weights before rounding would give
    layer = LayerSums("layer", neuron, True)
    with torch.no_grad():
        trains, twin = neuron.spiking(drive.flatten(0, 1)).view_as(drive), neuron.quantized(z)
        record = LayerRecord("layer", neuron, drive.flatten(0, 1), trains.flatten(0, 1), False, False)
        layer.update(z, neuron, twin, record, plain)

    theta = neuron.threshold.detach().double().numpy()[:, None, None]
    unit = neuron.amplitude.detach().double().numpy()[:, None, None]
    width, step, o, zs = theta / STEPS, unit / STEPS, trains.double().numpy(), z.double().numpy()
    a, counts = np.maximum(zs, 0), np.rint(o.sum(0) / unit)
    drives = zs, drive.sum(0).double().numpy() / STEPS, plain.double().numpy()
    quantized = [np.clip(np.floor(x / width + 0.5), 0, STEPS) for x in drives]
    r, clipped = counts * step, np.clip(zs, 0, theta)
    e, fine = r - a, (zs > 0) & (zs < theta)
    drift = drive.sum(0).double().numpy() / STEPS * unit / theta - zs
    gap, mean = np.where(fine, quantized[0] - zs / width, 0), drive.sum(0).double().numpy() / theta / STEPS
    lagging = (mean > 0) & (mean < 1)
    d = np.where(lagging, o / unit - mean, 0)
    when = np.where(o.any(0), (o != 0).argmax(0) + 1, 0)
    starts = [w[w > 0].min() for w in when.reshape(20, -1) if w.any()]
    elements = {
        "a": abs(a), "aa": a**2, "s": a, "e": e, "ee": e**2, "eee": e**3, "eeee": e**4, "in_range": fine,
        "granular": fine, "z": zs, "zz": zs**2, "d": drift, "dd": drift**2, "zd": zs * drift,
        "o": quantized[0] * step - a, "ao": (quantized[0] * step - a) * a, "ar": a * r, "rr": r**2, "twin": (twin.double().numpy() - a) ** 2,
        "miss": (o.mean(0) - r) ** 2, "clip": (clipped - a) * e, "round": (quantized[0] * step - clipped) * e,
        "propagated": (quantized[1] - quantized[0]) * step * e, "weights": (quantized[1] - quantized[2]) * step * e,
        "temporal": (r - quantized[1] * step) * e,
        "g": gap, "gg": gap**2, "ggg": gap**3, "gggg": gap**4, "lag0": d**2, "lag1": d[1:] * d[:-1],
        "saturated": counts == STEPS, "silent": counts == 0, "source_silent": a == 0, "outside": counts != quantized[1],
        "fired": when > 0, "first": when, "lagged": lagging,
    }  # fmt: skip
    own = {name: x.sum((0, 2, 3)) if SUMS[name].kind == "channel" else x.sum() for name, x in elements.items()}
    bins = [np.histogram(x, [-np.inf, *(np.arange(65) / 32 - 1), np.inf])[0] for x in (gap[fine], (e / step)[e != 0])]
    return layer, {
        **own, "started": np.array(len(starts)), "start": np.sum(starts), "rounding": bins[0], "noise": bins[1],
        "fires": (counts != 0).sum(0).ravel(), "full": (counts == STEPS).sum(0).ravel(), "peak": a.max(0).ravel(),
        "pulses": (o != 0).sum((1, 2, 3, 4)),
    }  # fmt: skip


def found_by_name(layer: LayerSums) -> dict[str, Any]:
    found = layer.found()
    arrays = {name: found.histogram(name) for name in schema.HISTOGRAMS}
    arrays.update({name: found.sums[name] for name in (*schema.UNITS, "pulses")})
    return {**found.total, **found.counts, **found.channel, **arrays}


@pytest.mark.parametrize("amplitude", [None, (0.9, 0.8, 1.7)])
@pytest.mark.parametrize("compiled", [True, False])
def test_every_sum_has_a_row_and_is_what_numpy_finds(
    compiled: bool, amplitude: tuple[float, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr("speedysnn.analysis.noise.layer.supports", lambda *_: False)
    layer, expected = layer_sums(amplitude)
    ours = found_by_name(layer)
    assert set(ours) == set(SUMS) == set(expected)
    for name, row in SUMS.items():
        assert row.meaning.endswith("."), name
        assert row.unit, name
        near = 1e-9 if name != "miss" else 1e-6
        np.testing.assert_allclose(np.asarray(ours[name]), expected[name], rtol=1e-6, atol=near, err_msg=name)


def test_every_kernel_index_comes_from_the_schema() -> None:
    seen = set()
    for module in (numba_backend, numba_block, numba_channels):
        text = Path(module.__file__).read_text()
        assert not re.search(r"\b(counts|totals|sums)\[\d", text), module.__name__
        for name in re.findall(r"[A-Z][A-Z0-9_]+", ", ".join(re.findall(r"(.+) = indices\(", text))):
            own = POWERS.get(name, name.lower())
            assert getattr(module, name) == schema.index(own), name
            seen.add(own)
    assert seen == set(schema.CHANNELS + schema.TOTALS + schema.COUNTS + schema.HISTOGRAMS)
    folder = Path(schema.__file__).parent
    assert {Path(m.__file__) for m in (schema, numba_backend, numba_block, numba_channels)} <= set(numba_channels.FILES)
    assert set(numba_channels.FILES) == set(folder.rglob("*.py"))


def test_triton_takes_its_rows_from_the_schema() -> None:
    pytest.importorskip("triton")
    from speedysnn.analysis.noise import triton_kernels

    text = Path(triton_kernels.__file__).read_text()
    calls = re.findall(r"_put(?:_four)?\(found, ([A-Z][\w, ]*), channels", text)
    stored = [name for call in calls for name in call.split(", ")]
    assert len(stored) == len(set(stored)) == len(schema.ELEMENT_SUMS) + len(schema.TRAIN_SUMS)
    for name in stored:
        own = POWERS.get(name, name.lower())
        rows = schema.ELEMENT_SUMS if own in schema.ELEMENT_SUMS else schema.TRAIN_SUMS
        assert getattr(triton_kernels, name).value == rows.index(own), name


@pytest.mark.usefixtures("registry")
def test_a_users_column_shows_in_table_report_and_json(snn: Any, tmp_path: Path) -> None:
    COLUMNS["error_per_spike"] = Column(
        "activation squared per event", "Squared error that one spike event leaves.", False, "0", after="gain",
        value=lambda layer: layer.total["ee"] / layer.events, format="percent", summary=True, title="error a spike",
    )  # fmt: skip
    noise = analysis.measure_noise(snn, images())
    names = list(noise.layers.columns)
    assert names.index("error_per_spike") == names.index("gain") + 1
    assert (noise.layers["error_per_spike"] > 0).all()
    one = convert.to_spiking(nn.Sequential(nn.ReLU()), torch.rand(9, 4), STEPS, granularity="layer")
    row = analysis.measure_noise(one, torch.rand(9, 4)).layers.iloc[0]
    step = row["theta_mean"] / STEPS
    events = row["spikes_per_neuron"] * row["n"]
    assert row["error_per_spike"] == pytest.approx(row["rmse_steps"] ** 2 * step**2 * row["n"] / events)

    folder = noise.save(tmp_path / "report")
    data = json.loads((folder / "noise.json").read_text())
    assert data["columns"]["error_per_spike"]["unit"] == "activation squared per event"
    value = data["layers"][1]["error_per_spike"]
    assert value == noise.layers["error_per_spike"][1]
    assert pd.read_csv(folder / "layers.csv")["error_per_spike"][1] == pytest.approx(value)
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        assert "error a spike" in text, name
        assert f"{100 * value:.1f} %" in text, name
    del COLUMNS["error_per_spike"]
    assert "error a spike" in noise._repr_html_()  # a report keeps the columns it was made with
    assert "error_per_spike" not in analysis.measure_noise(snn, images()).layers


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("compiled", [True, False])
def test_a_users_sum_is_computed_beside_the_others(snn: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr("speedysnn.analysis.noise.layer.supports", lambda *_: False)
    SUMS["absolute"] = Sum("total", "activation", "Absolute error.", lambda block: block.e.abs())
    SUMS["too_high"] = Sum("count", "elements", "Elements with too large an output.", lambda block: block.e > 0)
    SUMS["low"] = Sum("channel", "elements", "Elements with too small an output.", lambda block: block.e < 0)
    SUMS["busy"] = Sum("count", "images", "Images with a spike.", lambda i: i.fired.flatten(1).any(1), "image")
    COLUMNS["mae"] = Column("activation", "Mean absolute error.", False, "0", lambda x: x.total["absolute"] / x.n)
    COLUMNS["unequal"] = Column(
        "fraction", "Elements with an error.", value=lambda x: (x.counts["too_high"] + x.channel["low"].sum()) / x.n
    )
    COLUMNS["busy"] = Column("images", "Images with a spike.", value=lambda x: x.counts["busy"])
    parts = analysis.NoiseSums(snn).add(images(16)).add(images()[16:])
    other = analysis.NoiseSums(snn)
    other.add_state(parts.state())
    layers = other.report().layers
    whole = analysis.measure_noise(snn, torch.cat([images(16), images()[16:]])).layers
    for found in (layers, whole):
        np.testing.assert_allclose(found["unequal"].astype(float), 1 - found["exact"])
        assert (found["mae"] >= found["bias"].abs()).all()
        assert (found["busy"] <= 24).all()
        assert (found["busy"] > 0).all()
    np.testing.assert_allclose(layers["mae"], whole["mae"], rtol=1e-9)


@pytest.mark.usefixtures("registry")
def test_a_users_entry_wins() -> None:
    layer, _ = layer_sums()
    before = row_of(layer.found())
    COLUMNS["gain"] = Column("ratio", "Twice the gain.", value=lambda x: 2 * x.total["ar"] / x.total["aa"])
    assert row_of(layer.found())["gain"] == pytest.approx(2 * before["gain"])
    assert list(row_of(layer.found())) == list(before)
    SUMS["ar"] = Sum("total", "activation^2", "Three times source times output.", lambda b: 3 * b.a * b.r)
    again, _ = layer_sums()
    assert row_of(again.found())["gain"] == pytest.approx(6 * before["gain"])


@pytest.mark.usefixtures("registry")
def test_what_cannot_be_computed_is_refused(snn: Any) -> None:
    COLUMNS["mine"] = Column("ratio", "Nothing.")
    with pytest.raises(InputError, match=r"COLUMNS\['mine'\]: expected a function"):
        analysis.measure_noise(snn, images(4))
    COLUMNS["mine"] = Column("ratio", "Nothing.", value=lambda x: 0.0, after="nowhere")
    with pytest.raises(InputError, match="nowhere"):
        analysis.measure_noise(snn, images(4))
    del COLUMNS["mine"]
    SUMS["mine"] = Sum("unit", "images", "Nothing.", lambda i: i.fired, "image")
    with pytest.raises(InputError, match=r"SUMS\['mine'\]: expected the kind"):
        analysis.measure_noise(snn, images(4))
