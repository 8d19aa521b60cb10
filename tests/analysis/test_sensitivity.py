"""Mixed readings against a network whose layers are replaced by hand; gains against the change carried out."""

import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn
from torch.utils.data import Subset

import speedysnn
from speedysnn import analysis, convert
from speedysnn.analysis import evaluate, measure_sensitivity, read_mixed, sensitivity_figures
from speedysnn.analysis.gains import CHANGES
from speedysnn.analysis.score import Score, expected_by_rank, gained
from speedysnn.analysis.sensitivity import GAINS, MODES, TABLE
from speedysnn.data import load
from speedysnn.encoders import EncodedImages
from speedysnn.errors import DataError, InputError

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


def by_hand(snn, readings):
    """A copy whose layers spike the constant that their other reading gives for the mean of their input."""
    out = copy.deepcopy(snn)

    def steady(neuron, reading):
        def spiking(x, *, constant=False, over=False):
            mean = x if constant else x.reshape(neuron.timesteps, -1, *x.shape[1:]).mean(0)
            held = getattr(neuron, reading)(mean)
            return held.repeat(neuron.timesteps, *[1] * (held.ndim - 1))

        return spiking

    for name, neuron in out.neurons.items():
        if readings[name] != "spiking":
            neuron.spiking = steady(neuron, readings[name])
    return out


def run_by_hand(changed, *x):
    """With gradients, since a max-pool without them rounds what it reads to whole spikes."""
    with torch.enable_grad():
        return changed(*x).detach()


def sqnr(snn, changed, x):
    source, reached = snn.read("analog", *x).detach().double(), run_by_hand(changed, *x).double()
    return 10 * math.log10(float((source**2).sum() / ((source - reached) ** 2).sum()))


def readings_of(snn, mode, layer):
    names = list(snn.neurons)
    here = names.index(layer)
    spikes = {"isolated": {here}, "prefix": set(range(here + 1)), "leave_one_out": set(range(len(names))) - {here}}
    return {name: "spiking" if i in spikes[mode] else "analog" for i, name in enumerate(names)}


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
    for reading in READINGS:
        out = read_mixed(snn, dict.fromkeys(snn.neurons, reading), events)
        torch.testing.assert_close(out, snn.read(reading, events).detach(), rtol=1e-5, atol=1e-6)
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


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_change_nothing(build, digits, batch):
    snn, (x, y) = build("max", 4), digits
    whole = measure_sensitivity(snn, (x, y), modes=MODES).to_dict()
    split = list(zip(x.split(batch), y.split(batch), strict=True))
    assert measure_sensitivity(snn, split, modes=MODES).to_dict() == whole


def test_limit_takes_the_first_images(build, digits):
    snn, (x, y) = build("avg", 4), digits
    found = measure_sensitivity(snn, (x, y), limit=30, gains=False)
    assert found.outputs["images"] == 30
    assert found.to_dict() == measure_sensitivity(snn, (x[:30], y[:30]), gains=False).to_dict()


@pytest.mark.parametrize(("delay", "threshold"), [(0, "max"), (1, "mse")])
def test_every_gain_is_what_its_call_gives(delay, threshold):
    data = load("digits", "train", limit=60)
    from speedysnn.assets.digits import load_digits_net

    snn = convert.to_spiking(load_digits_net("max"), data, timesteps=4, threshold=threshold, delay=delay)
    before = evaluate(snn, data)
    sensitivity = measure_sensitivity(snn, data)
    assert set(sensitivity.gains["change"]) == set(CHANGES)
    assert list(sensitivity.gains.columns) == list(GAINS)
    gains = sensitivity.gains["gain_db"].tolist()
    assert gains == sorted(gains, reverse=True)
    assert "changed" not in snn.provenance
    for row in sensitivity.gains.to_dict("records"):
        fresh = copy.deepcopy(snn)
        eval(row["call"], {"snn": fresh, "sensitivity": sensitivity})
        made = {"layer": row["layer"], "change": row["change"], "timesteps": 4}
        assert fresh.provenance["changed"] == [made]
        after = evaluate(fresh, data)
        assert after.sqnr_db == pytest.approx(row["sqnr_db"], abs=1e-4), row
        assert after.sqnr_db - before.sqnr_db == pytest.approx(row["gain_db"], abs=1e-4), row
        assert (after.accuracy, after.agreement) == (row["accuracy"], row["agreement"])
        if row["change"] not in ("bit", "bit+threshold"):
            assert after.twin_sqnr_db - before.twin_sqnr_db == pytest.approx(row["twin_gain_db"], abs=1e-4), row


