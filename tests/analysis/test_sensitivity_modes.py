"""Mixed readings and the modes of sensitivity against a network whose layers are replaced by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from speedysnn import convert
from speedysnn.analysis import evaluate, measure_sensitivity, read_mixed
from speedysnn.analysis.sensitivity.measure import TABLE
from speedysnn.data import load
from speedysnn.encoders import EncodedImages
from tests.material.by_hand import by_hand, readings_of, run_by_hand, sqnr

READINGS = ("analog", "quantized", "spiking")


class Residual(nn.Module):
    """A shortcut, two ways to pool and a layer with a single neuron a channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = torch.relu(self.a(nn.functional.max_pool2d(x, 2)))
        y = torch.relu(self.b(y) + nn.functional.avg_pool2d(x, 2))
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(3)
    images = torch.rand(40, 1, 8, 8)

    def make(**options):
        torch.manual_seed(3)
        return convert.to_spiking(Residual().eval(), images, timesteps=3, granularity="layer", **options)

    return make, images


@pytest.mark.parametrize(("delay", "spikes"), [(0, "binary"), (1, "ternary"), ("full", "graded:2")])
@pytest.mark.parametrize("pool", ["avg", "max"])
def test_one_reading_of_all_layers_is_that_reading(build, digits, pool, delay, spikes):
    snn, x = build(pool, 4, delay, spikes), digits[0][:20]
    for reading in READINGS:
        out = read_mixed(snn, dict.fromkeys(snn.neurons, reading), x)
        torch.testing.assert_close(out, snn.read(reading, x).detach(), rtol=1e-5, atol=1e-6)


def test_events_keep_their_times(build, digits):
    snn = build("max", 4)
    events = (torch.rand(4, 12, 1, 8, 8) < digits[0][:12]).float()
    exact = copy.deepcopy(snn).double()  # in float32 a convolution's order of sums, which its batch decides, would show
    for reading in READINGS:
        out = read_mixed(exact, dict.fromkeys(snn.neurons, reading), events.double())
        torch.testing.assert_close(out, exact.read(reading, events.double()).detach(), rtol=1e-5, atol=1e-6)
    still = read_mixed(snn, dict.fromkeys(snn.neurons, "spiking"), events.mean(0))
    assert not torch.allclose(still, snn.read("spiking", events), atol=1e-3)
    coded = EncodedImages(load("digits", "test", limit=12), 4, "poisson")
    found = measure_sensitivity(snn, coded, gains=("look-ahead",))
    assert found.outputs["sqnr_db"] == pytest.approx(evaluate(snn, coded).sqnr_db, abs=1e-5)
    assert found.gains["layer"].nunique() == len(snn.neurons)


@pytest.mark.parametrize("seed", range(3))
def test_any_mix_is_what_replacing_layers_by_hand_gives(residual, seed):
    make, x = residual
    snn = make(delay=seed % 2)
    picked = torch.randint(3, (len(snn.neurons),), generator=torch.Generator().manual_seed(seed)).tolist()
    readings = {name: READINGS[i] for name, i in zip(snn.neurons, picked, strict=True)}
    assert len(set(picked)) > 1
    expected = run_by_hand(by_hand(snn, readings), x)
    torch.testing.assert_close(read_mixed(snn, readings, x), expected, rtol=1e-5, atol=1e-6)


class Gated(nn.Module):
    """Analog operators between the layers, and a value that may be negative."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.gate, self.head = (
            nn.Linear(64, 12),
            nn.Linear(12, 12),
            nn.Linear(12, 12),
            nn.Linear(12, 3),
        )

    def forward(self, x):
        x = nn.functional.silu(self.a(x.flatten(1)))
        return self.head(torch.relu(self.b(x)) * torch.sigmoid(self.gate(x)))


@pytest.mark.parametrize("which", ["digits", "residual", "gated"])
def test_modes_are_what_replacing_layers_by_hand_gives(build, digits, residual, which):
    if which == "gated":
        torch.manual_seed(1)
        x = torch.randn(40, 64)
        snn = convert.to_spiking(Gated().eval(), x, timesteps=4, allow_hybrid=True)
        assert any(neuron.signed for neuron in snn.neurons.values())
    else:
        snn, x = (build("max", 4), digits[0][:40]) if which == "digits" else (residual[0](), residual[1])
    table = measure_sensitivity(snn, x, gains=False).table
    assert len(table) == 3 * len(snn.neurons)
    assert list(table.columns) == list(TABLE)
    for row in table.to_dict("records"):
        changed = by_hand(snn, readings_of(snn, row["mode"], row["layer"]))
        assert row["sqnr_db"] == pytest.approx(sqnr(snn, changed, (x,)), abs=1e-3), row
        same = run_by_hand(changed, x).argmax(1) == snn.read("analog", x).argmax(1)
        assert row["agreement"] == same.double().mean().item(), row
        assert row["at"] == "output"


def test_modes_at_the_layer_against_taps(build, digits):
    snn, x = build("max", 4), digits[0][:40]
    table = measure_sensitivity(snn, x, modes=("local", "cumulative"), gains=False).table.set_index(["mode", "layer"])
    source, reached = {}, {}
    with torch.no_grad():
        snn.read("analog", x, observer=lambda tap: source.update({tap.name: tap}))
        snn.read("spiking", x, observer=lambda tap: reached.update({tap.name: tap.output}))
    for name, tap in source.items():
        a = tap.output.double()
        own = tap.neuron.quantized(tap.drive).detach()  # constant current: the spikes' mean is the quantizer
        through = reached[name].reshape(4, -1, *a.shape[1:]).mean(0)
        for mode, values in (("local", own), ("cumulative", through)):
            expected = 10 * math.log10(float((a**2).sum() / ((values - a) ** 2).sum()))
            assert table.loc[(mode, name), "sqnr_db"] == pytest.approx(expected, abs=1e-3)
    assert set(table["at"]) == {"layer"}
    assert table["accuracy"].isna().all()


def test_what_the_modes_have_in_common(build, digits):
    snn = build("max", 4)
    found = measure_sensitivity(snn, digits)
    value = {(row["mode"], row["layer"]): row for row in found.table.to_dict("records")}
    names, whole = list(snn.neurons), evaluate(snn, digits)
    for name in ("sqnr_db", "accuracy", "agreement"):
        assert value["prefix", names[-1]][name] == pytest.approx(getattr(whole, name), abs=1e-5)
        assert value["prefix", names[0]][name] == pytest.approx(value["isolated", names[0]][name], abs=1e-5)
        before = value["prefix", names[-2]][name]
        assert value["leave_one_out", names[-1]][name] == pytest.approx(before, abs=1e-4)
    assert found.temporal_gap_db == pytest.approx(whole.temporal_gap_db, abs=1e-5)
    assert found.temporal_gap_db > 0.5
    noise = sum(10 ** (-value["isolated", name]["sqnr_db"] / 10) for name in names)
    assert found.isolated_sum_db == pytest.approx(-10 * math.log10(noise), abs=1e-9)
    assert found.isolated_sum_db == pytest.approx(whole.twin_sqnr_db, abs=1.5)
    assert math.isnan(measure_sensitivity(snn, digits, modes=("prefix",), gains=False, limit=9).isolated_sum_db)
