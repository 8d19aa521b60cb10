"""The noise's distribution, its correlations, neurons by name, latency and membranes: numpy beside every figure."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from speedysnn.analysis import COLUMNS, measure_noise
from speedysnn.analysis.noise import layer_totals, moments
from speedysnn.analysis.noise.moments import lag_one, lateness
from speedysnn.analysis.report.figures import figure_noise_distribution
from speedysnn.convert import to_spiking
from speedysnn.errors import InputError

CASES = [("avg", 0, "binary"), ("max", 1, "ternary"), ("max", 2, "graded:2"), ("avg", "full", "binary")]

TIMED = ("first_spike", "never_fired", "start_up", "lateness", "membrane_outside", "step_correlation")

NEW = ("remaining_share", "bias_gain_db", "noise_mean", "noise_variance", "noise_skew", "noise_kurtosis", "round_mean",
       "round_variance", "round_skew", "round_kurtosis", "round_ks", "exact", "signal_correlation",
       "channel_correlation", "channels_compared", "units", "dead_units", "lost_units", "saturated_units",
       *TIMED)  # fmt: skip


def observed(snn, x):
    """Per layer: source drive, the spiking reading's drives (T or 1, ...), its trains; float32 as they came."""
    source, seen = {}, {}
    with torch.no_grad():
        snn.read("analog", x, observer=lambda tap: source.update({tap.name: tap.drive.numpy()}))

        def look(tap):
            steps = tap.neuron.timesteps
            drive, out = tap.drive.numpy(), tap.output.numpy()
            seen[tap.name] = (drive[None] if tap.static_drive else drive.reshape(steps, -1, *drive.shape[1:]),
                              out[None] if tap.static_output else out.reshape(steps, -1, *out.shape[1:]))  # fmt: skip

        snn.read("spiking", x, observer=look)
    return {name: (source[name], *seen[name]) for name in source}


def constants(neuron, ndim):
    shape = (1, -1, *[1] * (ndim - 2))
    return neuron.threshold.detach().numpy().reshape(shape), float(neuron.v_init.detach())


def errors(neuron, z, trains):
    """The error, and the rounding error inside the range, both in steps."""
    theta, v = constants(neuron, z.ndim)
    most, step = neuron.timesteps * neuron.levels_per_step, theta.astype(np.float64) / neuron.timesteps
    fired = np.rint(trains.astype(np.float64).mean(0) / step)
    inside = (z > 0) & (z < most * step)
    aimed = np.clip(np.floor(z * np.float32(neuron.timesteps) / theta + np.float32(v)), 0, most)
    return fired * step - np.maximum(z, 0), step, (aimed - z / step)[inside], fired


def distribution(neuron, z, trains):
    e, step, g, _ = errors(neuron, z, trains)
    x, v = (e / step).ravel(), float(neuron.v_init.detach())
    edges = np.linspace(-1, 1, 65)
    reached = np.searchsorted(np.sort(g), edges) / g.size
    flat = np.moveaxis(e, 1, -1).reshape(-1, e.shape[1])
    found = np.abs(np.corrcoef(flat[:, flat.std(0) > 0].T))
    constant = np.mean(flat, 0)
    after = ((flat - constant) ** 2).sum() / (flat**2).sum()
    return {
        "noise_mean": x.mean(), "noise_variance": x.var(), "noise_skew": stats.skew(x),
        "noise_kurtosis": stats.kurtosis(x, fisher=False), "round_mean": g.mean(), "round_variance": g.var(),
        "round_skew": stats.skew(g), "round_kurtosis": stats.kurtosis(g, fisher=False),
        "round_ks": np.abs(reached - np.clip(edges - (v - 1), 0, 1)).max(), "exact": (e == 0).mean(),
        "signal_correlation": np.corrcoef(e.ravel(), np.maximum(z, 0).ravel())[0, 1],
        "channel_correlation": (found.sum() - len(found)) / len(found) / (len(found) - 1),
        "channels_compared": e.shape[1], "remaining_share": after, "bias_gain_db": -10 * math.log10(after),
    }  # fmt: skip