def test_a_bit_is_twice_the_steps_and_one_in_one_layer(build, digits):
    snn, x = build("avg", 4), digits[0][:40]
    found = measure_sensitivity(snn, x, gains=("bit",))
    before = sqnr(snn, by_hand(snn, dict.fromkeys(snn.neurons, "quantized")), (x,))
    for row in found.gains.to_dict("records"):
        finer = copy.deepcopy(snn)
        finer.neurons[row["layer"]].timesteps = 9
        with torch.no_grad():
            source, out = snn.read("analog", x).double(), finer.read("quantized", x).double()
        after = 10 * math.log10(float((source**2).sum() / ((source - out) ** 2).sum()))
        assert after - before == pytest.approx(row["twin_gain_db"], abs=1e-3)
    spikes = found.changes["relu1", "bit"].neuron
    assert (spikes.spikes, spikes.levels_per_step) == ("graded:2", 2)
    torch.testing.assert_close(spikes.threshold, snn.neurons["relu1"].threshold / 2)


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("pool", ["avg", "max"])
def test_the_best_change_keeps_its_promise_on_other_data(build, pool, delay):
    snn, other = build(pool, 4, delay), load("digits", "test")
    found = measure_sensitivity(snn, load("digits", "train"), modes=())
    promised = found.gains["gain_db"].iloc[0]
    before = evaluate(snn, other).sqnr_db
    realised = evaluate(found.apply(copy.deepcopy(snn)), other).sqnr_db - before
    assert promised > 0.5
    assert 0.7 * promised < realised < 1.3 * promised


def test_changes_of_one_layer_add_up(build, digits):
    snn, x = build("avg", 4), digits[0][:40]
    found = measure_sensitivity(snn, x, modes=())
    for kind in ("bias", "look-ahead", "bit"):
        found.apply(snn, "relu2", kind)
    neuron = snn.neurons["relu2"]
    assert (neuron.delay, neuron.spikes) == (1, "graded:2")
    assert torch.equal(neuron.offset, found.changes["relu2", "bias"].neuron.offset)
    torch.testing.assert_close(neuron.threshold, found.changes["relu2", "bit"].neuron.threshold)
    assert [made["change"] for made in snn.provenance["changed"]] == ["bias", "look-ahead", "bit"]


def test_a_layer_that_sees_everything_cannot_look_further(build, digits):
    found = measure_sensitivity(build("avg", 4, "full"), digits[0][:20], gains=("look-ahead", "bit"))
    assert set(found.gains["change"]) == {"bit"}
    assert found.temporal_gap_db == 0
    with pytest.raises(InputError, match="no change of relu1"):
        measure_sensitivity(build("avg", 4, "full"), digits[0][:9], gains=("look-ahead",)).apply(build(), "relu1")


def test_theta_star_undoes_a_wrong_threshold(build):
    snn, data = build("avg", 4, 1), load("digits", "train", limit=100)
    right = snn.neurons["relu3"].threshold.detach().clone()
    snn.neurons["relu3"].set_threshold(6 * right)
    found = measure_sensitivity(snn, data, gains=("threshold",))
    assert (found.gains["layer"].iloc[0], found.gains["change"].iloc[0]) == ("relu3", "threshold")
    assert found.gains["gain_db"].iloc[0] > 1
    torch.testing.assert_close(found.apply(snn).neurons["relu3"].threshold, right)


