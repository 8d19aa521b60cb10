"""Graded spikes, up to N in a step: T N + 1 levels, and the quantizer's identities in every reading and room."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import speedysnn
from speedysnn import analysis, convert
from speedysnn.assets.digits import load_digits_net
from speedysnn.calibration.histogram import ActivationHistogram
from speedysnn.calibration.rules import choose
from speedysnn.cli.main import run
from speedysnn.data import load
from speedysnn.kernels import Rule, multistep
from speedysnn.kernels.quantizer import levels
from speedysnn.neurons import IFNeuron

STEPS, GRADES, SEEDS = st.integers(1, 12), st.integers(2, 7), st.integers(0, 10**6)
HALF = torch.tensor(0.5, dtype=torch.float64)


def uneven(steps: int, seed: int, neurons: int = 32) -> Tensor:
    """Dyadic input (T, neurons), some of it negative, so that sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.round((torch.randn(steps, neurons, generator=generator, dtype=torch.float64) * 2 + 1) * 16) / 16


def theta_of(sixteenths: int) -> Tensor:
    return torch.tensor(sixteenths / 16, dtype=torch.float64)


def soft_reset(x: Tensor, theta: float, v_init: float, grades: int) -> tuple[Tensor, Tensor]:
    """The graded neuron as its membrane equation says: charge, emit what fits, subtract it; (outputs, last membrane)."""
    u, out = torch.full_like(x[0], v_init * theta), []
    for drive in x:
        v = u + drive
        s = torch.floor(v / theta).clamp(0, grades)
        u = v - theta * s
        out.append(theta * s)
    return torch.stack(out), u


@given(steps=STEPS, grades=GRADES, seed=SEEDS, sixteenths=st.sampled_from([4, 8, 16, 32]))
def test_no_look_ahead_is_the_soft_reset_neuron_and_conserves(steps, grades, seed, sixteenths) -> None:
    """sum y = sum x + u[0] - u[T], exactly, theta a power of two."""
    x, theta = uneven(steps, seed), theta_of(sixteenths)
    y = multistep(x, theta, HALF, Rule(steps, 0, 0, grades))
    expected, last = soft_reset(x, float(theta), 0.5, grades)
    assert torch.equal(y, expected)
    assert torch.equal(y.sum(0), x.sum(0) + theta / 2 - last)
    assert set((y / theta).unique().tolist()) <= set(range(grades + 1))


@pytest.mark.parametrize("v_init", [0.0, 0.5])
@given(steps=STEPS, grades=GRADES, z=st.lists(st.floats(-3, 30, width=32), min_size=8, max_size=8),
       theta=st.floats(0.125, 4, width=32))  # fmt: skip
def test_constant_drive_counts_what_the_quantizer_says(v_init, steps, grades, z, theta) -> None:
    x = np.array(z, dtype=np.float64)
    y = multistep(torch.from_numpy(x)[None], torch.tensor(theta, dtype=torch.float64),
                  torch.tensor(v_init, dtype=torch.float64), Rule(steps, 0, 0, grades), constant=True)  # fmt: skip
    counts = np.clip(np.floor(x * steps / theta + v_init), 0, steps * grades)
    assert np.array_equal((y.view(steps, -1) / theta).sum(0).numpy(), counts)


@pytest.mark.parametrize(("steps", "grades"), [(1, 4), (2, 3), (4, 2), (5, 7)])
def test_there_are_t_n_plus_one_levels(steps: int, grades: int) -> None:
    neuron = IFNeuron(0.5, timesteps=steps, spikes=f"graded:{grades}")
    z = torch.linspace(-1, grades, 4001)
    with torch.no_grad():
        values, counts = neuron.quantized(z[None])[0], neuron.spiking(z[None], constant=True).sum(0) / 0.5
    assert len(values.unique()) == steps * grades + 1
    assert sorted(counts.unique().tolist()) == list(range(steps * grades + 1))
    assert values.max() == grades * 0.5


@given(steps=STEPS, grades=GRADES, seed=SEEDS, sixteenths=st.sampled_from([4, 8, 16, 32]))
def test_full_look_ahead_is_quantized(steps, grades, seed, sixteenths) -> None:
    x, theta = uneven(steps, seed), theta_of(sixteenths)
    y = multistep(x, theta, HALF, Rule(steps, steps, 0, grades))
    expected = np.clip(np.floor(x.numpy().sum(0) / float(theta) + 0.5), 0, steps * grades)
    assert np.array_equal((y / theta).sum(0).numpy(), expected)


