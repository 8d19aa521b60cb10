"""Spikes that are signed powers of two: the rule against numpy, what full look-ahead misses, and every room."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import speedysnn
from speedysnn import analysis, convert, export
from speedysnn.assets.digits import load_digits_net
from speedysnn.cli.main import run
from speedysnn.data import load
from speedysnn.errors import InputError, SpeedySNNError
from speedysnn.kernels import Rule, bits_per_spike, multistep, parse_spikes, what_is_missed
from speedysnn.kernels.quantizer import levels
from speedysnn.neurons import IFNeuron

STEPS, POWERS, SEEDS = st.integers(1, 12), st.integers(1, 6), st.integers(0, 10**6)
HALF = torch.tensor(0.5, dtype=torch.float64)


def uneven(steps: int, seed: int, neurons: int = 32) -> Tensor:
    """Dyadic input (T, neurons), some of it negative, so that sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.round((torch.randn(steps, neurons, generator=generator, dtype=torch.float64) * 4 + 2) * 16) / 16


def reference(x: np.ndarray, theta: float, steps: int, delay: int, number: int, signed: bool) -> np.ndarray:
    """The rule in numpy: of the values that a step may emit, the nearest to what the count misses."""
    n, out = np.zeros(x.shape[1]), []
    values = np.array([0.0, *(2.0**k for k in range(number)), *(-(2.0**k) for k in range(number))])
    for t in range(1, steps + 1):
        k = min(t + delay, steps)
        missed = t * x[:k].sum(0) / (k * theta) - n + 1e-9  # the larger of two that are as near
        far = np.abs(missed[:, None] - values) + np.where(signed | (n[:, None] + values >= 0), 0, np.inf)
        s = values[far.argmin(1)]
        n, out = n + s, [*out, s]
    return np.stack(out)


@pytest.mark.parametrize("signed", [False, True])
@given(log=st.integers(0, 4), seed=SEEDS, number=POWERS, delay=st.sampled_from([0, 1, 3, 16]))
def test_the_rule_equals_numpy(signed: bool, log: int, seed: int, number: int, delay: int) -> None:
    """T and t + d that divide without a rest where d is 0 or T; else values that lie far from a threshold."""
    steps, most, x = 2**log, 2 ** (number - 1), uneven(2**log, seed)
    delay = min(delay, steps)
    x = x if delay in (0, steps) else x + 1 / 1024
    spikes = multistep(x, HALF * 2, HALF, Rule(steps, delay, -most, most, signed=signed))
    assert np.array_equal(spikes.numpy(), reference(x.numpy(), 1.0, steps, delay, number, signed))


@given(steps=STEPS, seed=SEEDS, delay=st.integers(0, 12), signed=st.booleans())
def test_one_power_is_the_ternary_neuron(steps: int, seed: int, delay: int, signed: bool) -> None:
    x, floor = uneven(steps, seed), None if signed else 0.0
    made = [IFNeuron(1.5, timesteps=steps, delay=delay, spikes=kind, floor=floor).double() for kind in ("power2:1", "ternary")]
    with torch.no_grad():
        assert torch.equal(*(neuron.spiking(x) for neuron in made))


@given(steps=STEPS, number=POWERS, seed=SEEDS, delay=st.integers(0, 12), signed=st.booleans())
def test_step_by_step_equals_time_batched(steps: int, number: int, seed: int, delay: int, signed: bool) -> None:
    neuron = IFNeuron(0.75, timesteps=steps, delay=delay, spikes=f"power2:{number}", floor=None if signed else 0.0).double()
    x, out = uneven(steps, seed), []
    with torch.no_grad():
        together = neuron.spiking(x)
        for tick in range(steps + neuron.lookahead + 1):
            y = neuron.step(x[tick] if tick < steps else None)
            out += [] if y is None else [y]
    assert torch.equal(torch.stack(out), together)
    assert set((together / 0.75).round(decimals=3).abs().unique().tolist()) <= {0.0, *(2.0**k for k in range(number))}