def test_theta_star_is_found_without_a_calibration(build):
    data = load("digits", "train", limit=200)
    snn, bare = build("avg", 4), build("avg", 4)
    bare.calibration.histograms.clear()
    stored, own = (measure_sensitivity(net, data, modes=(), gains=("threshold",)) for net in (snn, bare))
    for key, change in stored.changes.items():
        torch.testing.assert_close(own.changes[key].neuron.threshold, change.neuron.threshold, rtol=1e-5, atol=0)


def test_the_bias_takes_the_mean_error_away(build, digits):
    snn, x = build("max", 4), digits[0]
    found = measure_sensitivity(snn, x, modes=(), gains=("bias",))

    def errors(network):
        source, reached = {}, {}
        with torch.no_grad():
            network.read("analog", x, observer=lambda tap: source.update({tap.name: tap.output.double()}))
            network.read("spiking", x, observer=lambda tap: reached.update({tap.name: tap.output.double()}))
        dims = {name: [i for i in range(value.ndim) if i != 1] for name, value in source.items()}
        return {name: (reached[name].mean(dims[name]) - source[name].mean(dims[name])).abs() for name in source}

    before = errors(snn)
    for (layer, kind), change in found.changes.items():
        after = errors(found.apply(copy.deepcopy(snn), layer, kind))[layer]
        assert bool((after <= before[layer] + 1e-6).all())
        assert after.mean() < 0.8 * before[layer].mean()
        assert change.settings()["offset"] == change.neuron.offset.tolist()


def test_recalibrating_takes_a_bias_back_and_a_file_keeps_it(build, digits, tmp_path):
    snn, x = build("avg", 4), digits[0][:40]
    plain = snn(x).detach()
    measure_sensitivity(snn, x, modes=(), gains=("bias",)).apply(snn)
    changed = snn(x).detach()
    assert not torch.allclose(changed, plain)
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    torch.testing.assert_close(again(x).detach(), changed)
    torch.testing.assert_close(again.recalibrate()(x).detach(), plain)


def test_the_standard_error_is_that_of_other_samples(build):
    """Gains measured on disjoint samples of 100 images scatter as each one's own standard error says."""
    snn, data = build("avg", 4), load("digits", "train")
    parts = [Subset(data, range(start, start + 100)) for start in range(0, 1200, 100)]
    tables = [measure_sensitivity(snn, part, modes=(), gains=("bit", "look-ahead")).gains for part in parts]
    joined = pd.concat(tables)
    joined = joined[joined["gain_se_db"] > 0]
    ratios = []
    for _, rows in joined.groupby(["layer", "change"]):
        assert len(rows) == len(parts)
        ratios.append(rows["gain_db"].std() / math.sqrt((rows["gain_se_db"] ** 2).mean()))
    assert len(ratios) == 9  # the first layer's input is constant: looking ahead changes nothing
    assert 0.75 < sum(ratios) / len(ratios) < 1.25


def state(snn):
    return {
        "timesteps": snn.timesteps,
        "reading": snn.present_reading,
        "neurons": [(id(n), n.timesteps, n.delay, n.spikes, n.reading, n.offset) for n in snn.neurons.values()],
        "pointers": {name: (v.data_ptr(), v._version, v.double().sum().item()) for name, v in snn.state_dict().items()},
        "grad": [(p.requires_grad, p.grad is None) for p in snn.parameters()],
        "modes": [m.training for m in snn.modules()],
        "provenance": json.dumps(snn.provenance, sort_keys=True),
        "enabled": torch.is_grad_enabled(),
    }


