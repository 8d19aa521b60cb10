"""The law of few spike trains against every pattern of spikes there is, and against drawn neurons."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speedysnn.analysis import theory
from speedysnn.analysis.theory import lattice as few_trains
from speedysnn.analysis.theory.drive import Trains
from speedysnn.analysis.theory.lattice import Lattice, few, lattices, neurons
from speedysnn.errors import InputError
from tests.material.arrivals import arriving, simulated


def counted(sums, v, delay, max_spikes, min_spikes):
    """n and Q of a neuron with running sums S[1..T], by its definition."""
    steps, n = len(sums), 0
    for t in range(1, steps + 1):
        k = min(t + delay, steps)
        level = np.floor(t / k * sums[k - 1] + v + 1e-9)
        n += int(np.clip(level - n, min_spikes if n > 0 else 0, max_spikes))
    return n, int(np.clip(np.floor(sums[-1] + v + 1e-9), 0, steps * max_spikes))


def enumerated(weights, sent, taken, bias, steps, v, delay, max_spikes, min_spikes):
    """P(n, Q) over all patterns of 0, 1 and -1."""
    levels = steps * max_spikes
    out = np.zeros((levels + 1, levels + 1))
    chances = np.stack([1 - sent - taken, sent, np.full_like(sent, taken)], axis=1)
    for pattern in itertools.product(range(3), repeat=len(weights) * steps):
        symbols = np.array(pattern).reshape(steps, len(weights))
        chance = chances[np.arange(len(weights)), symbols].prod()
        sums = np.cumsum(np.array([0, 1, -1])[symbols] @ weights + bias)
        out[counted(sums, v, delay, max_spikes, min_spikes)] += chance
    return out


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(-12, 12), min_size=2, max_size=2), st.floats(0, 0.7), st.floats(0, 0.3), st.floats(-0.3, 0.3),
    st.floats(0, 1), st.integers(0, 3), st.sampled_from([(1, 0), (1, -1), (2, 0), (3, -1)]),
)  # fmt: skip
def test_a_neurons_law_is_that_of_all_patterns(steps, sent, taken, bias, v, delay, limits):
    width, times = 1 / 7, 3
    both = np.array([sent, sent / 2])
    reach = 3 * sum(map(abs, steps)) + 1
    lattice = Lattice(np.array([steps]), both[None], taken, bias, v, -reach, width, 2 * reach + 2)
    expected = enumerated(np.array(steps) * width, both, taken, bias, times, v, delay, *limits)
    np.testing.assert_allclose(lattice.joint(times, delay, *limits), expected, atol=2e-6)


@pytest.mark.parametrize("weight", [0.5, -0.25, 0.3])
def test_equal_weights_are_exact_and_keep_ties(weight):
    expected = enumerated(np.full(2, weight), np.full(2, 0.3), 0.1, 0.25, 3, 0.5, 0, 1, -1)
    found = theory.temporal_error(theory.spike_drive(2, 0.2, weight, 0.0, 0.25, taken_back=0.1), 3, min_spikes=-1)
    law = [np.trace(expected, -size) for size in range(-3, 4)]
    assert found.law == "lattice"
    np.testing.assert_allclose(found.probabilities, law, atol=2e-6)


@pytest.mark.parametrize(
    ("spikes", "gap"),
    [  # fan-in, rate, E[w], deviation of w, bias, deviation of rates, taken back; how far off a Gaussian drive is
        ((4, 0.2, 0.0, 0.8, 0.0, 0.0, 0.0), 0.05),
        ((16, 0.05, 0.1, 0.6, 0.0, 0.0, 0.0), 0.05),
        ((16, 0.2, 0.0, 0.4, 0.05, 0.0, 0.0), 0.01),
        ((16, 0.2, 0.0, 0.3, 0.0, 0.15, 0.1), 0.0),
        ((6, 0.4, 0.25, 0.0, -0.125, 0.0, 0.0), 0.0),
    ],
)
def test_few_trains_are_told_within_a_hundredth(spikes, gap):
    drive = torch.from_numpy(arriving(*spikes, steps=8, count=24_000)).float()
    law = theory.spike_drive(*spikes)
    for steps, delay, min_spikes, v in ((2, 0, 0, 0.5), (8, 0, 0, 0.5), (8, 0, -1, 0.3), (8, 1, 0, 0.0)):
        found = theory.temporal_error(law, steps, v_init=v, delay=delay, min_spikes=min_spikes)
        errors = simulated(drive[:steps], steps, v_init=v, delay=delay, min_spikes=min_spikes)
        assert found.law == "lattice"
        for name, sample in (("probability", errors != 0), ("extra", errors > 0), ("mean_size", errors.abs())):
            assert getattr(found, name) == pytest.approx(sample.double().mean().item(), abs=0.01), (steps, delay, min_spikes)
    gaussian = theory.temporal_error(theory.Drive(law.mean, law.between, law.within), 8)
    assert gaussian.law == "gaussian"
    assert abs(gaussian.probability - theory.temporal_error(law, 8).probability) > gap


def test_the_two_forms_meet_where_one_takes_over(monkeypatch):
    for spikes in ((64, 0.5, 0.02, 0.12), (104, 0.2, 0.0, 0.18)):
        drive = theory.spike_drive(*spikes)
        many = theory.temporal_error(drive, 6)
        monkeypatch.setattr(few_trains, "GAUSSIAN_FROM", 30.0)
        exact = theory.temporal_error(drive, 6)
        monkeypatch.undo()
        assert (many.law, exact.law) == ("gaussian", "lattice")
        assert exact.probability == pytest.approx(many.probability, abs=0.006)
        assert exact.mean_size == pytest.approx(many.mean_size, abs=0.006)


def test_which_drives_are_of_few_trains():
    def of(fan_in, rate, taken_back=0.0):
        return theory.spike_drive(fan_in, rate, taken_back=taken_back).trains

    assert few(of(63, 0.5), 16)
    assert not few(of(64, 0.5), 16)
    assert few(of(512, 0.02), 64)
    assert not few(of(513, 0.02), 64)
    assert not few(of(16, 0.2), 65)
    assert not few(of(63, 0.5, 0.1), 16)
    assert not few(None, 4)
    with pytest.raises(InputError, match=r"need a lattice of .* the Gaussian form"):
        theory.temporal_error(theory.spike_drive(8, 0.3, weight_std=3000.0), 8)


def test_the_sample_of_neurons_has_the_moments_of_the_law():
    trains = Trains(16, 0.3, 0.1, 0.4, 0.0, 0.2, 0.05)
    weights, rates = neurons(trains, 256)
    assert weights.shape == rates.shape == (256, 16)
    law = theory.spike_drive(*(getattr(trains, name) for name in trains.__dataclass_fields__))
    drive = (weights * rates).sum(1)
    within = (weights**2 * (rates + 0.1 - rates**2)).sum(1)
    assert drive.mean() == pytest.approx(law.mean, abs=0.01)
    assert drive.var() == pytest.approx(law.between, rel=0.06)
    assert within.mean() == pytest.approx(law.within, rel=0.03)
    again, _ = neurons(trains, 256)
    np.testing.assert_array_equal(weights, again)
    on_or_off = neurons(Trains(8, 0.25, 0.0, 1.0, 0.0, np.sqrt(0.25 * 0.75), 0.0), 64)[1]
    assert set(np.unique(on_or_off)) == {0.0, 1.0}


@pytest.mark.parametrize("v_init", [0.0, 0.3, 0.5, 1.0])
def test_no_level_lies_on_a_point_of_rounded_weights(v_init):
    made = list(lattices(Trains(8, 0.2, 0.0, 0.4, 0.0, 0.0, 0.0), 4, 4, 1.0, v_init))
    for lattice in made:
        place = (1 - lattice.v_init) / lattice.width
        assert place % 1 == pytest.approx(0.5)
        assert abs(lattice.v_init - v_init) <= lattice.width / 2 + 1e-12
    mean = np.mean([lattice.v_init for lattice in made])
    assert mean == pytest.approx(v_init, abs=lattice.width / 4)
