"""Corrections: their equations, the halves that choose and check, and what is said of them."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import speedysnn
from speedysnn import convert
from speedysnn.assets.digits import load_digits_net
from speedysnn.cli import main
from speedysnn.convert.correct import correct_on, what_was_done
from speedysnn.convert.matching import halves
from speedysnn.errors import DataError, InputError
from speedysnn.network import SpikingNetwork
from tests.material.corrections import CORRECTIONS, alike, digits, outputs, same, settings, two_layers


def test_moments_are_matched_as_the_equation_says() -> None:
    net, x, steps = two_layers(), torch.rand(80, 4), 2
    snn = convert.to_spiking(net, x, steps, delay="full", correct="none")
    theta = [neuron.threshold.detach().double().numpy() for neuron in snn.neurons.values()]
    correct_on(snn, [x], "moments")
    first, second = ((net[i].weight.detach().double().numpy().T, net[i].bias.detach().double().numpy()) for i in (0, 2))
    drive = x.double().numpy() @ first[0] + first[1]
    ours = theta[0] / steps * np.clip(np.floor(steps * drive / theta[0] + 0.5), 0, steps) @ second[0] + second[1]
    source = np.maximum(drive, 0) @ second[0] + second[1]
    chosen, checked = (half.numpy() for half in halves(80, 80))
    a = np.clip(source[chosen].std(0) / ours[chosen].std(0), 0.3, 3)
    b = source[chosen].mean(0) - a * ours[chosen].mean(0)
    goal, there = source[checked], ours[checked]
    apart = [(goal.mean(0) - y.mean(0)) ** 2 + (goal.std(0) - y.std(0)) ** 2 for y in (there, a * there + b)]
    better = apart[1] < apart[0]
    assert better.sum() > 0
    neuron = list(snn.neurons.values())[1]
    np.testing.assert_allclose(neuron.threshold.detach(), theta[1] / np.where(better, a, 1), rtol=1e-4)
    np.testing.assert_allclose(neuron.offset, np.where(better, b / a, 0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(neuron.amplitude.detach(), theta[1], rtol=1e-6)
    done = snn.provenance["correction"]["passes"]["moments"]
    assert done["3"]["left_alone"] == (~better).sum()
    power = (goal**2).mean(0).sum()
    assert done["3"]["error_before"] == pytest.approx(apart[0].sum() / power, rel=1e-3)
    assert done["3"]["error_after"] == pytest.approx(np.minimum(*apart).sum() / power, rel=1e-3)
    assert done["1"]["left_alone"] == 8, "what reaches the first layer is the source's own"
    assert snn.neurons["1"].log_amplitude is None
    assert snn.neurons["1"].offset is None


def test_bias_and_potential_are_what_the_equations_say() -> None:
    x = torch.rand(64, 3)
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    for kind in ("bias", "potential"):
        snn = convert.to_spiking(net, x, 2, threshold="max", v_init=0.0, delay="full", correct="none")
        with torch.no_grad():
            drive = net[0](x[halves(64, 64)[0]]).double()
            gap = snn.neurons["1"].quantized(drive.float()).double().mean(0) - drive.clamp_min(0).mean(0)
        correct_on(snn, [x], kind)
        neuron = snn.neurons["1"]
        kept = (neuron.offset if kind == "bias" else neuron.v_init.detach()) != 0
        assert bool(kept.any())
        wanted = -gap if kind == "bias" else (-2 * gap / neuron.threshold.detach()).clamp(0, 1)
        found = neuron.offset if kind == "bias" else neuron.v_init.detach()
        torch.testing.assert_close(found[kept].double(), wanted[kept].double(), rtol=1e-4, atol=1e-6)


CHOSEN, CHECKED = halves(64, 64)


def floors() -> tuple[SpikingNetwork, Tensor]:
    """Two neurons that floor; in the images that check, the first one gets whole levels and is right already."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    nn.init.eye_(net[0].weight)
    even, odd = torch.linspace(0.01, 0.99, 32), torch.linspace(0.02, 0.98, 32)
    x = torch.empty(64, 2)
    x[CHOSEN], x[CHECKED] = torch.stack([even, even], 1), torch.stack([torch.where(odd > 0.5, 1.0, 0.5), odd], 1)
    return convert.to_spiking(net, x, 2, threshold={"1": 1.0}, v_init=0.0, delay="full", correct="none"), x


