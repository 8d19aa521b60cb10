"""Identities of the noise's sums and moments, for any layer and any split of its images."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from speedysnn.analysis.noise import moments
from speedysnn.analysis.noise.layer import LayerSums, row_of
from speedysnn.analysis.report import detail_of
from speedysnn.execution.observers import LayerRecord
from speedysnn.neurons import IFNeuron

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
        tap = LayerRecord("layer", neuron, drive.flatten(0, 1), trains.flatten(0, 1), False, False)
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