@given(steps=STEPS, number=POWERS, seed=SEEDS, signed=st.booleans())
def test_full_look_ahead_misses_the_quantizer_by_its_bound_at_most(steps: int, number: int, seed: int, signed: bool) -> None:
    x, most = uneven(steps, seed), 2 ** (number - 1)
    rule = Rule(steps, steps, -most, most, signed=signed)
    found = multistep(x, HALF * 2, HALF, rule).sum(0)
    expected = np.clip(np.floor(x.numpy().sum(0) + 0.5), -steps * most if signed else 0, steps * most)
    assert np.abs(found.numpy() - expected).max() <= rule.most_missed
    assert rule.most_missed == (2 ** (number - 3) if number > 2 else 0)


@pytest.mark.parametrize("number", [3, 4, 5])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_bound_is_reached(number: int, steps: int) -> None:
    """A drive of 3 M/4 spikes leaves M/4 of them in one step; a longer window ends in a rest for some drives too."""
    most = 2 ** (number - 1)
    z = torch.linspace(0, most, 64 * most + 1, dtype=torch.float64)[None]
    counts = multistep(z, HALF * 2, HALF, Rule(steps, 0, -most, most), constant=True).view(steps, -1).sum(0)
    missed = (counts - levels(z, HALF * 2, HALF, steps, most)[0]).abs().max()
    assert missed == most // 4 if steps == 1 else 0 < missed <= most // 4


def test_kinds_bits_and_refusals() -> None:
    assert parse_spikes("power2:1") == parse_spikes("ternary")
    assert parse_spikes("power2:16") == (-(2**15), 2**15)
    for number in range(1, 17):
        assert bits_per_spike(f"power2:{number}") == math.ceil(math.log2(2 * number + 1))
    for kind, signed, values in (("binary", False, 2), ("binary", True, 3), ("graded:5", False, 6), ("graded:5", True, 11)):
        assert bits_per_spike(kind, signed) == math.ceil(math.log2(values))
    assert what_is_missed("power2:2") == what_is_missed("graded:9") == ""
    assert "by up to 2," in what_is_missed("power2:4")
    for wrong in ("power2", "power2:0", "power2:17", "power2:-1", "power2:x"):
        with pytest.raises(InputError, match="power2:N"):
            IFNeuron(1.0, spikes=wrong)
    with pytest.raises(InputError, match="max_spikes"):
        Rule(4, 0, -4, 6)


def test_only_what_says_every_count_is_read_as_the_quantizer() -> None:
    kinds = {"power2:1": True, "power2:2": True, "power2:3": False, "graded:4": True}
    for kind, synchronous in kinds.items():
        assert IFNeuron(1.0, timesteps=4, delay="full", spikes=kind).synchronous == synchronous
        assert not IFNeuron(1.0, timesteps=4, delay=1, spikes=kind).synchronous


def test_not_a_number_stays_one() -> None:
    x = torch.full((4, 40), float("nan"))
    for backend in ("reference", None):
        out = multistep(x, torch.tensor(1.0), torch.tensor(0.5), Rule(4, 0, -4, 4), backend=backend)
        assert out.isnan().all()


def test_gradients_descend_to_a_target() -> None:
    """Training through time moves theta and the input so that the mean output comes nearer to what is asked."""
    neuron, x = IFNeuron(0.1, timesteps=4, spikes="power2:3"), torch.rand(8, 16, generator=torch.Generator().manual_seed(0))
    optimizer, losses = torch.optim.Adam(neuron.parameters(), 0.05), []
    for _ in range(30):
        loss = (neuron.spiking(x, constant=True).view(4, 8, 16).mean(0) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-5:]) < 0.5 * losses[0]


def network(spikes: str = "power2:3", delay: object = 0, pool: str = "avg") -> speedysnn.SpikingNetwork:
    return convert.to_spiking(load_digits_net(pool), load("digits", "train", limit=64), 4, spikes=spikes, delay=delay)


def digits(count: int = 16) -> Tensor:
    return torch.stack([x for x, _ in load("digits", "train", limit=64 + count)][64:])