def neurons(neuron, z, trains):
    fired, most = errors(neuron, z, trains)[3], neuron.timesteps * neuron.levels_per_step
    dead = (fired == 0).all(0)
    return {
        "units": z[0].size, "dead_units": dead.sum(), "lost_units": (dead & (z > 0).any(0)).sum(),
        "saturated_units": ((abs(fired) == most).mean(0) >= 0.5).sum(),
    }  # fmt: skip


def timing(neuron, drives, trains):
    theta, v = constants(neuron, trains[0].ndim)
    steps, spiked = len(trains), trains != 0
    when = np.where(spiked.any(0), spiked.argmax(0) + 1, 0)
    first = np.where(when == 0, steps + 1, when).reshape(len(when), -1).min(1)
    total = drives[0] if len(drives) > 1 else drives[0] * np.float32(steps)
    for drive in drives[1:]:
        total = total + drive
    membrane = total / theta + np.float32(v) - np.rint(trains.sum(0) / theta)
    fired = np.rint(trains.sum(0) / theta)
    pinned = ((fired == 0) & (membrane < 0)) | ((fired == steps) & (membrane >= 1))
    mean = drives.astype(np.float64).mean(0) / theta
    inside = (mean > 0) & (mean < neuron.levels_per_step)
    d = (trains / theta.astype(np.float64) - mean)[:, inside]
    pulses = spiked.reshape(steps, -1).sum(1)
    plain = neuron.spikes == "binary" and neuron.delay == 0
    return {
        "first_spike": when[when > 0].mean(), "never_fired": (when == 0).mean(),
        "start_up": first[first <= steps].mean(),
        "lateness": (pulses * np.arange(1, steps + 1)).sum() / pulses.sum() - (steps + 1) / 2,
        "membrane_outside": (((membrane < 0) | (membrane >= 1)) & ~pinned).mean() if plain else None,
        "step_correlation": (d[1:] * d[:-1]).mean() / (d**2).mean(),
    }  # fmt: skip


@pytest.mark.parametrize(("pool", "delay", "spikes"), CASES)
def test_every_new_column_is_what_numpy_finds(build, digits, pool, delay, spikes):
    snn, x = build(pool, 4, delay, spikes), digits[0][:16]
    layers = measure_noise(snn, x, detail="full").layers.set_index("layer")
    for name, (z, drives, trains) in observed(snn, x).items():
        neuron, row = snn.neurons[name], layers.loc[name]
        expected = {**distribution(neuron, z, trains), **neurons(neuron, z, trains)}
        expected.update(dict.fromkeys(TIMED) if delay == "full" else timing(neuron, drives, trains))
        assert set(expected) == set(NEW)
        for column, value in expected.items():
            if value is None:
                assert pd.isna(row[column]), (name, column)
            else:
                near = 2e-4 if column.endswith("_ks") else 1e-9  # a value on an edge belongs to the bin above it
                assert row[column] == pytest.approx(value, rel=2e-6, abs=near), (name, column)


