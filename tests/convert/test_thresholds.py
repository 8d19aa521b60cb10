"""Threshold rules: closed forms against integration and simulation, fits, signed and graded layers, artifacts."""

import itertools

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import expon, norm
from torch import nn

import speedysnn
from speedysnn import convert, data
from speedysnn.assets.digits import load_digits_net
from speedysnn.calibration.distributions import LAWS, fitted_threshold, law_error, least_squares, moments, optimal_scale
from speedysnn.calibration.histogram import ActivationHistogram
from speedysnn.calibration.rules import GRADIENTS, RULES, ThresholdRule, choose, parse_rule
from speedysnn.errors import ConversionError, InputError
from speedysnn.neurons import IFNeuron

HALF = torch.tensor([0.5])


def histogram(values: torch.Tensor) -> ActivationHistogram:
    hist = ActivationHistogram(values.shape[0])
    hist.update(values)
    return hist


def quantized(z: float, scale: float, levels: int, v_init: float) -> float:
    return scale / levels * min(max(int((levels * z / scale + v_init) // 1), 0), levels)


@pytest.mark.parametrize(("law", "mean"), [("laplace", 0.0), ("half-normal", 0.0), ("gaussian", -1.5), ("gaussian", 2.0)])
@pytest.mark.parametrize(("levels", "v_init"), [(1, 0.5), (4, 0.5), (8, 0.0), (3, 0.2), (2, 1.0)])
def test_closed_form_equals_numerical_integration(law: str, mean: float, levels: int, v_init: float) -> None:
    density = expon.pdf if law == "laplace" else lambda z: norm.pdf(z - mean) / norm.sf(-mean)
    scale = 2.3
    edges = [0.0, *((n - v_init) * scale / levels for n in range(1, levels + 1) if n > v_init), 40.0]
    expected = sum(
        quad(lambda z: (quantized(z, scale, levels, v_init) - z) ** 2 * density(z), a + 1e-12, b - 1e-12)[0]
        for a, b in itertools.pairwise(edges)
    )
    assert law_error(law, scale, levels, v_init, mean) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("law", "v_init", "expected"), [  # theta* of the noise theory, by independent integration
    ("half-normal", 0.5, {1: 1.22, 2: 1.69, 4: 2.14, 8: 2.55, 16: 2.93, 32: 3.29}),
    ("half-normal", 0.0, {1: 0.88, 2: 1.29, 4: 1.73, 8: 2.16, 16: 2.57, 32: 2.94}),
    ("laplace", 0.5, {1: 2.00, 2: 2.90, 4: 3.93, 8: 5.04, 16: 6.21, 32: 7.41}),
    ("laplace", 0.0, {1: 1.41, 2: 2.16, 4: 3.05, 8: 4.04, 16: 5.13, 32: 6.27}),
])  # fmt: skip
def test_optimum_equals_the_table(law: str, v_init: float, expected: dict[int, float]) -> None:
    for levels, theta in expected.items():
        assert optimal_scale(law, levels, v_init) == pytest.approx(theta, abs=0.011)


@pytest.mark.parametrize(("law", "mean"), [("laplace", 0.0), ("half-normal", 0.0), ("gaussian", -1.0), ("gaussian", 1.5)])
@pytest.mark.parametrize("steps", [2, 8])
def test_rule_finds_the_least_squares_threshold_where_its_law_holds(law: str, mean: float, steps: int) -> None:
    draws = 3 * (torch.distributions.Laplace(0.0, 1.0).sample((400_000,)) if law == "laplace" else torch.randn(400_000) + mean)
    hist = histogram(draws.clamp_min(0)[None])
    for v_init in (torch.tensor([0.5]), torch.tensor([0.1])):
        found, best = choose(hist, law, v_init, steps), least_squares(hist, v_init, steps)
        assert found.item() == pytest.approx(best.item(), rel=0.04)
    neuron = IFNeuron(choose(hist, law, HALF, steps)[0], timesteps=steps)
    z = draws[:, None]
    spiking = neuron.spiking(z, constant=True).view(steps, -1, 1).mean(0)
    simulated = (spiking - z.clamp_min(0))[z > 0].square().mean().item()
    unit, share = 3.0, (draws > 0).float().mean().item()
    predicted = law_error(law, neuron.threshold.item() / unit, steps, 0.5, mean) * unit**2
    assert share > 0.1
    assert simulated == pytest.approx(predicted, rel=0.03)


def test_moments_are_those_of_the_values() -> None:
    values = torch.randn(3, 50_000) * torch.tensor([[0.01], [1.0], [300.0]])
    share, mean, square = moments(histogram(values))
    above = [row[row > 0].double() for row in values]
    torch.testing.assert_close(share, (values > 0).double().mean(1))
    torch.testing.assert_close(mean, torch.stack([row.mean() for row in above]), rtol=2e-3, atol=0)
    torch.testing.assert_close(square, torch.stack([row.square().mean() for row in above]), rtol=4e-3, atol=0)


@pytest.mark.parametrize("law", LAWS)
def test_signed_graded_dead_and_bounded(law: str) -> None:
    x = torch.randn(2, 60_000) * torch.tensor([[1.0], [5.0]])
    signed = histogram(torch.cat([x, -x]))
    theta = choose(signed, law, HALF, 4, signed=True)
    torch.testing.assert_close(theta[1] / theta[0], torch.tensor(5.0), rtol=0.03, atol=0)
    if law != "laplace":
        torch.testing.assert_close(theta, least_squares(signed, HALF.expand(2), 4, signed=True), rtol=0.05, atol=0)
    hist = histogram(torch.cat([x, torch.zeros(1, 60_000)]).clamp_min(0))
    assert torch.equal(choose(hist, law, HALF, 4)[2], choose(hist, law, HALF, 4)[1])
    torch.testing.assert_close(choose(hist, law, HALF, 2, 8) * 8, choose(hist, law, HALF, 16))
    two = histogram(torch.tensor([[1.0, 1.0, 1.0, 0.5]]))
    assert fitted_threshold(law, two, HALF, 64).item() <= two.maximum.item()
    assert choose(hist, law, torch.tensor([0.2, 0.5, 0.9]), 4).shape == (3,)


def test_rules_have_one_registry() -> None:
    assert {"mse", "output-mse", "max", "percentile", *LAWS} == set(RULES)
    assert parse_rule("half-normal") == ("half-normal", None)
    for wrong in ("gauss", "gaussian:3", "clip:2", "normal"):
        with pytest.raises(InputError, match="threshold rule.*gaussian"):
            parse_rule(wrong)
    with pytest.raises(InputError, match="law: expected one of"):
        law_error("uniform", 1.0, 4, 0.5)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_convert_recalibrate_and_artifact(granularity: str, tmp_path) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU6(), nn.Linear(16, 4))
    images = torch.randn(256, 8)
    for law in LAWS:
        snn = convert.to_spiking(net, images, 4, threshold=law, granularity=granularity)
        assert set(snn.calibration.rules.values()) == {law}
        again = speedysnn.load(speedysnn.save(snn, tmp_path / f"{law}.snn"))
        again.timesteps = 16
        again.recalibrate()
        fresh = convert.to_spiking(net, images, 16, threshold=law, granularity=granularity)
        for name, neuron in again.neurons.items():
            torch.testing.assert_close(neuron.threshold, fresh.neurons[name].threshold)
    mixed = convert.to_spiking(net, images, 4, threshold={"1": "laplace", "3": 1.5}, granularity=granularity)
    assert mixed.calibration.rules == {"1": "laplace", "3": "given"}
    with pytest.raises(InputError, match="threshold rule"):
        convert.to_spiking(net, images, 4, threshold={"1": "best"})


def test_relu6_keeps_its_ceiling_only_when_asked() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU6(), nn.Linear(16, 4))
    images = torch.randn(256, 8)
    assert convert.to_spiking(net, images).calibration.rules == {"1": "mse", "3": "mse"}
    snn = convert.to_spiking(net, images, threshold="clip", granularity="layer", spikes="graded:2")
    assert snn.calibration.rules == {"1": "mse", "3": "clip"}
    assert snn.neurons["3"].threshold.item() == pytest.approx(3.0)
    snn.set_spikes("binary")
    snn.timesteps = 9
    assert snn.recalibrate().neurons["3"].threshold.item() == pytest.approx(6.0)


