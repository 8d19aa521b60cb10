"""A network whose layers' amplitudes differ from their thresholds, in everything that reads the output's unit."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import speedysnn
from speedysnn import IFNeuron, analysis, convert, finetune, spike_trains
from speedysnn.analysis.knobs import _separate_error
from speedysnn.analysis.sensitivity.changes import changes_of
from speedysnn.bench.simulators import PEERS, installed
from speedysnn.calibration.distributions import squared_error
from speedysnn.errors import InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.export import export
from speedysnn.finetune.blocks.layerwise import fit_closed_form
from speedysnn.finetune.optimization import grouped
from speedysnn.finetune.result import changes
from speedysnn.finetune.run import carry_thresholds


def network(pool: bool = False, **options) -> speedysnn.SpikingNetwork:
    torch.manual_seed(0)
    middle = [nn.MaxPool2d(2)] if pool else [nn.AvgPool2d(2)]
    ann = nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU(), *middle, nn.Conv2d(16, 6, 2), nn.ReLU(), nn.Flatten(),
                        nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3))  # fmt: skip
    return convert.to_spiking(ann, torch.randn(48, 2, 8, 8), **{"timesteps": 4, **options})


def apart(snn: speedysnn.SpikingNetwork) -> speedysnn.SpikingNetwork:
    """Thresholds divided by, amplitudes multiplied by some factors; one layer has one amplitude for all channels."""
    g = torch.Generator().manual_seed(7)
    for i, neuron in enumerate(snn.neurons.values()):
        theta = neuron.threshold.detach()
        neuron.set_amplitude(float(1.2 * theta.mean()) if i == 1 else theta * (1 + 0.3 * torch.rand(theta.shape, generator=g)))
        neuron.set_threshold(theta * (0.8 + 0.3 * torch.rand(theta.shape, generator=g)))
    return snn


def images(count: int = 12) -> torch.Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_neuron_fires_against_theta_and_emits_its_amplitude() -> None:
    neuron = IFNeuron(torch.tensor([1.0, 2.0]), timesteps=4)
    neuron.set_amplitude(torch.tensor([0.5, 3.0]))
    z = torch.tensor([[0.6, 0.6], [-1.0, 9.0]])
    assert torch.equal(neuron.counts(z), torch.tensor([[2.0, 1.0], [0.0, 4.0]]))
    torch.testing.assert_close(neuron.quantized(z).detach(), torch.tensor([[0.25, 0.75], [0.0, 3.0]]))
    out = neuron(z, constant=True).detach()
    torch.testing.assert_close(out.view(4, 2, 2).mean(0), neuron.quantized(z).detach())
    assert torch.equal(neuron.analog(z), z.clamp_min(0))
    record = LayerRecord("x", neuron, z, out, True, False)
    assert torch.equal(record.counts().sum(0), neuron.counts(z))
    assert record.spikes().item() == neuron.counts(z).sum().item()
    assert LayerRecord("x", neuron, z, neuron.quantized(z), True, True).events() == int(neuron.counts(z).sum())


def test_none_ties_it_to_theta_again() -> None:
    neuron = IFNeuron(1.0)
    assert neuron.log_amplitude is None
    assert [name for name, _ in neuron.named_parameters()] == ["log_threshold", "v_init"]
    neuron.set_amplitude(2.0)
    assert "amplitude" in repr(neuron)
    neuron.set_threshold(4.0)
    assert neuron.amplitude.item() == pytest.approx(2.0)
    neuron.scale(0.5)
    assert (neuron.threshold.item(), neuron.amplitude.item()) == pytest.approx((2.0, 1.0))
    neuron.scale(torch.tensor([2.0, 8.0]))  # one amplitude for the layer takes the geometric mean
    torch.testing.assert_close(neuron.threshold.detach(), torch.tensor([4.0, 16.0]))
    assert neuron.amplitude.item() == pytest.approx(4.0)
    neuron.set_amplitude(None)
    assert torch.equal(neuron.amplitude, neuron.threshold)
    for wrong in (0.0, -1.0, float("nan"), torch.ones(2, 2)):
        with pytest.raises(InputError, match="amplitude: expected"):
            neuron.set_amplitude(wrong)


@pytest.mark.parametrize("pool", [False, True])
def test_amplitudes_equal_to_thresholds_change_nothing(pool: bool) -> None:
    snn, x = network(pool), images()
    same = copy.deepcopy(snn)
    for neuron in same.neurons.values():
        neuron.set_amplitude(neuron.threshold)
    for reading in ("analog", "quantized", "spiking"):
        with torch.no_grad():
            assert torch.equal(snn.read(reading, x), same.read(reading, x))
    one, other = analysis.measure_noise(snn, x).layers, analysis.measure_noise(same, x).layers
    assert one.equals(other)


@pytest.mark.parametrize("spikes", ["binary", "ternary", "graded:2", "power2:2"])
@pytest.mark.parametrize("pool", [False, True])
def test_full_look_ahead_is_the_quantized_reading(spikes: str, pool: bool) -> None:
    snn, x = apart(network(pool, spikes=spikes, delay="full")), images()
    with torch.no_grad():
        torch.testing.assert_close(snn(x), snn.read("quantized", x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("delay", [0, 1])
def test_step_by_step_equals_all_steps_at_once(pool: bool, delay: int) -> None:
    snn, x = apart(network(pool, delay=delay)), images(4)
    with torch.no_grad():
        outputs = [snn.step(x if t < 4 else None) for t in range(snn.latency)]
        steps = torch.stack([out for out in outputs if out is not None])
        torch.testing.assert_close(steps.mean(0), snn(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["reference", "cpu"])
def test_backends_and_events_agree(kernel: str) -> None:
    snn, x = apart(network(True)), images()
    with torch.no_grad(), speedysnn.settings.using(events="never", kernel=kernel):
        expected = snn(x)
    with torch.no_grad(), speedysnn.settings.using(events="always"):
        torch.testing.assert_close(snn(x), expected, rtol=1e-4, atol=1e-5)
    grads = []
    for events in ("never", "always"):
        with speedysnn.settings.using(events=events):
            snn(x).square().sum().backward()
        grads.append([p.grad.clone() for p in snn.parameters() if p.grad is not None])
        snn.zero_grad()
    for one, other in zip(*grads, strict=True):
        assert float((one - other).norm()) <= 1e-3 * float(one.norm() + 1e-3)


def test_spike_trains_are_whole_spikes() -> None:
    snn, x = apart(network()), images()
    fired: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        snn.read("spiking", x, per_step=True, observer=lambda tap: fired.update({tap.name: tap.output.clone()}))
    for name, train in spike_trains.record(snn, x).items():
        assert set(train.counts.unique().tolist()) <= {0, 1}
        neuron = snn.neurons[name]
        value = train.counts.flatten(0, 1) * neuron.per_channel(neuron.amplitude.detach(), fired[name].ndim)
        torch.testing.assert_close(value, fired[name])


def test_a_saved_amplitude_comes_back_bit_for_bit(tmp_path: Path) -> None:
    snn, x = apart(network()), images()
    snn.neurons["7"].set_amplitude(None)
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    for a, b in zip(snn.neurons.values(), again.neurons.values(), strict=True):
        assert (a.log_amplitude is None) == (b.log_amplitude is None)
        assert a.log_amplitude is None or torch.equal(a.log_amplitude, b.log_amplitude)
    with torch.no_grad():
        assert torch.equal(again(x), snn(x))
    damaged = speedysnn.load(tmp_path / "net.snn")
    next(iter(damaged.neurons.values())).log_amplitude = nn.Parameter(torch.zeros(3))
    with pytest.raises(speedysnn.errors.ArtifactError, match="nothing was saved.* amplitude"):
        speedysnn.save(damaged, tmp_path / "damaged.snn")
    assert not (tmp_path / "damaged.snn").exists()


def test_pt2_says_the_same(tmp_path: Path) -> None:
    snn, x = apart(network(True)).eval(), images(3)
    file = tmp_path / "net.pt2"
    export(snn, file)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(file).module()(x), snn(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(PEERS))
def test_other_simulators_agree(name: str) -> None:
    package, make = PEERS[name]
    if installed(package) is None:
        pytest.skip(f"{package} is not installed")
    snn, x = apart(network()), images()
    with torch.no_grad():
        torch.testing.assert_close(make(snn)(x), snn(x), rtol=0.05, atol=0.05)


def test_state_is_preserved_and_taken_back() -> None:
    snn = apart(network())
    before = {name: neuron.log_amplitude for name, neuron in snn.neurons.items()}
    values = {name: own.detach().clone() for name, own in before.items()}
    with snn.preserved():
        snn.timesteps = 8
        snn.recalibrate()
        assert all(neuron.log_amplitude is None for neuron in snn.neurons.values())
    for name, neuron in snn.neurons.items():
        assert neuron.log_amplitude is before[name]
        assert torch.equal(neuron.log_amplitude, values[name])
    thetas = {name: neuron.log_threshold.detach().clone() for name, neuron in snn.neurons.items()}
    snn.provenance["correction"] = {
        "kind": "moments", "log_threshold": {name: (x - 1).tolist() for name, x in thetas.items()},
    }  # fmt: skip
    snn.uncorrect()
    for name, neuron in snn.neurons.items():
        assert neuron.log_amplitude is None
        torch.testing.assert_close(neuron.log_threshold.detach(), thetas[name] - 1)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("delay", [0, 1])
def test_noise_shares_still_sum_to_one(pool: bool, delay: int) -> None:
    snn, x = apart(network(pool, delay=delay)), images()
    for detail in (False, True):
        noise = analysis.measure_noise(snn, x, **({"detail": "full"} if detail else {}))
        shares = noise.layers[["share_clip", "share_round", "share_propagated", "share_temporal"]].sum(axis=1)
        np.testing.assert_allclose(shares, 1, atol=1e-4)


def test_cost_counts_events_not_amplitudes() -> None:
    """Small amplitudes before, and weights as much larger behind a max-pool, cost the same."""
    snn, x = network(True), images()
    small = copy.deepcopy(snn)
    small.neurons["1"].set_amplitude(snn.neurons["1"].threshold.detach() / 2**16)
    with torch.no_grad():
        small.layers["3"].weight.mul_(2**16)
    one, other = (analysis.measure_cost(each, x) for each in (snn, small))
    assert one.layers.equals(other.layers)


def test_predicted_noise_of_an_amplitude_is_exact() -> None:
    snn = network()
    name, neuron = next(iter(snn.neurons.items()))
    hist = snn.calibration.histograms[name]
    theta, start = neuron.threshold.detach(), torch.full((hist.channels,), 0.5)
    tied = squared_error(hist, theta[:, None], start, 4)[:, 0]
    torch.testing.assert_close(_separate_error(hist, theta / 4, theta / 4, start, 4), tied)
    edges, counts = hist.edges().double().numpy(), hist.counts.double().numpy()
    unit, c = theta.double().numpy() * 1.3, 0
    total = 0.0
    for b in range(counts.shape[1]):  # ten thousand values a bin
        z = edges[c, b] + (np.arange(10_000) + 0.5) / 10_000 * (edges[c, b + 1] - edges[c, b])
        n = np.clip(np.floor(4 * z / theta[c].item() + 0.5), 0, 4)
        total += counts[c, b] * ((n * unit[c] / 4 - z) ** 2).mean()
    found = _separate_error(hist, theta / 4, 1.3 * theta / 4, start, 4)[c]
    assert float(found) == pytest.approx(total, rel=1e-4)


def test_thresholds_and_amplitudes_train_together() -> None:
    snn, x = apart(network()), torch.randn(40, 2, 8, 8)
    assert {name.rsplit(".", 1)[-1] for name in grouped(snn)["thresholds"]} == {"log_threshold", "log_amplitude"}
    before = {name: neuron.log_amplitude.detach().clone() for name, neuron in snn.neurons.items()}
    result = finetune.fit(snn, x, config=finetune.Config(epochs_quantized=1, epochs_spiking=1, train=("thresholds",)))
    assert result.layers["amplitude_ratio"].notna().all()
    moved = [not torch.equal(neuron.log_amplitude, before[name]) for name, neuron in snn.neurons.items()]
    assert all(moved) or result.best_epoch == 0


def test_the_table_has_the_amplitude_s_ratio() -> None:
    old = {"a": {"log_theta": 0.0, "log_amplitude": 1.0, "v_init": 0.5, "spikes_per_neuron": 1.0}}
    new = {"a": {"log_theta": 0.5, "log_amplitude": 1.25, "v_init": 0.5, "spikes_per_neuron": 1.0}}
    assert float(changes(old, new).amplitude_ratio[0]) == pytest.approx(np.exp(0.25))


def test_another_t_scales_both() -> None:
    snn = apart(network())
    before = {name: (n.threshold.detach().clone(), n.amplitude.detach().clone()) for name, n in snn.neurons.items()}
    carry_thresholds(snn, 4, 8)
    for name, neuron in snn.neurons.items():
        theta, amplitude = before[name]
        ratio = neuron.threshold.detach() / theta
        assert not torch.allclose(ratio, torch.ones_like(ratio))
        own = ratio if amplitude.ndim else ratio.log().mean().exp()
        torch.testing.assert_close(neuron.amplitude.detach() / amplitude, own)


def test_the_closed_form_keeps_their_proportion() -> None:
    snn, x = apart(network()), images()
    source: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        snn.read("analog", x, observer=lambda tap: source.update({tap.name: tap.output}))
    ratio = {name: (n.amplitude / n.threshold).detach() for name, n in snn.neurons.items() if n.amplitude.ndim}
    gained = fit_closed_form(snn, [x], source)
    assert min(gained.values()) >= -1e-3
    for name, value in ratio.items():
        torch.testing.assert_close((snn.neurons[name].amplitude / snn.neurons[name].threshold).detach(), value)


def test_knobs_and_sweeps_put_both_back() -> None:
    snn, x = apart(network()), images()
    with torch.no_grad():
        before = snn(x)
    table = analysis.knobs(snn, x, theta_scale=(0.5, 1.0), timesteps=(2,))
    analysis.sweep(snn, x, timesteps=(2, 4))
    analysis.theta_distance(snn)
    with torch.no_grad():
        assert torch.equal(snn(x), before)
    assert table["predicted_sqnr_db"].notna().all()
    assert table["layer_sqnr_db"].nunique() == 3


def test_changes_of_a_layer_carry_its_amplitude() -> None:
    snn, x = apart(network()), images()
    found = {change.kind: change for change in changes_of(snn, _pieces(snn, x), ("bit", "threshold", "bias")) if change.layer == "1"}
    neuron = snn.neurons["1"]
    torch.testing.assert_close(found["bit"].neuron.amplitude, neuron.amplitude / 2)
    assert found["threshold"].neuron.log_amplitude is None
    assert found["bit"].settings()["amplitude"] == pytest.approx((neuron.amplitude / 2).tolist())
    found["threshold"].apply(snn)
    assert snn.neurons["1"].log_amplitude is None


def _pieces(snn: speedysnn.SpikingNetwork, x: torch.Tensor):
    from speedysnn.analysis.reference import passes

    return list(passes(snn, x, 12))
