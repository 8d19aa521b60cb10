"""Temporal error under random arrival of spikes, against the neurons' own kernel on the drives that the theory is of."""

import math

import numpy as np
import pytest
import torch

from speedysnn.analysis import theory
from speedysnn.errors import InputError
from tests.material.arrivals import arriving, simulated


def agree(law, errors, tolerance):
    count = len(errors)
    for name, sample in (
        ("probability", errors != 0), ("extra", errors > 0), ("missing", errors < 0), ("mean_size", errors.abs()),
        ("bias", errors), ("power", errors**2),
    ):  # fmt: skip
        sample = sample.double()
        spread = sample.std().item() / math.sqrt(count)
        assert getattr(law, name) == pytest.approx(sample.mean().item(), abs=tolerance + 4 * spread), name


GAUSSIAN = [  # mean, between, within, T, theta, v_init, delay, N, min_spikes
    (0.0, 0.09, 0.2, 2, 1.0, 0.5, 0, 1, 0),
    (0.0, 0.09, 0.2, 16, 1.0, 0.5, 0, 1, 0),
    (0.3, 0.0, 0.05, 8, 1.0, 0.0, 0, 1, 0),
    (0.2, 0.04, 0.6, 8, 0.7, 0.3, 0, 1, 0),
    (-0.1, 0.04, 0.1, 12, 1.0, 0.5, 0, 1, 0),
    (0.9, 0.1, 0.3, 6, 1.0, 0.5, 0, 1, 0),
    (0.2, 0.1, 0.3, 8, 1.0, 0.5, 1, 1, 0),
    (0.2, 0.1, 0.3, 8, 1.3, 0.5, 3, 1, 0),
    (0.5, 0.3, 0.5, 6, 1.0, 0.5, 0, 3, 0),
    (0.5, 0.3, 0.5, 6, 1.0, 0.5, 1, 2, 0),
    (0.0, 0.09, 0.8, 16, 1.0, 0.5, 0, 1, -1),
    (0.2, 0.04, 0.6, 8, 0.7, 0.3, 0, 1, -1),
    (-0.1, 0.04, 0.9, 12, 1.0, 0.5, 0, 1, -1),
    (0.9, 0.1, 0.3, 6, 1.0, 0.0, 0, 1, -1),
    (0.2, 0.1, 1.0, 8, 1.0, 0.5, 1, 1, -1),
    (0.2, 0.1, 1.5, 8, 1.0, 0.5, 0, 2, -1),
    (0.0, 0.0, 2.0, 24, 1.0, 0.5, 0, 1, -1),
]  # fmt: skip


@pytest.mark.parametrize("case", GAUSSIAN)
def test_temporal_error_under_gaussian_drive_is_exact(case):
    mean, between, within, steps, theta, v_init, delay, max_spikes, min_spikes = case
    drawn = torch.Generator().manual_seed(0)
    lasting = mean + math.sqrt(between) * torch.randn(60_000, generator=drawn)
    drive = lasting + math.sqrt(within) * torch.randn(steps, 60_000, generator=drawn)
    neuron = {"delay": delay, "max_spikes": max_spikes, "min_spikes": min_spikes}
    law = theory.temporal_error(theory.Drive(mean, between, within), steps, theta, v_init, **neuron)
    errors = simulated(drive, steps, theta, v_init, **neuron)
    assert law.probability > 0.01
    agree(law, errors, 2e-4)
    found = torch.bincount((errors + steps * max_spikes).long(), minlength=2 * steps * max_spikes + 1)
    np.testing.assert_allclose(law.probabilities, found / 60_000, atol=0.01)
    assert law.sizes @ law.probabilities == pytest.approx(law.bias)


