"""The noise's distribution, its correlations, neurons by name, latency and membranes: numpy beside every figure."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from speedysnn.analysis import COLUMNS, measure_noise, moments, units
from speedysnn.analysis.details import detail_of
from speedysnn.analysis.latency import lag_one, lateness
from speedysnn.analysis.layers import LayerSums
from speedysnn.analysis.noise_figures import figure_noise_distribution
from speedysnn.analysis.rows import row_of
from speedysnn.convert import to_spiking
from speedysnn.errors import InputError
from speedysnn.executor import Tap
from speedysnn.neurons import IFNeuron

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


KINDS = [{}, {"spikes": "ternary"}, {"spikes": "graded:2", "delay": 1}, {"floor": None}]


def one_layer(seed, images, steps, start, kind, granularity):
    """A neuron, its source drive (B, 3, 2, 2) and what it saw and did: drives and trains, (T, B, 3, 2, 2)."""
    rng = torch.Generator().manual_seed(seed)
    theta = torch.tensor([0.7, 1.0, 1.6]) if granularity == "channel" else 1.1
    neuron = IFNeuron(theta, start, timesteps=steps, **kind)
    z = torch.randn(images, 3, 2, 2, generator=rng)
    drive = z + 0.7 * torch.randn(steps, images, 3, 2, 2, generator=rng)
    with torch.no_grad():
        trains = neuron.spiking(drive.flatten(0, 1)).view_as(drive)
    return neuron, z, drive, trains


def sums_of(neuron, z, drive, trains, full=True):
    sums = LayerSums("layer", neuron, full)
    with torch.no_grad():
        tap = Tap("layer", neuron, drive.flatten(0, 1), trains.flatten(0, 1), False, False)
        sums.update(z, neuron, neuron.quantized(z), tap)
    return sums


def close(a, b):
    for name in a:
        if isinstance(a[name], float):
            assert b[name] == pytest.approx(a[name], rel=1e-9, abs=1e-10, nan_ok=True), name
        else:
            assert b[name] == a[name], name


layer_cases = st.tuples(st.integers(0, 9), st.integers(2, 12), st.integers(1, 5), st.sampled_from([0.0, 0.3, 0.5, 1.0]),
                        st.sampled_from(KINDS), st.sampled_from(["channel", "layer"]))  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(layer_cases, st.data())
def test_any_split_merged_is_the_whole(case, data):
    neuron, z, drive, trains = one_layer(*case)
    whole = sums_of(neuron, z, drive, trains)
    order = data.draw(st.permutations(range(len(z))))
    cut = data.draw(st.integers(1, len(z) - 1))
    parts = [sums_of(neuron, z[at], drive[:, at], trains[:, at]) for at in (order[:cut], order[cut:])]
    merged = LayerSums("layer", neuron, True)
    merged.merge(parts[0])
    merged.add_state(parts[1].state())
    for name in ("counts", "bins", "pulses", "fires", "full", "peak", "events"):  # whole numbers and maxima: exactly
        assert torch.equal(merged.sums[name], whole.sums[name]), name
    close(row_of(whole.found()), row_of(merged.found()))
    assert detail_of(whole.found()).units == detail_of(merged.found()).units


@settings(max_examples=40, deadline=None)
@given(layer_cases)
def test_identities(case):
    neuron, z, drive, trains = one_layer(*case)
    row, sums = row_of(sums_of(neuron, z, drive, trains).found()), sums_of(neuron, z, drive, trains)
    detail = detail_of(sums.found())
    if row["share_clip"] == row["share_clip"]:
        assert row["bias_share"] + row["remaining_share"] == pytest.approx(1)
        assert row["noise_variance"] + row["noise_mean"] ** 2 == pytest.approx(row["rmse_steps"] ** 2)
    assert detail.noise.sum() + round(row["exact"] * row["n"]) == row["n"]
    assert detail.rounding.sum() == float(sums.found().channel["granular"].sum())
    assert (sums.sums["bins"].sum(1) == row["n"]).all()
    v = float(neuron.v_init.detach())
    outside = (moments.EDGES[1:] <= v - 1) | (moments.EDGES[:-1] > v)
    assert detail.rounding[1:-1][outside].sum() == 0  # rounding never leaves [v - 1, v]
    assert detail.rounding[0] + detail.rounding[-1] == 0 or v == 1
    assert 0 <= row["round_ks"] <= 1 or detail.rounding.sum() == 0
    assert row["dead_units"] >= row["lost_units"] >= 0
    assert (row["step_correlation"] is None) == (neuron.timesteps == 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(1, 6), st.sampled_from([0.0, 0.25, 0.5]), st.sampled_from(["channel", "layer"]))
def test_the_last_membrane_tells_just_which_elements_have_a_temporal_error(seed, steps, start, granularity):
    neuron, z, drive, trains = one_layer(seed, 8, steps, start, {}, granularity)
    row = row_of(sums_of(neuron, z, drive, trains).found())
    total = drive[0]
    for each in drive[1:]:
        total = total + each
    with torch.no_grad():
        theta = neuron.per_channel(neuron.threshold, 4)
        twin = torch.floor(total / theta + neuron.v_init).clamp(0, steps)
        changed = (trains / theta).round().sum(0) != twin
    assert row["membrane_outside"] == pytest.approx(changed.float().mean().item())


def test_a_membrane_is_not_measured_for_other_kinds(build, digits):
    for delay, spikes in ((1, "binary"), (0, "ternary"), (0, "graded:2"), ("full", "binary")):
        report = measure_noise(build("max", 4, delay, spikes), digits[0][:8])
        assert report.layers["membrane_outside"].isna().all()
        data = json.loads(json.dumps(report.to_json(), allow_nan=False))
        assert all(row["membrane_outside"] is None for row in data["layers"])
        assert "look-ahead" in data["reasons"]["layers[0].membrane_outside"]
    assert measure_noise(build(), digits[0][:8]).layers["membrane_outside"].iloc[1:].max() > 0


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=60), st.floats(-20, 20))
def test_moments_from_powers(values, shift):
    x = np.array(values) + shift
    found = moments.from_powers(len(x), np.array([(x**k).sum() for k in (1, 2, 3, 4)]))
    assert found.mean == pytest.approx(x.mean(), abs=1e-9)
    assert found.variance == pytest.approx(x.var(), abs=1e-9 * max(1, shift**2))
    if x.std() > 0.1:
        assert found.skew == pytest.approx(stats.skew(x), abs=1e-3)
        assert found.kurtosis == pytest.approx(stats.kurtosis(x, fisher=False), rel=1e-2, abs=1e-2)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.integers(0, 50))
def test_ks_is_small_for_the_law_itself_and_never_above_that_of_the_values(starts, seed):
    rng, starts = np.random.default_rng(seed), np.array(starts)
    weights = np.full(len(starts), 1 / len(starts))
    law = moments.law(np.linspace(-1.5, 1.5, 99), starts, weights)
    assert (np.diff(law) >= -1e-12).all()
    assert law[0] == 0
    assert law[-1] == pytest.approx(1)
    values = rng.random(4000) - 1 + rng.choice(starts, 4000)
    counts = moments.histogram(torch.from_numpy(values), torch.ones(4000, dtype=torch.bool)).numpy()[:-1]
    found = moments.kolmogorov_smirnov(counts, starts, weights)
    exact = stats.kstest(values, lambda x: moments.law(np.atleast_1d(x), starts, weights)).statistic
    assert found <= exact + 1e-12
    assert exact <= found + counts.max() / 4000 + 1 / 32 + 1e-12
    moved = moments.histogram(torch.from_numpy(values + 0.5), torch.ones(4000, dtype=torch.bool)).numpy()[:-1]
    assert moments.kolmogorov_smirnov(moved, starts, weights) > 0.2


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


def test_a_constant_a_channel_gains_what_is_said():
    rng = np.random.default_rng(0)
    neuron = IFNeuron(1.0, 0.5, timesteps=4)
    z = torch.from_numpy(rng.random((200, 3, 1, 1)).astype("f4"))
    trains = torch.zeros(4, 200, 3, 1, 1)
    trains[:2, :, 1] = 1
    row = row_of(sums_of(neuron, z, z.repeat(4, 1, 1, 1, 1), trains).found())
    e = trains.mean(0).numpy() - z.numpy()
    better = e - e.mean(0)
    assert row["bias_gain_db"] == pytest.approx(10 * math.log10((e**2).sum() / (better**2).sum()), rel=1e-6)


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
    found = units.summary("net.relu", (3, 100), 4, torch.zeros(300), torch.zeros(300), peak)
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