def deep(outputs: int = 3) -> nn.Sequential:
    """Two hidden layers, a signed one among them."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.LeakyReLU(0.2), nn.Linear(12, outputs))


def jacobian_sums(net: nn.Sequential, layer: int, images: torch.Tensor) -> torch.Tensor:
    """(features,) sum over images of the squared Jacobian of the outputs by a layer's positive activations."""
    values = net[: layer + 1](images).detach()
    jacobian = torch.func.vmap(torch.func.jacrev(net[layer + 1 :]))(values)
    return (jacobian.square().sum(1) * (values > 0)).sum(0)


@pytest.mark.parametrize(("outputs", "tolerance"), [(1, 1e-5), (3, 0.2)])
def test_gradient_histograms_hold_the_squared_jacobian(outputs: int, tolerance: float) -> None:
    """The signs cancel where there is one output, and in expectation (2,048 draws) where there are more."""
    net, images = deep(outputs), torch.randn(2048, 8)
    snn = convert.to_spiking(net, list(images.split(256)), 4, threshold="output-mse")
    found, plain = snn.calibration.histograms["1"], convert.to_spiking(net, images, 4).calibration.histograms["1"]
    assert torch.equal(found.counts, plain.counts)
    assert torch.equal(found.zeros, plain.zeros)
    wanted = jacobian_sums(net, 1, images).double()
    torch.testing.assert_close(found.squared_gradients.sum(1), wanted, rtol=tolerance, atol=1e-6)