@pytest.mark.parametrize(("pool", "delay", "spikes"), [CASES[0], CASES[1]])
def test_details_are_what_numpy_finds(build, digits, pool, delay, spikes):
    snn, x = build(pool, 4, delay, spikes), digits[0][:16]
    report, edges = measure_noise(snn, x), np.concatenate([[-np.inf], np.linspace(-1, 1, 65), [np.inf]])
    for name, (z, _, trains) in observed(snn, x).items():
        detail, neuron = report.details[name], snn.neurons[name]
        e, step, g, fired = errors(neuron, z, trains)
        whole = (e / step)[e != 0]
        for counts, values in ((detail.rounding, g), (detail.noise, whole)):
            expected = np.diff([(values < edge).sum() for edge in edges])
            assert (counts == expected).all(), name
        assert detail.expected.sum() == pytest.approx(1)
        assert detail.expected[17:49] == pytest.approx(1 / 32)  # v_init = 1/2: [-1/2, 1/2]
        assert list(detail.spikes_per_step) == [np.count_nonzero(train) for train in trains]
        dead = {tuple(map(int, at)) for at in np.argwhere((fired == 0).all(0))}
        assert len(dead) == detail.units.dead
        assert {unit.index for unit in detail.units.first_dead} <= dead
        assert len(detail.units.first_dead) == min(100, len(dead))
        for unit in detail.units.first_dead:
            assert unit.value == np.maximum(z[(slice(None), *unit.index)], 0).max()
            assert str(unit) == f"{name}[{', '.join(map(str, unit.index))}]"
        share = (abs(fired) == neuron.timesteps * neuron.levels_per_step).mean(0)
        listed = [unit.value for unit in detail.units.worst_saturated]
        assert listed == sorted(share[share > 0].ravel(), reverse=True)[:100]
        assert all(share[unit.index] == unit.value for unit in detail.units.worst_saturated)
        flat = np.moveaxis(e, 1, -1).reshape(-1, e.shape[1])
        channels = detail.channels
        np.testing.assert_allclose(channels["bias"], flat.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(channels["variance"], flat.var(0), rtol=1e-9, atol=1e-12)
        moving = flat.std(0) > 0
        np.testing.assert_allclose(channels["skew"][moving], stats.skew(flat[:, moving]), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(
            channels["kurtosis"][moving], stats.kurtosis(flat[:, moving], fisher=False), rtol=1e-6
        )


@pytest.mark.parametrize(("pool", "delay", "spikes"), [CASES[0], CASES[1]])
def test_no_new_figure_depends_on_the_batches(build, digits, pool, delay, spikes):
    snn, (x, y) = build(pool, 4, delay, spikes), digits
    whole = measure_noise(snn, digits, detail="full")
    for size in (1, 7, 64):
        batches = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
        split = measure_noise(snn, batches, detail="full")
        for column in NEW:
            both = [table.layers[column].to_numpy(float) for table in (split, whole)]
            np.testing.assert_allclose(*both, rtol=1e-9, atol=1e-12, err_msg=column)
        for name, detail in whole.details.items():
            assert split.details[name].to_json() == detail.to_json()


def test_a_membrane_is_not_measured_for_other_kinds(build, digits):
    for delay, spikes in ((1, "binary"), (0, "ternary"), (0, "graded:2"), ("full", "binary")):
        report = measure_noise(build("max", 4, delay, spikes), digits[0][:8])
        assert report.layers["membrane_outside"].isna().all()
        data = json.loads(json.dumps(report.to_json(), allow_nan=False))
        assert all(row["membrane_outside"] is None for row in data["layers"])
        assert "look-ahead" in data["reasons"]["layers[0].membrane_outside"]
    assert measure_noise(build(), digits[0][:8]).layers["membrane_outside"].iloc[1:].max() > 0


@pytest.mark.parametrize("start", [0.0, 0.25, 0.5])
def test_uniform_drive_has_the_uniform_law(start):
    x = torch.rand(400, 100, generator=torch.Generator().manual_seed(0))
    snn = to_spiking(nn.Sequential(nn.ReLU()), x, 4, threshold="max", granularity="layer", v_init=start)
    row = measure_noise(snn, x).layers.iloc[0]
    assert row["round_ks"] < 0.01
    assert row["round_mean"] == pytest.approx(start - 0.5, abs=0.01)
    assert row["round_variance"] == pytest.approx(1 / 12, rel=0.02)
    assert row["round_kurtosis"] == pytest.approx(1.8, rel=0.02)
    assert abs(row["round_skew"]) < 0.05
    other = to_spiking(nn.Sequential(nn.ReLU()), x, 4, threshold="max", granularity="layer", v_init=start)
    assert measure_noise(other, x**4).layers.iloc[0]["round_ks"] > 0.05  # far from uniform inside a step


def test_compared_channels():
    assert moments.compared(5).tolist() == [0, 1, 2, 3, 4]
    drawn = moments.compared(1000)
    assert len(drawn) == len(set(drawn.tolist())) == 512
    assert drawn.tolist() == sorted(drawn.tolist()) == moments.compared(1000).tolist()
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 3] = 2.0  # constant: left out
    found = moments.mean_abs_correlation(moments.gram(x), x.sum(0), 50)
    kept = np.abs(np.corrcoef(np.delete(x.numpy(), 3, 1).T))
    assert found == pytest.approx((kept.sum() - 6) / 30)
    assert math.isnan(moments.mean_abs_correlation(moments.gram(x[:, 3:4]), x[:, 3:4].sum(0), 50))


def test_a_wide_layer_compares_a_sample():
    x = torch.rand(20, 600, generator=torch.Generator().manual_seed(0))
    snn = to_spiking(nn.Sequential(nn.ReLU()), x, 4)
    row = measure_noise(snn, x, detail="full").layers.iloc[0]
    assert row["channels_compared"] == 512
    assert 0 < row["channel_correlation"] < 1
    assert pd.isna(measure_noise(snn, x).layers.iloc[0]["channel_correlation"])


def test_lag_and_lateness():
    assert lag_one(2.0, 1.0, 1) is None
    assert lag_one(4.0, -3.0, 4) == pytest.approx(-1)
    assert math.isnan(lag_one(0.0, 0.0, 3))
    assert lateness([3]) is None
    assert lateness([5, 5, 5]) == 0
    assert lateness([0, 0, 5]) == 1
    assert math.isnan(lateness([0, 0]))


def test_many_names_are_cut_to_the_worst_in_order():
    peak = torch.zeros(300)
    peak[[7, 250]] = torch.tensor([1.0, 3.0])
    found = layer_totals.summary("net.relu", (3, 100), 4, torch.zeros(300), torch.zeros(300), peak)
    assert (found.dead, found.lost, found.saturated, found.worst_saturated) == (300, 2, 0, ())
    assert [unit.index for unit in found.first_dead[:4]] == [(2, 50), (0, 7), (0, 0), (0, 1)]
    assert len(found.first_dead) == 100
    assert str(found.first_dead[0]) == "net.relu[2, 50]"


def test_json_and_csv_hold_everything(build, digits, tmp_path):
    report = measure_noise(build(), digits, detail="full")
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(NEW) <= set(COLUMNS)
    assert set(NEW) <= set(data["layers"][0])
    assert list(data["details"]) == list(report.layers["layer"])
    for name, detail in data["details"].items():
        assert len(detail["rounding"]) == len(detail["noise"]) == len(detail["expected"]) == 66
        assert len(detail["channels"]["bias"]) == len(report.details[name].channels)
        assert len(detail["dead"]) == min(100, report.layers.set_index("layer").loc[name, "dead_units"])
        assert len(detail["spikes_per_step"]) == 4
    table = pd.read_csv(report.save(tmp_path / "r") / "layers.csv")
    for name in NEW:
        np.testing.assert_allclose(table[name], report.layers[name].astype(float), err_msg=name)


def test_detail_is_checked(build, digits):
    with pytest.raises(InputError, match="detail: expected one of 'standard', 'full', got 'most'"):
        measure_noise(build(), digits[0][:4], detail="most")


def test_the_figure_states_the_distance(build, digits, tmp_path):
    report = measure_noise(build(), digits)
    for name in report.details:
        figure = figure_noise_distribution(report, name)
        said = f"KS {report.layers.set_index('layer').loc[name, 'round_ks']:.4f}"
        assert said in figure.axes[0].get_title(loc="left")
        figure.savefig(tmp_path / "noise.png")
        assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")
        for axes, counts in zip(figure.axes, (report.details[name].rounding, report.details[name].noise), strict=True):
            drawn = axes.patches[0].get_data()
            inside = counts[1:-1].sum() / counts.sum()
            assert (drawn.values * np.diff(drawn.edges)).sum() == pytest.approx(inside)
    with pytest.raises(InputError, match="expected one of the report's neuron layers"):
        figure_noise_distribution(report, "conv1")


def test_the_figure_of_a_silent_layer():
    x = torch.rand(8, 10)
    snn = to_spiking(nn.Sequential(nn.ReLU()), x, 4)
    report = measure_noise(snn, -x)
    figure = figure_noise_distribution(report, "0")
    figure.savefig("/dev/null", format="png")
    assert "no such element" in figure.axes[0].get_title(loc="left")
    row = report.layers.iloc[0]
    assert (row["dead_units"], row["lost_units"], row["never_fired"], row["exact"]) == (10, 0, 1, 1)
    assert math.isnan(row["round_ks"])