@given(steps=STEPS, grades=GRADES, seed=SEEDS, delay=st.integers(0, 12))
def test_step_by_step_equals_time_batched(steps, grades, seed, delay) -> None:
    neuron = IFNeuron(0.75, timesteps=steps, delay=min(delay, steps), spikes=f"graded:{grades}").double()
    x, out = uneven(steps, seed), []
    with torch.no_grad():
        together = neuron.spiking(x)
        for tick in range(steps + neuron.lookahead + 1):
            y = neuron.step(x[tick] if tick < steps else None)
            out += [] if y is None else [y]
    assert torch.equal(torch.stack(out), together)


@given(grades=GRADES, seed=SEEDS, sixteenths=st.sampled_from([4, 8, 16]))
def test_one_graded_step_is_n_binary_steps_of_the_quantizer(grades, seed, sixteenths) -> None:
    """T = 1, graded:N, theta against T = N, binary, N theta: one and the same staircase."""
    z, theta = uneven(1, seed), theta_of(sixteenths)
    many = levels(z, theta * grades, HALF, grades)
    assert torch.equal(levels(z, theta, HALF, 1, grades), many)
    assert torch.equal(multistep(z, theta, HALF, Rule(1, 0, 0, grades)) / theta, many)


@pytest.mark.parametrize("rule", ["mse", "max", "percentile:99"])
@given(steps=st.integers(1, 6), grades=GRADES, seed=SEEDS)
def test_the_threshold_is_chosen_for_t_n_levels(rule, steps, grades, seed) -> None:
    hist = ActivationHistogram(3)
    hist.update(torch.randn(3, 400, generator=torch.Generator().manual_seed(seed)) * torch.tensor([[1.0], [3.0], [0.2]]))
    graded = choose(hist, rule, torch.tensor(0.5), steps, grades)
    binary = choose(hist, rule, torch.tensor(0.5), steps * grades)
    torch.testing.assert_close(graded * grades, binary, rtol=1e-5, atol=0)


def test_the_threshold_minimises_the_error_that_numpy_measures() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=20000)).astype(np.float32)
    hist = ActivationHistogram(1)
    hist.update(torch.from_numpy(values)[None])
    steps, grades = 2, 3

    def error(theta: float) -> float:
        step = theta / steps
        return float(((np.clip(np.floor(values / step + 0.5), 0, steps * grades) * step - values) ** 2).mean())

    theta = float(choose(hist, "mse", torch.tensor(0.5), steps, grades))
    grid = np.linspace(0.2, 2, 400)
    assert error(theta) <= min(map(error, grid)) * 1.01


def words(line: str) -> list[str]:
    return line.split()


