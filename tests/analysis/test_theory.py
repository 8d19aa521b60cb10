"""Noise theory against its published table, against closed forms, and against what a layer of neurons does."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from speedysnn.analysis import theory
from speedysnn.calibration.distributions import law_error, squared_error
from speedysnn.calibration.histogram import ActivationHistogram
from speedysnn.errors import InputError
from speedysnn.neurons import IFNeuron

LAWS = {"uniform": stats.uniform(), "half-normal": stats.halfnorm(), "exponential": stats.expon()}
STEPS = (1, 2, 4, 8, 15, 16, 32)
# dB at the best threshold and that threshold, found beforehand by an independent numerical integration
TABLE = {
    ("uniform", 0.5): ((9.54, 13.98, 19.08, 24.61, 29.83, 30.37, 36.26), (0.667, 0.800, 0.889, 0.941, 0.968, 0.970, 0.985)),
    ("uniform", 0.0): ((6.02, 9.54, 13.98, 19.08, 24.08, 24.61, 30.37), (0.500, 0.667, 0.800, 0.889, 0.938, 0.941, 0.970)),
    ("half-normal", 0.5): ((7.21, 10.85, 15.13, 19.83, 24.33, 24.80, 29.95), (1.22, 1.69, 2.14, 2.55, 2.90, 2.93, 3.29)),
    ("half-normal", 0.0): ((4.69, 7.50, 11.09, 15.30, 19.49, 19.94, 24.86), (0.88, 1.29, 1.73, 2.16, 2.53, 2.57, 2.94)),
    ("exponential", 0.5): ((5.78, 8.76, 12.37, 16.44, 20.42, 20.84, 25.48), (2.00, 2.90, 3.93, 5.04, 6.10, 6.21, 7.41)),
    ("exponential", 0.0): ((3.84, 6.14, 9.11, 12.66, 16.27, 16.66, 20.99), (1.41, 2.16, 3.05, 4.04, 5.02, 5.13, 6.27)),
}  # fmt: skip


def samples(law, count=400_000, seed=0):
    """One value in each of `count` slices of equal probability: the law with little sampling noise, shuffled."""
    generator = np.random.default_rng(seed)
    z = LAWS[law].ppf((np.arange(count) + generator.random(count)) / count)
    return torch.from_numpy(generator.permutation(z)).float()


def histogram(*rows):
    hist = ActivationHistogram(len(rows))
    hist.update(torch.stack([torch.as_tensor(row, dtype=torch.float32) for row in rows]))
    return hist


@pytest.mark.parametrize(("law", "v_init"), TABLE)
def test_the_table_of_best_thresholds(law, v_init):
    for steps, decibels, theta in zip(STEPS, *TABLE[law, v_init], strict=True):
        found = theory.optimal_threshold(LAWS[law], steps, v_init)
        assert found == pytest.approx(theta, rel=0.005), steps  # the least is flat: searches agree to its square root
        assert theory.sqnr_db(LAWS[law], steps, found, v_init) == pytest.approx(decibels, abs=0.01), steps


@pytest.mark.parametrize("v_init", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_uniform_law_has_a_closed_form(v_init):
    for steps, max_spikes in ((1, 1), (3, 1), (8, 1), (64, 1), (2, 3)):
        s = math.sqrt(v_init**3 + (1 - v_init) ** 3)
        levels = steps * max_spikes
        law = stats.uniform(0, 5)
        assert theory.optimal_threshold(law, steps, v_init, max_spikes) == pytest.approx(
            5 * levels / (levels + s) / max_spikes, rel=1e-6
        )
        found = theory.sqnr_db(law, steps, v_init=v_init, max_spikes=max_spikes)
        assert found == pytest.approx(theory.uniform_sqnr_db(steps, v_init, max_spikes), abs=1e-9)
        if v_init == 0:
            assert theory.effective_bits(law, steps, v_init=0, max_spikes=max_spikes) == pytest.approx(math.log2(levels + 1))


@pytest.mark.parametrize("v_init", [0.0, 0.3, 0.5, 1.0])
def test_integrals_equal_the_closed_forms_of_two_laws(v_init):
    for name, law in (("laplace", stats.expon()), ("half-normal", stats.halfnorm())):
        for steps, theta, max_spikes in ((1, 0.7, 1), (4, 2.5, 1), (64, 5.0, 1), (3, 1.1, 4), (4, 30.0, 1)):
            expected = law_error(name, max_spikes * theta, steps * max_spikes, v_init)
            granular = theory.granular_noise(law, steps, theta, v_init, max_spikes)
            overload = theory.overload_noise(law, theta, max_spikes)
            assert granular + overload == pytest.approx(expected, rel=1e-9)
            assert theory.sqnr_db(law, steps, theta, v_init, max_spikes) == pytest.approx(
                10 * math.log10(theory.signal_power(law) / expected), abs=1e-8
            )


def test_overload_and_signal_in_closed_form():
    assert theory.signal_power(stats.expon(scale=3)) == pytest.approx(18, rel=1e-12)
    assert theory.overload_noise(stats.expon(scale=3), 4, 2) == pytest.approx(18 * math.exp(-8 / 3), rel=1e-10)
    assert theory.overload_noise(stats.uniform(1, 2), 2.5) == pytest.approx(0.5**3 / 6, rel=1e-12)
    assert theory.granular_noise(stats.uniform(1, 2), 4, 2.0) == pytest.approx(0.5 * 0.25 / 12, rel=1e-12)


@pytest.mark.parametrize(
    ("law", "power"),
    [
        (stats.gamma(0.3), 0.3 * 1.3),  # its density has no bound
        (stats.t(3), 1.5),  # half of the variance 3: a heavy tail
        (stats.lognorm(2), math.exp(8)),
        (stats.beta(0.5, 0.5, scale=4), 16 * 3 / 8),
        (stats.uniform(-1, 4), 27 / 3 / 4),
    ],
)
def test_the_signal_of_awkward_laws(law, power):
    assert theory.signal_power(law) == pytest.approx(power, rel=1e-8)


def test_a_law_is_read_through_a_relu_and_knows_no_unit():
    best = theory.optimal_threshold(stats.halfnorm(), 4)
    assert theory.optimal_threshold(stats.norm(0, 100), 4) == pytest.approx(100 * best, rel=1e-5)
    assert theory.sqnr_db(stats.norm(0, 1e-3), 4) == pytest.approx(theory.sqnr_db(stats.halfnorm(), 4), abs=1e-8)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("v_init", [0.0, 0.3, 0.5])
def test_a_layer_of_neurons_makes_the_noise_predicted(law, v_init):
    z = samples(law, 100_000)
    for steps in (1, 2, 3, 6, 16, 64):
        best = theory.optimal_threshold(LAWS[law], steps, v_init)
        for theta in (best, 1.5 * best):
            neuron = IFNeuron(theta, v_init, timesteps=steps)
            expected = theory.sqnr_db(LAWS[law], steps, theta, v_init)
            with torch.no_grad():
                quantized = neuron.quantized(z).double()
                spiking = neuron.spiking(z, constant=True).view(steps, -1).sum(0, dtype=torch.float64) / steps
            for r in (quantized, spiking):
                noise = (r - z.double()).square().mean().item()
                assert 10 * math.log10(z.double().square().mean().item() / noise) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("law", LAWS)
def test_a_histogram_of_samples_stands_for_its_law(law):
    z = samples(law)
    hist = histogram(torch.cat([z, torch.zeros(len(z))]))  # half of the values silent: nothing changes in decibels
    for steps, v_init in ((1, 0.5), (4, 0.0), (16, 0.5)):
        theta = theory.optimal_threshold(hist, steps, v_init)
        assert theory.sqnr_db(hist, steps, v_init=v_init) == pytest.approx(
            theory.sqnr_db(LAWS[law], steps, v_init=v_init), abs=0.05
        )
        summed = squared_error(hist, torch.tensor([[theta]]), torch.tensor([v_init]), steps).item()
        found = theory.granular_noise(hist, steps, theta, v_init) + theory.overload_noise(hist, theta)
        assert found * 2 * len(z) == pytest.approx(summed, rel=1e-6)
        counts = theory.count_probabilities(hist, steps, theta, v_init)
        np.testing.assert_allclose(counts[1:] * 2, theory.count_probabilities(LAWS[law], steps, theta, v_init)[1:], atol=0.004)


@pytest.mark.parametrize("max_spikes", [1, 3])
@pytest.mark.parametrize("v_init", [0.0, 0.5])
def test_the_best_threshold_of_a_lumpy_histogram(v_init, max_spikes):
    drawn = torch.Generator().manual_seed(0)
    lumps = torch.tensor([0.02, 0.3, 1.0, 4.0])
    z = lumps[torch.randint(4, (50_000,), generator=drawn)] * (1 + 0.05 * torch.randn(50_000, generator=drawn))
    hist = histogram(z)
    for steps in (1, 2, 3, 4, 7, 16):
        found = theory.optimal_threshold(hist, steps, v_init, max_spikes)
        grid = float(hist.maximum) * torch.linspace(0.02, 1.5, 3000, dtype=torch.float64) / max_spikes
        noises = squared_error(hist, grid[None], torch.tensor([v_init]), steps, max_spikes)[0] / len(z)
        noise = theory.granular_noise(hist, steps, found, v_init, max_spikes) + theory.overload_noise(hist, found, max_spikes)
        assert noise <= noises.min().item() * 1.01, steps  # 1.004 seen, at 48 levels


@pytest.mark.parametrize("v_init", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("law", [*LAWS.values(), stats.norm(-0.5, 1), "histogram"])
def test_the_error_density_is_that_of_samples(law, v_init):
    z = torch.from_numpy(stats.norm(-0.5, 1).ppf((np.arange(200_000) + 0.5) / 200_000)).float()
    law = histogram(z) if law == "histogram" else law
    for steps, theta in ((1, 1.0), (4, 1.5), (16, 2.0)):
        step = theta / steps
        errors = np.concatenate([np.linspace(-12 - theta, -step, 40_001)[:-1], -step + (np.arange(4000) + 0.5) * step / 2000])
        found = theory.error_density(law, steps, theta, v_init, errors=errors)
        width = np.diff(errors, append=errors[-1] + step / 2000)
        assert (found.density * width).sum() + found.exact == pytest.approx(1, abs=2e-3)
        noise = theory.granular_noise(law, steps, theta, v_init) + theory.overload_noise(law, theta)
        assert (found.density * width * errors**2).sum() == pytest.approx(noise, rel=0.01)
        standard = theory.error_density(law, steps, theta, v_init)
        assert np.trapezoid(standard.density, standard.errors) + standard.exact == pytest.approx(1, abs=0.02)
        assert standard.errors[-1] == pytest.approx(v_init * step)


def test_the_error_density_of_a_uniform_law_is_flat():
    found = theory.error_density(stats.uniform(0, 1.125), 4, 1.0, 0.5, errors=np.array([-0.13, -0.12, 0.0, 0.12, 0.13]))
    # five cells answer an error below zero (the first is half as wide), four one above
    np.testing.assert_allclose(found.density * 1.125, [0, 5, 4, 4, 0])


def test_count_probabilities_are_the_neurons():
    z = samples("exponential", 100_000) - 0.5
    for steps, theta, v_init, kind, max_spikes in ((4, 1.5, 0.5, "binary", 1), (3, 0.5, 0.2, "graded:2", 2)):
        neuron = IFNeuron(theta, v_init, timesteps=steps, spikes=kind)
        with torch.no_grad():
            n = torch.round(neuron.quantized(z) * steps / theta).long()
        counts = torch.bincount(n, minlength=steps * max_spikes + 1).double() / len(z)
        law = stats.expon(loc=-0.5)
        np.testing.assert_allclose(theory.count_probabilities(law, steps, theta, v_init, max_spikes), counts, atol=1e-4)


def test_refusals_say_what_was_expected():
    law = stats.expon()
    for arguments, words in (
        ((law, 0), "timesteps: expected a whole number of at least 1, got 0"),
        ((law, 2.5), "timesteps"),
        ((law, math.nan), "timesteps"),
        ((law, 4, -1.0), "theta: expected a positive finite threshold"),
        ((law, 4, math.nan), "theta"),
        ((law, 4, 1.0, 1.5), "v_init: expected a fraction of theta between 0 and 1"),
        ((law, 4, 1.0, 0.5, 0), "max_spikes"),
        ((stats.poisson(2), 4), "frozen continuous law"),
        ((stats.expon, 4), "frozen continuous law"),
        (("uniform", 4), "got str"),
        ((stats.uniform(-3, 1), 4), "positive at times"),
        ((stats.t(2), 4), "finite variance"),
        ((histogram([1.0], [2.0]), 4), "2 channels; call merged"),
        ((histogram([0.0, 0.0]), 4), "values above zero"),
    ):
        with pytest.raises(InputError, match=words):
            theory.sqnr_db(*arguments)