def test_gradients_follow_their_values_when_a_larger_one_comes() -> None:
    values, gradients = torch.rand(3, 500), torch.randn(3, 500)
    once, apart = histogram(torch.cat([values, values * 3000], 1)), histogram(values)
    once.add_gradients(torch.cat([values, values * 3000], 1), torch.cat([gradients, gradients], 1))
    apart.add_gradients(values, gradients)
    apart.update(values * 3000)
    apart.add_gradients(values * 3000, gradients)
    torch.testing.assert_close(apart.squared_gradients, once.squared_gradients)
    merged = once.merged()
    torch.testing.assert_close(merged.squared_gradients.sum(), gradients.double().square().sum() * 2)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_output_mse_lowers_the_error_of_the_output_and_is_kept(granularity: str, tmp_path) -> None:
    net, test = load_digits_net("max").eval(), data.load("digits", "test", limit=200)
    train, images = data.load("digits", "train"), torch.stack([test[i][0] for i in range(200)])
    errors = {}
    for rule in ("mse", "output-mse"):
        snn = convert.to_spiking(net, train, 2, threshold=rule, granularity=granularity)
        with torch.no_grad(), snn.reading("quantized"):
            errors[rule] = float((snn(images) - net(images)).square().mean())
    assert errors["output-mse"] < 0.9 * errors["mse"]
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    again.timesteps = 8
    again.recalibrate()
    fresh = convert.to_spiking(net, train, 8, threshold="output-mse", granularity=granularity)
    for name, neuron in again.neurons.items():
        torch.testing.assert_close(neuron.threshold, fresh.neurons[name].threshold)


def test_even_gradients_choose_as_mse_does_and_missing_ones_are_refused() -> None:
    values = torch.rand(4, 3000)
    hist = histogram(values)
    with pytest.raises(ConversionError, match="asks for gradients, which were not collected"):
        choose(hist, "output-mse", HALF, 4)
    hist.add_gradients(values, torch.tensor([[2.0], [1.0], [0.5], [0.0]]).expand(4, 3000))
    torch.testing.assert_close(choose(hist, "output-mse", HALF, 4), choose(hist, "mse", HALF, 4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda request: 3.0, "threshold rule gave float; expected a tensor of 16"),
        (lambda request: request.histogram.maximum[:5], r"gave shape \(5,\)"),
        (lambda request: request.histogram.maximum * float("nan"), "16 finite thetas"),
        (lambda request: request.gradient_histogram().maximum, "needs="),
    ],
)
def test_a_rule_that_gives_no_thresholds_is_refused(given, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        convert.to_spiking(deep(), torch.randn(64, 8), threshold={"1": given})


def test_functions_are_remembered_by_a_name_that_is_their_own() -> None:
    def max(request):
        return request.histogram.maximum

    with pytest.raises(InputError, match="as a rule of speedysnn.calibration.RULES"):
        convert.to_spiking(deep(), torch.randn(64, 8), threshold=max)
    with pytest.raises(InputError, match="needs must be"):
        ThresholdRule(max, needs=("samples",))
    assert ThresholdRule(max, needs=(GRADIENTS,)).needs == ("gradients",)