@pytest.mark.parametrize(("delay", "pool"), [(0, "max"), (1, "avg"), ("full", "avg")])
def test_a_network_streams_what_it_computes_together(delay: object, pool: str) -> None:
    snn, x, out = network(delay=delay, pool=pool), digits(4), []
    with torch.no_grad():
        for tick in range(snn.latency):
            y = snn.step(x if tick < 4 else None)
            out += [] if y is None else [y]
        torch.testing.assert_close(torch.stack(out).mean(0), snn(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(snn(x, per_step=True)[-1], snn(x), rtol=1e-4, atol=1e-4)
        snn.set_spikes("power2:2")
        with snn.reading("quantized"):
            twin = snn(x)
        assert torch.equal(snn(x), twin) == (delay == "full")


def test_an_artifact_keeps_them(tmp_path) -> None:
    snn, x = network(delay=1), digits()
    speedysnn.save(snn, tmp_path / "a.snn")
    again = speedysnn.load(tmp_path / "a.snn")
    assert {neuron.spikes for neuron in again.neurons.values()} == {"power2:3"}
    with torch.no_grad():
        assert torch.equal(again(x), snn(x))


@pytest.mark.parametrize("delay", [0, "full"])
def test_analysis_splits_their_error_whole_and_says_what_they_miss(delay: object) -> None:
    snn, x = network("power2:4", delay), digits(40)
    noise = analysis.measure_noise(snn, x, try_settings=0)
    layers = noise.layers.set_index("layer")
    shares = layers[["share_clip", "share_round", "share_propagated", "share_temporal"]].sum(axis=1)
    np.testing.assert_allclose(shares, 1, atol=1e-6)
    assert (layers.residual < 1e-5).all()
    assert (layers.kind == "power2:4").all()
    trains = {}
    with torch.no_grad():
        snn(x, observer=lambda tap: trains.update({tap.name: tap.counts()}))
    for name, train in trains.items():
        assert set(train.abs().unique().tolist()) <= {0.0, 1.0, 2.0, 4.0, 8.0}
        assert layers.loc[name].spikes_per_neuron == pytest.approx(int(train.count_nonzero()) / train[0].numel())
    outputs = {**noise.outputs, "temporal_gap_db": 5.0}
    assert "may miss the quantized count by up to 2" in " ".join(analysis.report.verdict.verdict(noise.layers, outputs))


def test_their_costs() -> None:
    """Every event takes 3 bits, shifts a weight and multiplies none, but where max-pooling makes other sizes of it."""
    x = digits(8)
    for pool in ("avg", "max"):
        report = analysis.measure_cost(network(pool=pool), x)
        assert report.total["spike_bits"] == pytest.approx(3 * report.total["spikes"])
        assert (report.total["graded_synops"] == 0) == (pool == "avg")
        assert report.total["synops"] > 0
    graded = analysis.measure_cost(network("graded:4"), x)
    assert graded.total["spike_bits"] == pytest.approx(3 * graded.total["spikes"])
    assert graded.total["graded_synops"] == graded.total["synops"]


def test_a_search_gives_them_to_single_layers() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU(),
                              torch.nn.Linear(16, 4))  # fmt: skip
    images = torch.rand(96, 6)
    found = convert.search(net, images, timesteps=2, delays=0, spikes="binary", corrections="none", levels="power2:3")
    given = found.table[found.table["layers"].str.contains("power2:3")]
    assert len(given) > 0
    assert (given["bits_per_image"] > given["spikes_per_image"]).all()


def test_integers_compute_them_and_nir_refuses_them_by_name() -> None:
    snn, (images, _) = network(pool="max"), (torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), None)
    chip = speedysnn.to_integer(snn, weight_bits=8)
    assert torch.equal(chip(images), chip(images, step_by_step=True))
    with pytest.raises(SpeedySNNError, match="power2:3 spikes, NIR's neurons 0 or 1; re-convert with spikes='binary'"):
        export.export(snn, "unwritten.nir", to="nir")
    with pytest.raises(SpeedySNNError, match="negative spikes"):
        speedysnn.to_integer(network(), profile="xylo")


def words(line: str) -> list[str]:
    return line.split()


def test_the_command_line_takes_them(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    net = "speedysnn.assets.digits:load_digits_net"
    assert run(words(f"convert {net} -d digits --limit 64 -T 2 --spikes power2:3 -o a.snn")) == 0
    assert "power2:3 may miss the quantized count by 1," in " ".join("".join(capfd.readouterr()).split())
    assert run(words("evaluate a.snn -d digits --limit 40 --spikes power2:2 --delay full --json a.json")) == 0
    row = json.loads((tmp_path / "a.json").read_text())["rows"][0]
    assert (row["spikes"], row["accuracy"]) == ("power2:2", row["twin_accuracy"])
    assert run(words(f"convert {net} -d digits --limit 64 --spikes power2:0 -o b.snn")) == 2
    assert "power2:N" in capfd.readouterr().err
