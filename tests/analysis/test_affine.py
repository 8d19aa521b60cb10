"""Gain lost with depth: what theory expects of a quantizer, what is measured, and what an affine map would remove."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from speedysnn.analysis import measure_noise, theory
from speedysnn.analysis.noise.layer import LayerSums
from speedysnn.analysis.noise.layer_totals import LayerTotals
from speedysnn.calibration.histogram import ActivationHistogram
from speedysnn.convert import to_spiking
from speedysnn.errors import InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.neurons import IFNeuron

LAWS = {"uniform": stats.uniform(), "half-normal": stats.halfnorm(), "exponential": stats.expon(), "normal": stats.norm()}
STEPS = 8


def drawn(law: str, count: int = 200_000) -> torch.Tensor:
    """One value in the middle of each of `count` slices of equal probability."""
    return torch.from_numpy(LAWS[law].ppf((np.arange(count) + 0.5) / count)).float()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("v_init", [0.0, 0.3, 0.5])
def test_the_integrals_are_what_a_layer_of_neurons_does(law: str, v_init: float) -> None:
    z = drawn(law)
    for steps, scale, max_spikes in ((1, 1.0, 1), (4, 1.0, 1), (8, 0.6, 1), (3, 1.4, 2)):
        theta = scale * theory.optimal_threshold(LAWS[law], steps, v_init, max_spikes)
        kind = "binary" if max_spikes == 1 else f"graded:{max_spikes}"
        with torch.no_grad():
            q = IFNeuron(theta, v_init, timesteps=steps, spikes=kind).quantized(z).double().numpy()
        a = z.clamp_min(0).double().numpy()
        found = theory.quantizer_gain(LAWS[law], steps, theta, v_init, max_spikes)
        assert found.slope == pytest.approx(np.cov(q, a)[0, 1] / a.var(), abs=2e-3)
        assert found.spread == pytest.approx(q.std() / a.std(), abs=2e-3)
        assert found.ratio == pytest.approx((q * a).sum() / (a * a).sum(), abs=2e-3)


@pytest.mark.parametrize("law", LAWS)
def test_a_least_squares_quantizer_shrinks_by_as_much_as_it_errs(law: str) -> None:
    for steps in (1, 2, 4, 8, 16):
        best = theory.optimal_threshold(LAWS[law], steps)
        power = 10 ** (-theory.sqnr_db(LAWS[law], steps, best) / 10)
        assert theory.quantizer_gain(LAWS[law], steps).ratio == pytest.approx(1 - power, abs=1e-6)  # flat at the least
        wide = theory.quantizer_gain(LAWS[law], steps, 1.5 * best)
        assert abs(wide.ratio - (1 - 10 ** (-theory.sqnr_db(LAWS[law], steps, 1.5 * best) / 10))) > 1e-3


def test_a_uniform_law_and_a_histogram() -> None:
    for steps in (1, 3, 8):
        assert theory.quantizer_gain(stats.uniform(0, 5), steps).ratio == pytest.approx(1 - 1 / (2 * steps + 1) ** 2)
    hist = ActivationHistogram(1)
    hist.update(drawn("normal")[None])
    own, law = (theory.quantizer_gain(x, 4, 2.0) for x in (hist, stats.norm()))
    assert (own.slope, own.spread, own.ratio) == pytest.approx((law.slope, law.spread, law.ratio), abs=2e-3)


def test_gains_multiply_along_what_a_layer_reads() -> None:
    assert theory.gain_with_depth([0.9, 0.8, 0.5]) == pytest.approx([0.9, 0.72, 0.36])
    branched = theory.gain_with_depth([0.9, 0.8, 0.5], [[], [0], [0, 1]])
    assert branched == pytest.approx([0.9, 0.72, 0.5 * 0.81])
    for reads in ([[], [0], [2]], [[], [0]], [[], [-1], [0]]):
        with pytest.raises(InputError, match="reads: expected for each of the 3 layers"):
            theory.gain_with_depth([0.9, 0.8, 0.5], reads)


def test_a_deep_random_network_loses_what_theory_expects() -> None:
    """The product of the quantizers bounds the measured gain from above; with the noise in it the first layers agree.

    Thresholds chosen from 512 values a channel leave 0.0035 less of the slope than the law's best one, at each of three
    layers: hence 0.015. Seen: 0.985, 0.965, 0.946, 0.929, 0.908; with the noise 0.989, 0.974, 0.956, 0.933, 0.903.
    Deeper, the images' drives come to lie beside one another, so that they are no longer normal about zero in a channel.
    """
    torch.manual_seed(0)
    hidden = [layer for _ in range(6) for layer in (nn.Linear(128, 128, bias=False), nn.ReLU())]
    for linear in hidden[::2]:
        nn.init.normal_(linear.weight, 0, math.sqrt(2 / 128))
    x = torch.randn(1024, 128)
    snn = to_spiking(nn.Sequential(*hidden, nn.Linear(128, 10)), x[:512], STEPS, delay="full")
    layers = measure_noise(snn, x[512:]).layers
    slope = theory.quantizer_gain(stats.norm(), STEPS).slope
    assert layers["own_gain"].iloc[0] == pytest.approx(slope, abs=0.005)  # its drives are normal
    expected = [1.0, *theory.gain_with_depth(layers["own_gain"].tolist())[:-1]]
    measured = layers["drive_gain"].to_numpy()
    assert (measured <= np.array(expected) + 0.005).all()
    assert (np.diff(measured) < 0).all()
    theta, gain, noise, found = theory.optimal_threshold(stats.norm(), STEPS), 1.0, 0.0, []
    for _ in layers.index:
        found.append(gain)
        after = theory.noisy_gain(STEPS, theta, gain, noise)
        gain, noise = after.slope, math.sqrt(after.spread**2 - after.slope**2)
    np.testing.assert_allclose(measured[:4], found[:4], atol=0.015)
    assert abs(measured[-1] - found[-1]) < abs(measured[-1] - expected[-1])


def test_a_noisy_drive_is_answered_as_samples_are() -> None:
    g = np.random.default_rng(0)
    x, y = g.standard_normal((2, 400_000))
    for steps, theta, slope, noise, mean, v_init, max_spikes in (
        (4, 2.0, 0.7, 0.5, 0.0, 0.5, 1), (8, 2.5, 1.0, 0.2, -1.0, 0.0, 1), (3, 1.0, 0.9, 0.0, 0.5, 0.3, 2),
    ):  # fmt: skip
        a, step = np.maximum(mean + x, 0), theta / steps
        drive = mean + slope * x + noise * y
        q = np.clip(np.floor(drive / step + v_init), 0, steps * max_spikes) * step
        found = theory.noisy_gain(steps, theta, slope, noise, mean, v_init, max_spikes)
        assert found.slope == pytest.approx(np.cov(q, a)[0, 1] / a.var(), abs=0.005)
        assert found.spread == pytest.approx(q.std() / a.std(), abs=0.005)
        assert found.ratio == pytest.approx((q * a).sum() / (a * a).sum(), abs=0.005)
    clean, law = theory.noisy_gain(8, 2.5, 1.0, 0.0), theory.quantizer_gain(stats.norm(), 8, 2.5)
    assert (clean.slope, clean.spread, clean.ratio) == pytest.approx((law.slope, law.spread, law.ratio), abs=5e-4)
    for arguments in ({"noise": -1.0}, {"slope": math.nan}, {"mean": math.inf}):
        with pytest.raises(InputError, match="noisy_gain: expected a finite slope"):
            theory.noisy_gain(8, 2.5, **{"slope": 1.0, "noise": 0.0, **arguments})


def sums(slope: float, offset: float, noise: float) -> LayerTotals:
    """A layer whose drive is the source's times a slope plus an offset, with noise of its own."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 3, generator=g)
    drive = slope * z + offset + noise * torch.randn(20_000, 3, generator=g)
    neuron = IFNeuron(2.0, timesteps=STEPS)
    with torch.no_grad():
        record = LayerRecord("layer", neuron, drive, neuron.spiking(drive, constant=True), True, False)
        layer = LayerSums("layer", neuron)
        layer.update(z, neuron, neuron.quantized(z), record)
    return layer.found()


def test_an_affine_error_is_named_whole_and_noise_by_what_least_squares_removes_of_it() -> None:
    lost = sums(0.5, 0.2, 0.0)
    assert lost.affine_share == pytest.approx(lost.share("propagated"), rel=1e-9)
    assert lost.affine_share > 0.8
    assert lost.drive_gain == pytest.approx(0.5, abs=1e-6)
    noisy = sums(1.0, 0.0, 0.5)  # the best map shrinks noise of variance v by 1 / (1 + v), which removes v / (1 + v)
    assert noisy.affine_share / noisy.share("propagated") == pytest.approx(0.25 / 1.25, abs=0.01)
    assert noisy.drive_gain == pytest.approx(1, abs=0.01)
    exact = sums(1.0, 0.0, 0.0)
    assert exact.affine_share == 0
    assert exact.drive_gain == 1