@pytest.mark.parametrize(
    ("spikes", "tolerance"),
    [
        # fan-in, rate, E[w], deviation of w, bias, deviation of rates; seen at most 0.008, 0.011, 0.004 and 0.0015
        ((80, 0.3, 0.0, 0.09, 0.0, 0.0), 0.010),
        ((104, 0.2, 0.015, 0.12, 0.0, 0.0), 0.014),
        ((104, 0.2, 0.0, 0.12, 0.1, 0.15), 0.007),
        ((256, 0.1, 0.0, 0.05, 0.2, 0.0), 0.005),
    ],
)
def test_temporal_error_under_spike_trains(spikes, tolerance):
    drive = arriving(*spikes)
    law = theory.spike_drive(*spikes)
    assert law.mean == pytest.approx(drive.mean(), abs=0.01)
    assert law.within == pytest.approx(drive.var(0, ddof=1).mean(), rel=0.02)
    assert law.between + law.within / 16 == pytest.approx(drive.mean(0).var(), rel=0.04)
    for steps, delay in ((2, 0), (4, 0), (8, 0), (16, 0), (4, 1), (16, 1), (16, 3)):
        found = theory.temporal_error(law, steps, delay=delay)
        errors = simulated(torch.from_numpy(drive[:steps]).float(), steps, delay=delay)
        for name, sample in (("probability", errors != 0), ("extra", errors > 0), ("mean_size", errors.abs())):
            assert getattr(found, name) == pytest.approx(sample.double().mean().item(), abs=tolerance), (steps, delay)


@pytest.mark.parametrize(
    ("spikes", "tolerance"),
    [  # as above, then the probability of a spike taken back; seen at most 0.008, 0.003, 0.005 and 0.003
        ((104, 0.2, 0.0, 0.2, 0.0, 0.0, 0.0), 0.010),
        ((128, 0.2, 0.02, 0.15, 0.0, 0.15, 0.0), 0.006),
        ((64, 0.2, 0.0, 0.2, 0.0, 0.0, 0.1), 0.006),
        ((128, 0.1, 0.01, 0.12, 0.1, 0.0, 0.15), 0.006),
    ],
)
def test_temporal_error_of_ternary_spikes_sent_or_received(spikes, tolerance):
    drive = arriving(*spikes, count=20_000)
    law = theory.spike_drive(*spikes)
    assert law.mean == pytest.approx(drive.mean(), abs=0.01)
    assert law.within == pytest.approx(drive.var(0, ddof=1).mean(), rel=0.02)
    for steps, delay, min_spikes in ((4, 0, -1), (8, 0, -1), (16, 0, -1), (8, 1, -1), (8, 0, 0)):
        found = theory.temporal_error(law, steps, delay=delay, min_spikes=min_spikes)
        errors = simulated(torch.from_numpy(drive[:steps]).float(), steps, delay=delay, min_spikes=min_spikes)
        for name, sample in (("probability", errors != 0), ("extra", errors > 0), ("mean_size", errors.abs())):
            assert getattr(found, name) == pytest.approx(sample.double().mean().item(), abs=tolerance), (steps, min_spikes)


def test_even_or_complete_input_leaves_no_temporal_error():
    drive = theory.Drive(0.3, 0.1, 0.2)
    for law in (
        theory.temporal_error(drive, 1),
        theory.temporal_error(drive, 8, delay=8),
        theory.temporal_error(theory.Drive(0.3, 0.1, 0.0), 8),
        theory.temporal_error(theory.spike_drive(64, 1.0, 0.0, 0.1), 8),
        theory.temporal_error(drive, 8, delay=8, min_spikes=-1),
    ):
        assert law.probability < 1e-12
        assert law.probabilities.sum() == pytest.approx(1)
        assert not law.size_if_wrong > 8
    steps = [theory.temporal_error(drive, 8, delay=delay).power for delay in range(8)]
    assert steps == sorted(steps, reverse=True)
    assert steps[1] < steps[0] / 2


def test_more_steps_rate_or_fan_in_bring_more_temporal_error():
    def error(fan_in=128, rate=0.2, steps=8):  # on both sides of where the law turns Gaussian
        return theory.temporal_error(theory.spike_drive(fan_in, rate, 0.0, 0.1), steps).probability

    for name, values in (("fan_in", (16, 64, 256)), ("rate", (0.02, 0.1, 0.3)), ("steps", (2, 4, 8, 16, 32))):
        found = [error(**{name: value}) for value in values]
        assert found == sorted(found)
        assert found[0] < 0.8 * found[-1]


@pytest.mark.parametrize("steps", [16, 32, 64])
def test_early_spikes_are_those_of_the_bridge(steps):
    for mean, between, within in ((0.0, 0.0, 0.2), (0.0, 0.02, 0.2), (0.05, 0.01, 0.3), (-0.1, 0.0, 0.05), (0.1, 0.0, 0.1)):
        drive = theory.Drive(mean, between, within)
        probability, size = theory.early_spikes(drive, steps)
        exact = theory.temporal_error(drive, steps, max_spikes=2)  # hardly ever short of steps
        assert exact.missing < 1e-3
        assert probability == pytest.approx(exact.extra, abs=0.013)
        assert size == pytest.approx(exact.bias + exact.missing, abs=0.02)
    assert theory.early_spikes(theory.Drive(0.1, 0.0, 0.1), 1) == (0.0, 0.0)
    scaled = theory.early_spikes(theory.Drive(0.3, 0.09, 0.18), steps, theta=3.0)
    assert scaled == pytest.approx(theory.early_spikes(theory.Drive(0.1, 0.01, 0.02), steps))