class Residual(nn.Module):
    """Two branches of different depth with a max-pooling between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(80, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        return self.head(F.relu(self.b(x) + x).flatten(1))


def residual(timesteps: int = 3, spikes: str = "graded:3", delay: object = 0) -> speedysnn.SpikingNetwork:
    return convert.to_spiking(Residual(), torch.randn(40, 2, 8, 8), timesteps, spikes=spikes, delay=delay)


@pytest.mark.parametrize("delay", [0, 1, "full"])
def test_a_network_streams_what_it_computes_together(delay: object) -> None:
    snn, window, out = residual(delay=delay), torch.randn(3, 4, 2, 8, 8), []
    with torch.no_grad():
        for tick in range(snn.latency):
            y = snn.step(window[tick] if tick < 3 else None)
            out += [] if y is None else [y]
        torch.testing.assert_close(torch.stack(out).mean(0), snn(window), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(snn(window, per_step=True)[-1], snn(window), rtol=1e-4, atol=1e-5)
        out = snn(window)
        with snn.reading("quantized"):
            assert torch.equal(snn(window), out) == (delay == "full")


def test_pooled_spikes_stay_in_range() -> None:
    snn, drives = residual(), {}
    with torch.no_grad():
        snn(torch.randn(6, 2, 8, 8), observer=lambda tap: drives.update({tap.name: tap.output}))
    first = next(iter(snn.neurons.values()))
    theta = first.per_channel(first.threshold, 4).detach()
    train = (next(iter(drives.values())) / theta).round().view(3, 6, 5, 8, 8)
    pooled = F.max_pool2d(train.cumsum(0).flatten(0, 1), 2).view(3, 6, 5, 4, 4)
    steps = torch.cat([pooled[:1], pooled.diff(dim=0)])
    assert steps.min() >= 0
    assert steps.max() <= 3


def test_one_graded_step_reaches_the_binary_twin_without_look_ahead() -> None:
    """No time, no temporal error: the spiking network is its own twin, and the twin of T = N binary steps."""
    images, train = torch.stack([x for x, _ in load("digits", "test", limit=64)]), load("digits", "train", limit=200)
    one = convert.to_spiking(load_digits_net("avg"), train, timesteps=1, spikes="graded:4")
    four = convert.to_spiking(load_digits_net("avg"), train, timesteps=4)
    with torch.no_grad(), one.reading("quantized"), four.reading("quantized"):
        torch.testing.assert_close(one(images), four(images), rtol=1e-3, atol=1e-3)
        twin = one(images)
    with torch.no_grad():
        torch.testing.assert_close(one(images), twin, rtol=1e-5, atol=1e-5)
    assert one.latency == 1


def test_an_artifact_keeps_them(tmp_path) -> None:
    snn, x = residual(delay=1), torch.randn(5, 2, 8, 8)
    speedysnn.save(snn, tmp_path / "a.snn")
    again = speedysnn.load(tmp_path / "a.snn")
    assert {neuron.spikes for neuron in again.neurons.values()} == {"graded:3"}
    with torch.no_grad():
        assert torch.equal(again(x), snn(x))
        snn.timesteps = again.timesteps = 5
        assert torch.equal(again.recalibrate()(x), snn.recalibrate()(x))


@pytest.mark.parametrize("delay", [0, 1, "full"])
def test_analysis_splits_their_error_whole(delay: object) -> None:
    snn, x = residual(delay=delay), torch.randn(40, 2, 8, 8)
    layers = analysis.measure_noise(snn, x).layers.set_index("layer")
    shares = layers[["share_clip", "share_round", "share_propagated", "share_temporal"]].sum(axis=1)
    np.testing.assert_allclose(shares, 1, atol=1e-6)
    assert (layers.residual < 1e-5).all()
    assert (layers.kind == "graded:3").all()
    sources, trains = {}, {}
    with torch.no_grad():
        with snn.reading("analog"):
            snn(x, observer=lambda tap: sources.update({tap.name: tap.output.double().numpy()}))
        snn(x, per_step=True, observer=lambda tap: trains.update({tap.name: tap.output.double().numpy()}))
    for name, neuron in snn.neurons.items():
        theta = neuron.threshold.detach().double().numpy().reshape(1, -1, 1, 1)
        train = trains[name].reshape(3, -1, *trains[name].shape[1:])
        error = (train.mean(0) - sources[name]) * 3 / theta
        row = layers.loc[name]
        assert row.rmse_steps == pytest.approx(math.sqrt((error**2).mean()), rel=1e-5)
        assert row.saturated == pytest.approx((np.rint(train.sum(0) / theta) == 9).mean(), abs=1e-9)
        assert row.spikes_per_neuron == pytest.approx(np.count_nonzero(train) / error.size)


@pytest.mark.parametrize(("kind", "accepted"), [("graded:4", True), ("graded:0", False), ("graded", False)])
def test_the_command_line_takes_them(tmp_path, monkeypatch, capfd, kind: str, accepted: bool) -> None:
    monkeypatch.chdir(tmp_path)
    net = "speedysnn.assets.digits:load_digits_net"
    code = run(words(f"convert {net} -d digits --limit 64 -T 1 --spikes {kind} -o a.snn"))
    if not accepted:
        assert code == 2
        assert "graded:N" in capfd.readouterr().err
        return
    assert code == 0
    assert run(words("evaluate a.snn -d digits --limit 60 -T 1,2 --spikes graded:3 --recalibrate --json a.json")) == 0
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [(row["spikes"], row["timesteps"]) for row in rows] == [("graded:3", 1), ("graded:3", 2)]
    assert rows[0]["accuracy"] == rows[0]["twin_accuracy"]
    assert run(words("analyze a.snn -d digits --limit 40 -o report")) == 0