def test_the_network_is_left_as_it_is(build, digits, monkeypatch):
    snn = build("max", 4, 1)
    snn.train()
    before = state(snn)
    measure_sensitivity(snn, digits, modes=MODES)
    assert state(snn) == before

    def broken():
        yield digits[0][:20]
        raise OSError("gone")

    with pytest.raises(DataError, match="gone"):
        measure_sensitivity(snn, broken())
    assert state(snn) == before
    for place in ("layer_seen.channel_sums", "score.flat", "mixed.MixedRun.outputs"):
        with monkeypatch.context() as patch:
            patch.setattr(f"speedysnn.analysis.{place}", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                measure_sensitivity(snn, digits)
        assert state(snn) == before


def test_labels_are_optional_and_figures_are_json(build, digits):
    snn = build("avg", 4)
    found = measure_sensitivity(snn, digits[0][:30])
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["schema"] == "speedysnn-sensitivity/1"
    assert document["temporal_gap_db"] == found.temporal_gap_db
    assert {row["accuracy"] for row in document["table"]} == {None}
    assert all(0 <= row["agreement"] <= 1 for row in document["table"])
    assert set(document["modes"]) == set(found.table["mode"])
    first = document["gains"][0]
    assert first["call"] == f"sensitivity.apply(snn, {first['layer']!r}, {first['change']!r})"
    assert set(first["settings"]) == {"theta", "spikes", "delay", "offset"}


def test_save_writes_whole_files(build, digits, tmp_path):
    found = measure_sensitivity(build("avg", 4), digits[0][:20], modes=MODES)
    folder = found.save(tmp_path / "out")
    expected = ["gains.csv", "gains.png", "sensitivity.csv", "sensitivity.json", "sensitivity.png",
                "sensitivity_layers.png"]  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == expected
    assert json.loads((folder / "sensitivity.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    found.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="a file is there"):
        found.save(tmp_path / "file")


def test_figures_draw_what_the_tables_hold(build, digits):
    found = measure_sensitivity(build("max", 4), digits[0][:20])
    drawn = sensitivity_figures.all_figures(found)
    assert set(drawn) == {"sensitivity", "gains"}
    axes = drawn["sensitivity"].axes[0]
    lines = {line.get_label().partition(":")[0]: line for line in axes.lines}
    for mode in ("isolated", "prefix"):
        expected = found.table.loc[found.table["mode"] == mode, "sqnr_db"].tolist()
        assert list(lines[mode].get_ydata()) == expected
    assert list(lines["quantized reading of all layers (twin)"].get_ydata()) == [found.outputs["twin_sqnr_db"]] * 2
    assert f"{found.temporal_gap_db:.1f} dB" in axes.get_title("left")
    bars = sorted((bar.get_y(), bar.get_width()) for bar in drawn["gains"].axes[0].patches)
    assert [width for _, width in bars] == found.gains["gain_db"].head(len(bars)).tolist()


class Deep(nn.Module):
    """Twenty layers under long names."""

    def __init__(self):
        super().__init__()
        names = [f"a_stage_with_a_long_name_{i}" for i in range(20)]
        self.stages = nn.ModuleDict({name: nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for name in names})
        self.head = nn.Linear(8, 3)
        for stage in self.stages.values():
            nn.init.uniform_(stage[0].weight, 0.05, 0.2)

    def forward(self, x):
        for stage in self.stages.values():
            x = stage(x)
        return self.head(x)


def test_twenty_layers_overlap_nowhere():
    x = torch.rand(12, 8)
    snn = convert.to_spiking(Deep().eval(), x, timesteps=2)
    assert len(snn.neurons) == 20
    for name, figure in sensitivity_figures.all_figures(measure_sensitivity(snn, x, modes=MODES)).items():
        FigureCanvasAgg(figure).draw()
        axes, legend = figure.axes[0], figure.legends[0].get_window_extent()
        ticks = axes.get_yticklabels() if name == "gains" else axes.get_xticklabels()
        boxes = [label.get_window_extent() for label in ticks]
        assert len(boxes) == 20
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]), name
        page = figure.bbox
        parts = [*boxes, legend, axes.xaxis.label.get_window_extent(), axes.title.get_window_extent()]
        assert all(page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 for box in parts), name
        assert not any(legend.overlaps(box) for box in [*boxes, axes.bbox]), name


def test_the_verdict_puts_timing_first(build):
    data = load("digits", "train", limit=200)
    found = measure_sensitivity(build("max", 4, 0), data)
    gap, timing, spared, alone, best, everywhere = found.verdict
    assert f"a temporal gap of {found.temporal_gap_db:.1f} dB" in gap
    assert "look-ahead 0, latency 4 steps" in gap
    assert timing.startswith("Spike timing comes before any layer")
    table = found.table.set_index(["mode", "layer"])["sqnr_db"]
    assert f"Left analog alone, {table['leave_one_out'].idxmax()} would give" in spared
    assert f"Spiking alone, {table['isolated'].idxmin()} costs most" in alone
    assert found.gains["call"].iloc[0] in best
    assert "In the shell: speedysnn " in everywhere
    assert "chance" not in best
    calm = measure_sensitivity(build("max", 4, 1), data, modes=(), gains=("look-ahead",)).verdict
    assert calm[1:] == ("No change of a single layer that was measured would gain 0.1 dB at the output.",)


def test_a_network_without_noise_is_infinitely_good():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    nn.init.constant_(net[1].weight, 0.25)
    nn.init.zeros_(net[1].bias)
    x = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    snn = convert.to_spiking(net, x, timesteps=2, threshold="max")
    found = measure_sensitivity(snn, x)
    assert found.outputs["sqnr_db"] == math.inf
    assert found.temporal_gap_db == 0
    assert found.gains.set_index("change")["gain_db"]["bit"] == 0
    assert "undefined" not in " ".join(found.verdict)
    assert found.to_dict()["table"][0]["sqnr_db"] == "inf"
    assert set(sensitivity_figures.all_figures(found)) == {"sensitivity", "gains"}


def test_what_is_refused(build, digits):
    snn, x = build("avg", 4), digits[0][:10]
    with pytest.raises(InputError, match="modes: expected some of local, .* got 'prefx'"):
        measure_sensitivity(snn, x, modes=("prefx",))
    with pytest.raises(InputError, match="gains: expected some of bit, .* got 'bits'"):
        measure_sensitivity(snn, x, gains=("bits",))
    with pytest.raises(InputError, match="got neither"):
        measure_sensitivity(snn, x, modes=(), gains=False)
    with pytest.raises(InputError, match="T = 4 steps in front"):
        measure_sensitivity(snn, torch.rand(3, 10, 1, 8, 8))
    with pytest.raises(DataError, match="does not run on a batch"):
        measure_sensitivity(snn, torch.rand(10, 3, 8, 8))
    with pytest.raises(InputError, match="no neuron layer is called 'relu9'"):
        read_mixed(snn, {"relu9": "analog"}, x)
    with pytest.raises(InputError, match="got 'spikes'"):
        read_mixed(snn, {"relu1": "spikes"}, x)
    found = measure_sensitivity(snn, x, gains=("bit",))
    for arguments in (("relu1", "bias"), ("relu9", "bit"), ("relu9",)):
        with pytest.raises(InputError, match="apply:"):
            found.apply(snn, *arguments)
    with pytest.raises(InputError, match="measure with gains=True"):
        measure_sensitivity(snn, x, gains=False).apply(snn)
    other = convert.to_spiking(nn.Sequential(nn.Flatten(), nn.ReLU()), x, timesteps=2)
    with pytest.raises(InputError, match="has no neuron layer 'relu"):
        found.apply(other)
    snn.neurons["relu1"].set_threshold(1.0)
    with pytest.raises(InputError, match="relu1.* has 1 thresholds, the one that was measured"):
        found.apply(snn, "relu1", "bit")


def test_progress_goes_to_stderr(build, digits, capfd):
    measure_sensitivity(build("avg", 4), digits[0][:10], gains=False, progress=True)
    assert capfd.readouterr().out == ""


def test_it_is_part_of_the_room():
    assert {"measure_sensitivity", "Sensitivity", "read_mixed"} <= set(vars(analysis))


def test_the_expected_gain_of_the_best_rank_is_not_optimistic() -> None:
    """Sixty changes of known gain, images as noise: the measured best is too high, the expected one is not."""
    measured, expected, realised = [], [], []
    generator = np.random.default_rng(0)
    for _ in range(150):
        true = 10 ** (-generator.uniform(0, 0.3, 60) / 10)  # noise left by each change, of 1
        before, after = Score(), [Score() for _ in true]
        images = generator.gamma(1.0, 1.0, 80)
        before.each, before.noise = images.tolist(), float(images.sum())
        for score, left in zip(after, true, strict=True):
            own = images * left * generator.gamma(2.0, 0.5, 80)
            score.each, score.noise = own.tolist(), float(own.sum())
        best = min(range(60), key=lambda i: after[i].noise)
        measured.append(gained(before, after[best])[0])
        expected.append(expected_by_rank(before, after)[0])
        realised.append(-10 * np.log10(true[best]))
    error = np.std(np.array(expected) - realised) / np.sqrt(150)
    assert np.mean(measured) - np.mean(realised) > 0.5
    assert abs(np.mean(expected) - np.mean(realised)) < 3 * error + 0.02


def test_expected_gains_by_hand() -> None:
    """Two changes, four images, two folds: each fold is measured on what the other ranked."""
    before, first, second = Score(), Score(), Score()
    for score, each in ((before, [4.0, 4.0, 4.0, 4.0]), (first, [1.0, 3.0, 1.0, 3.0]), (second, [2.0, 2.0, 2.0, 2.5])):
        score.each, score.noise = each, sum(each)
    # without the even images the second is best (4.5 < 6), without the odd ones the first (2 < 4)
    best, rest = expected_by_rank(before, [first, second], folds=2)
    assert best == pytest.approx(10 * np.log10(16 / ((2 + 2) + (3 + 3))))
    assert rest == pytest.approx(10 * np.log10(16 / ((1 + 1) + (2 + 2.5))))
    assert np.isnan(expected_by_rank(before, [], folds=2) or [np.nan]).all()


def test_finalists_are_ranked_and_predicted_by_the_other_images_alone(build, digits) -> None:
    snn, (x, y) = build("avg"), digits
    first, second = (x[:30], y[:30]), (x[30:], y[30:])
    alone = measure_sensitivity(snn, first, modes=())
    found = measure_sensitivity(snn, first, modes=(), confirm=second, finalists=3)
    assert list(found.gains.columns) == list(GAINS)
    assert found.gains["images"].tolist() == [100] * 3 + [30] * (len(alone.gains) - 3)
    pd.testing.assert_frame_equal(found.gains[3:], alone.gains[3:])
    assert set(found.gains["call"][:3]) == set(alone.gains["call"][:3])
    assert found.gains["gain_db"][:3].is_monotonic_decreasing
    screened = alone.gains.set_index("call")["gain_db"]
    before = evaluate(snn, second).sqnr_db
    for row in found.gains[:3].itertuples():
        assert row.screened_db == screened[row.call] != row.gain_db
        changed = found.apply(copy.deepcopy(snn), row.layer, row.change)
        assert evaluate(changed, second).sqnr_db - before == pytest.approx(row.gain_db, abs=1e-3)
    for wrong in (0, 1.5, True):
        with pytest.raises(InputError, match="finalists"):
            measure_sensitivity(snn, first, confirm=second, finalists=wrong)