def test_a_channel_keeps_a_change_only_where_the_images_that_check_are_better_off() -> None:
    snn, x = floors()
    correct_on(snn, [x], "bias")
    first, second = snn.neurons["1"].offset.tolist()
    assert first == 0
    assert second == pytest.approx(0.25, abs=0.02)
    assert snn.provenance["correction"]["passes"]["bias"]["1"]["left_alone"] == 1


def test_the_whole_is_taken_back_where_the_answers_become_worse() -> None:
    """The images that check lie beside the border between two classes, and the correction moves it over them."""
    snn, x = floors()
    final = snn.layer("2")
    assert final is not None
    with torch.no_grad():
        final.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        final.bias.copy_(torch.tensor([-0.3, 0.3]))
    x[CHECKED, 1] = torch.where(torch.arange(32) % 2 == 0, 0.26, 0.999)
    before, answers = settings(snn), outputs(snn, x)
    correct_on(snn, [x], "bias")
    done = snn.provenance["correction"]
    assert done["passes"]["bias"]["1"]["left_alone"] == 1
    assert done["output"]["after"]["agreement"] < done["output"]["before"]["agreement"]
    assert done["taken_back"] is True
    assert "taken back" in done["said"]
    assert alike(before, settings(snn))
    assert same(answers, outputs(snn, x))
    snn.neurons["1"].set_threshold(2.0)
    snn.uncorrect()
    assert snn.neurons["1"].threshold.item() == 2.0, "nothing is left to take back"


@pytest.mark.parametrize("kind", CORRECTIONS)
@pytest.mark.parametrize(("steps", "delay"), [(1, 0), (4, 0), (4, 1), (4, "full")])
def test_errors_fall_and_the_analog_reading_stays(kind: str, steps: int, delay) -> None:
    source, x = load_digits_net("avg"), digits()
    plain = convert.to_spiking(source, x, steps, threshold="max", delay=delay, correct="none")
    snn = convert.to_spiking(source, x, steps, threshold="max", delay=delay, correct=kind)
    assert same(outputs(plain, x), outputs(snn, x), ("analog",))
    record = snn.provenance["correction"]
    assert (record["kind"], record["images"], record["timesteps"]) == (kind, 256, steps)
    assert record["reading"] == ("quantized" if delay == "full" else "spiking")
    for change, layers in record["passes"].items():
        assert change in kind
        assert all(row["error_after"] <= row["error_before"] for row in layers.values())
        assert sum(row["channels"] - row["left_alone"] for row in layers.values()) > 0
    assert record["taken_back"] == (record["output"]["after"]["agreement"] < record["output"]["before"]["agreement"])
    assert not record["taken_back"] or same(outputs(plain, x), outputs(snn, x))
    assert what_was_done(record) == record["said"]
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_bad_kinds_and_images_are_refused() -> None:
    x = digits(64)
    snn = convert.to_spiking(load_digits_net("avg"), x, 4, correct="none")
    before = settings(snn)
    with pytest.raises(InputError, match="correct: expected one of 'none', 'moments', 'bias'.*got 'weights'"):
        convert.apply_correction(snn, x, "weights")
    for wrong in (torch.rand(8, 3, 8, 8), torch.rand(8, 64)):
        with pytest.raises(DataError, match="the network does not run on images"):
            convert.apply_correction(snn, wrong, "bias")
    with pytest.raises(DataError, match="no batch in it"):
        convert.apply_correction(snn, [], "bias")
    assert alike(before, settings(snn))


def test_the_command_says_what_was_kept(tmp_path, capsys) -> None:
    path = tmp_path / "net.snn"
    assert main(["convert", "speedysnn.assets.digits:load_digits_net", "-d", "digits", "--threshold", "max", "--correct",
                 "moments", "--limit", "64", "-o", str(path), "--json", str(tmp_path / "net.json")]) == 0  # fmt: skip
    said = speedysnn.load(path).provenance["correction"]["said"]
    assert said.startswith("correction: moments kept in ")
    assert said in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "net.json").read_text())["provenance"]["correction"]["said"] == said