def test_the_error_saturates_for_a_drive_off_zero_and_grows_at_zero():
    z, s = 0.1, math.sqrt(0.1)
    lift = math.exp(-2 * z * 0.5826 / s)
    limits = {z: lift * s * s / (2 * z) * (1 - math.exp(-2 * z / s**2)), -z: lift * math.exp(-z / s**2)}
    for mean, limit in limits.items():  # uniform over the fraction of a step, or from v_init = 1/2 to the first spike
        drive = theory.Drive(mean, 0.0, s * s)
        assert theory.early_spikes(drive, 1024)[0] == pytest.approx(limit, rel=1e-3)
        assert theory.temporal_error(drive, 96).extra == pytest.approx(limit, rel=0.05)
    sizes = [theory.temporal_error(theory.Drive(0.0, 0.0, 0.2), steps).mean_size for steps in (64, 256)]
    assert sizes[1] / sizes[0] == pytest.approx(2, rel=0.15)
    powers = [theory.temporal_error(theory.Drive(0.0, 0.02, 0.2), steps).power for steps in (32, 64)]
    assert 1.4 < powers[1] / powers[0] < 2


def test_spikes_taken_back_leave_only_what_one_step_moves_beyond_a_spike():
    drawn = torch.Generator().manual_seed(0)
    small = 2 * torch.rand(16, 20_000, generator=drawn, dtype=torch.float64) - 1  # |x| <= theta
    assert simulated(small, 16, min_spikes=-1).count_nonzero() == 0
    assert simulated(small, 16).count_nonzero() > 5000
    assert theory.temporal_error(theory.Drive(0.0, 0.0, 0.03), 16, min_spikes=-1).probability < 1e-6
    for mean in (0.0, 0.3):  # settled, where binary spikes go on
        drive = theory.Drive(mean, 0.0, 0.4)
        sizes = [theory.temporal_error(drive, steps, min_spikes=-1).mean_size for steps in (12, 24, 48)]
        assert 0.01 < sizes[0] < sizes[1] < sizes[2] < 1.25 * sizes[0]
        assert sizes[2] - sizes[1] < sizes[1] - sizes[0]
    assert theory.temporal_error(theory.Drive(0.0, 0.0, 0.4), 48).mean_size > 1


def test_arrival_refuses_what_cannot_be():
    drive = theory.Drive(0.0, 0.1, 0.1)
    for call, words in (
        (lambda: theory.Drive(0.0, -0.1, 0.1), "variances of at least 0"),
        (lambda: theory.Drive(math.nan, 0.1, 0.1), "finite moments"),
        (lambda: theory.spike_drive(0, 0.1), "fan_in: expected a whole number of at least 1, got 0"),
        (lambda: theory.spike_drive(8, 1.1), "rate: expected the probability"),
        (lambda: theory.spike_drive(8, 0.5, rate_std=0.6), "rate_std <= sqrt"),
        (lambda: theory.spike_drive(8, 0.5, taken_back=0.3), "taken_back: expected a probability of at most .* 0.25"),
        (lambda: theory.temporal_error(drive, 4, min_spikes=-2), "min_spikes: expected 0, or -1"),
        (lambda: theory.temporal_error(drive, 0), "timesteps: expected a whole number"),
        (lambda: theory.temporal_error(drive, 2.5), "timesteps"),
        (lambda: theory.temporal_error(drive, math.nan), "timesteps"),
        (lambda: theory.temporal_error(drive, 4, 0.0), "theta: expected a positive finite threshold"),
        (lambda: theory.temporal_error(drive, 4, delay=-1), "delay: expected a whole number of at least 0, got -1"),
        (lambda: theory.temporal_error(theory.Drive(0.0, 1.0, 1e-6), 64), "needs a grid"),
        (lambda: theory.early_spikes(drive, 4, v_init=2.0), "v_init: expected a fraction of theta between 0 and 1"),
    ):
        with pytest.raises(InputError, match=words):
            call()
