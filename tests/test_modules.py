"""A converted network as torch's tools find it: real modules with their parameters, names and settings."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import speedysnn
from speedysnn import convert
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import IFNeuron
from tests.material.layers import X, answers, network, same


def test_modules_are_torchs_own_with_their_parameters() -> None:
    kinds = [type(module) for module in network().layers.values()]
    assert kinds == [nn.Conv2d, nn.Conv2d, nn.Linear, nn.Linear, nn.LayerNorm]
    assert all(isinstance(p, nn.Parameter) for p in network().layers.parameters())
    _, grouped = next(item for item in network().layers.items() if getattr(item[1], "groups", 1) == 2)
    assert (grouped.in_channels, grouped.out_channels, grouped.kernel_size) == (4, 4, (3, 3))


def test_building_layers_draws_no_random_numbers() -> None:
    snn = network()
    tensors = {node.name: snn.tensors(node.name) for node in snn.graph.nodes if snn.tensors(node.name)}
    before = torch.random.get_rng_state()
    SpikingNetwork(snn.graph, tensors, snn.neurons, 4, snn.input_shapes)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
@pytest.mark.parametrize("bias", [True, False])
def test_every_convolution_is_itself(kind: type[nn.Module], bias: bool) -> None:
    dims = int(kind.__name__[-2])
    torch.manual_seed(0)
    ann = nn.Sequential(nn.ReLU(), kind(2, 4, 3, padding=1, stride=2, bias=bias), nn.ReLU()).eval()
    x = torch.rand(3, 2, *[6] * dims)
    snn = convert.to_spiking(ann, x, timesteps=2)
    assert kind in [type(module) for module in snn.layers.values()]
    with torch.no_grad(), snn.reading("analog"):
        torch.testing.assert_close(snn(x), ann(x), rtol=1e-5, atol=1e-6)


def test_names_in_state_dict_and_in_the_folder_are_those_of_earlier_versions(tmp_path: Path) -> None:
    snn = network()
    keys = list(snn.state_dict())
    owners = [node.name for node in snn.graph.nodes if snn.tensors(node.name)]
    expected = [f"layers.{name.replace('.', '/')}.{part}" for name in owners for part in ("weight", "bias")]
    assert keys[: len(expected)] == expected
    folder = speedysnn.save(snn, tmp_path / "net.snn")
    assert json.loads((folder / "network.json").read_text(encoding="utf-8"))["schema"] == "speedysnn/1"
    stored = load_file(folder / "weights.safetensors")
    written = {f"layer:{name}:{part}" for name in owners for part in ("weight", "bias")}
    assert {key for key in stored if key.startswith("layer:")} == written


def test_batch_norm_keeps_its_statistics_in_training_mode() -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    snn = convert.to_spiking(ann, X, timesteps=4, fold_bn=False)
    before, state = answers(snn), copy.deepcopy(snn.state_dict())
    snn.train()
    assert same(answers(snn), before)
    assert all(torch.equal(value, snn.state_dict()[key]) for key, value in state.items())
    assert {key.rsplit(".", 1)[1] for key in state if key.startswith("layers.1.")} == {"weight", "bias", "mean", "var"}


def test_a_standalone_neuron_keeps_its_reading_and_one_in_a_network_refuses_it() -> None:
    z = torch.tensor([0.4, 0.8, 3.0])
    neuron = IFNeuron(1.0, timesteps=2)
    neuron.reading = "quantized"
    assert neuron(z).tolist() == [0.5, 1.0, 1.0]
    assert torch.equal(neuron(z, reading="analog"), z)
    with pytest.raises(InputError, match="expected one of analog, quantized, spiking"):
        neuron.reading = "binary"  # type: ignore[assignment]
    snn = network()
    before = answers(snn)
    for own in snn.neurons.values():
        with pytest.raises(InputError, match="belongs to a network"):
            own.reading = "analog"
    assert same(answers(snn), before)
    assert torch.equal(next(iter(snn.neurons.values()))(X[:, :1].expand(-1, 4, -1, -1), reading="analog"),
                       X[:, :1].expand(-1, 4, -1, -1))  # fmt: skip


def test_at_once_runs_the_whole_batch_in_one_pass() -> None:
    snn = network()
    snn.images_per_pass = 2
    passes: list[int] = []

    def note(tap: Any) -> None:
        passes.append(len(tap.output))

    note.any_order = True  # type: ignore[attr-defined]
    with torch.no_grad():
        snn.read("quantized", X, observer=note)
        assert len(passes) == 3 * len(snn.neurons)
        passes.clear()
        snn.read("quantized", X, observer=note, at_once=True)
    assert passes == [6] * len(snn.neurons)


def test_preserved_puts_every_setting_back_whatever_happens() -> None:
    snn = network()
    before, state = answers(snn), copy.deepcopy(snn.state_dict())
    with pytest.raises(ZeroDivisionError), snn.preserved() as put_back:  # noqa: PT012 - everything is to be undone
        snn.timesteps = 9
        put_back()
        assert snn.timesteps == 4
        snn.set_delay("full")
        snn.set_spikes("ternary")
        snn._reading = "analog"
        for neuron in snn.neurons.values():
            neuron.set_threshold(7.0)
            neuron.v_init.data = torch.zeros_like(neuron.v_init)
            neuron.offset = torch.ones(())
        raise ZeroDivisionError
    assert (snn.timesteps, snn.present_reading, snn.latency) == (4, "spiking", 4)
    assert all(torch.equal(value, snn.state_dict()[key]) for key, value in state.items())
    assert same(answers(snn), before)
    with snn.preserved("delay"):
        snn.set_delay(1)
        snn.timesteps = 5
    assert (snn.timesteps, snn.latency) == (5, 5)
    with pytest.raises(InputError, match="preserved: expected names of"), snn.preserved("theta"):
        pass
