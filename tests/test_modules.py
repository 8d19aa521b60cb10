"""A converted network as torch's tools find it: real modules that are called, pruned, parametrized, wrapped, replaced."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import speedysnn
from speedysnn import analysis, convert
from speedysnn.errors import InputError, SpeedySNNError
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import IFNeuron

READINGS = ("analog", "quantized", "spiking")
X = torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def network(delay: Any = 0) -> SpikingNetwork:
    """A convolution, a batch-norm, a pool that is exact in rate, a linear layer and a norm."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3), nn.LayerNorm(3),
    ).eval()  # fmt: skip
    return convert.to_spiking(ann, X, timesteps=4, delay=delay, allow_hybrid=True)


def answers(snn: SpikingNetwork) -> list[Tensor]:
    with torch.no_grad():
        return [snn.read(reading, X) for reading in READINGS]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def layer(snn: SpikingNetwork, kind: type[nn.Module]) -> tuple[str, Any]:
    """The first layer of a class, by its name in `snn.layers`."""
    return next((name, module) for name, module in snn.layers.items() if isinstance(module, kind))


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


@pytest.mark.parametrize("method", ["hook", "pre_hook"])
def test_hooks_on_layers_and_neurons_fire_once_a_call_in_every_reading(method: str) -> None:
    snn, seen = network(), []
    expected = answers(snn)
    snn.images_per_pass = 2  # without hooks this call would be cut in three

    def note(module: nn.Module, *_: Any) -> None:
        seen.append(module)

    watched = [*snn.layers.values(), *snn.neurons.values()]
    for module in watched:
        module.register_forward_hook(note) if method == "hook" else module.register_forward_pre_hook(note)
    for reading, wanted in zip(READINGS, expected, strict=True):
        seen.clear()
        with torch.no_grad():
            got = snn.read(reading, X)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        assert sorted(map(id, seen)) == sorted(map(id, watched)), reading


def test_hooks_fire_once_a_tick_of_step() -> None:
    snn, seen = network(delay=1), []
    name, neuron = next(iter(snn.neurons.items()))
    neuron.register_forward_hook(lambda _, given, out: seen.append((given[0] is None, out is None)))
    layer(snn, nn.Conv2d)[1].register_forward_hook(lambda *_: seen.append(name))
    with torch.no_grad():
        snn.step(X)
        snn.step(X)
        snn.step(None)
    assert seen == [name, (False, True), name, (False, False), (True, True)]


@pytest.mark.parametrize("full", [False, True])
def test_what_a_hook_keeps_is_not_written_over_and_what_it_returns_counts(full: bool) -> None:
    snn, kept = network("full" if full else 0), []
    conv, neuron = layer(snn, nn.Conv2d)[1], next(iter(snn.neurons.values()))
    handles = [conv.register_forward_hook(lambda _, __, out: kept.append((out, out.clone()))),
               neuron.register_forward_hook(lambda _, given, __: kept.append((given[0], given[0].clone())))]  # fmt: skip
    answers(snn)
    assert len(kept) == 6
    assert all(torch.equal(now, then) for now, then in kept)
    for handle in handles:
        handle.remove()
    silent = [n.register_forward_hook(lambda _, __, out: out * 0) for n in snn.neurons.values()]
    zeros = answers(snn)
    assert all(torch.equal(out, out[:1].expand_as(out)) for out in zeros)  # nothing of the images is left
    for handle in silent:
        handle.remove()
    assert not torch.equal(zeros[2], answers(snn)[2])


def test_pruning_works_in_every_reading_and_is_saved_as_the_weight_that_it_gives(tmp_path: Path) -> None:
    snn = network().to(memory_format=torch.contiguous_format)  # torch's unstructured pruning takes no other
    for _, module in [layer(snn, nn.Conv2d), layer(snn, nn.Linear)]:
        prune.l1_unstructured(module, "weight", amount=0.5)
    by_hand = network()
    for kind in (nn.Conv2d, nn.Linear):
        layer(by_hand, kind)[1].weight.data *= layer(snn, kind)[1].weight_mask
    close(answers(snn), answers(by_hand))
    with torch.no_grad():  # the attribute is stale until the next call; save is to see what a call would
        layer(snn, nn.Linear)[1].weight_orig.mul_(2)
        layer(by_hand, nn.Linear)[1].weight.mul_(2)
    loaded = speedysnn.load(speedysnn.save(snn, tmp_path / "pruned.snn"))
    assert torch.equal(layer(loaded, nn.Linear)[1].weight, layer(by_hand, nn.Linear)[1].weight)
    assert same(answers(loaded), answers(by_hand))
    prune.ln_structured(layer(by_hand, nn.Conv2d)[1], "weight", amount=1, n=2, dim=0)  # in any memory format
    assert not same(answers(by_hand), answers(snn))
    prune.ln_structured(layer(snn, nn.Conv2d)[1], "weight", amount=1, n=2, dim=0)
    prune.remove(layer(snn, nn.Linear)[1], "weight")
    close(answers(snn), answers(by_hand))


class Halved(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        """Half the weight."""
        return weight / 2


def test_parametrization_works_in_every_reading_trains_and_is_saved(tmp_path: Path) -> None:
    snn, by_hand = network(), network()
    for kind in (nn.Conv2d, nn.Linear, nn.LayerNorm):
        parametrize.register_parametrization(layer(snn, kind)[1], "weight", Halved())
        layer(by_hand, kind)[1].weight.data /= 2
    close(answers(snn), answers(by_hand))
    snn(X).square().sum().backward()
    original = layer(snn, nn.Linear)[1].parametrizations.weight.original
    assert float(original.grad.abs().sum()) > 0
    loaded = speedysnn.load(speedysnn.save(snn, tmp_path / "halved.snn"))
    assert [type(module) for module in loaded.layers.values()] == [type(m) for m in network().layers.values()]
    assert same(answers(loaded), answers(by_hand))


class LowRank(nn.Module):
    """A wrapper in the manner of LoRA: what the layer gives, and a trained difference of low rank."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / 4)
        self.up = nn.Parameter(torch.randn(base.out_features, rank) / 4)

    def forward(self, x: Tensor) -> Tensor:
        """Both together."""
        out: Tensor = self.base(x) + x @ self.down.T @ self.up.T
        return out


class Mergeable(LowRank):
    """The same wrapper, which says what weight it comes to."""

    def merged_weight(self) -> Tensor:
        """The base's and the difference."""
        return self.base.weight + self.up @ self.down


class Misleading(LowRank):
    """A wrapper whose `weight` is the base's alone."""

    @property
    def weight(self) -> Tensor:
        """Not what it computes with."""
        return self.base.weight


@pytest.mark.parametrize("wrapper", [LowRank, Mergeable])
def test_a_wrapper_works_in_every_reading_and_trains(wrapper: type[LowRank]) -> None:
    snn, by_hand = network(), network()
    name, base = layer(snn, nn.Linear)
    snn.layers[name] = wrapped = wrapper(base)
    layer(by_hand, nn.Linear)[1].weight.data += (wrapped.up @ wrapped.down).detach()
    close(answers(snn), answers(by_hand))
    snn(X).square().sum().backward()
    assert float(wrapped.up.grad.abs().sum()) > 0
    close([snn.step(X).detach()], [by_hand.step(X).detach()])


def test_a_wrapper_that_can_be_merged_is_saved_and_another_is_refused_by_name(tmp_path: Path) -> None:
    snn = network()
    name, base = layer(snn, nn.Linear)
    snn.layers[name] = Mergeable(base)
    loaded = speedysnn.load(speedysnn.save(snn, tmp_path / "merged.snn"))
    assert type(loaded.layers[name]) is nn.Linear
    close(answers(loaded), answers(snn))
    for wrapper, why in ((LowRank, "neither a `weight`"), (Misleading, "other values")):
        snn.layers[name] = wrapper(base)
        with pytest.raises(SpeedySNNError, match=rf"layer '{name.replace('/', '.')}'.*{wrapper.__name__}.*{why}"):
            speedysnn.save(snn, tmp_path / "no.snn")
        assert not (tmp_path / "no.snn").exists()


class Rounded(nn.Module):
    """A layer of another class in a layer's place, as weight quantization leaves it."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.scale = float(base.weight.detach().abs().max()) / 127
        self.register_buffer("whole", torch.round(base.weight.detach() / self.scale).to(torch.int8))
        self.bias, self.base = base.bias, [base]

    @property
    def weight(self) -> Tensor:
        """The weight that the numbers stand for."""
        return self.whole.float() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, with rounded weights."""
        if self.weight.ndim == 2:
            return nn.functional.linear(x, self.weight, self.bias)
        return self.base[0]._conv_forward(x, self.weight, self.bias)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Linear])
def test_a_swapped_module_works_in_every_reading_and_is_saved(kind: type[nn.Module], tmp_path: Path) -> None:
    snn, by_hand = network(), network()
    name, base = layer(snn, kind)
    setattr(snn.layers, name, Rounded(base))  # as tools that walk named_children do
    by_hand.layers[name].weight.data = snn.layers[name].weight.data
    close(answers(snn), answers(by_hand))
    loaded = speedysnn.load(speedysnn.save(snn, tmp_path / "rounded.snn"))
    assert type(loaded.layers[name]) is kind
    close(answers(loaded), answers(by_hand))


def test_a_layer_replaced_by_an_identity_does_not_write_over_what_others_read() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            return torch.relu(self.b(x)) + torch.relu(self.c(x))

    x = torch.rand(5, 4)
    snn = convert.to_spiking(Twice().eval(), x, timesteps=4)
    snn.layers["b"] = nn.Identity()
    with torch.no_grad():
        fast = snn(x)
    torch.testing.assert_close(snn(x).detach(), fast)


@pytest.mark.parametrize("change", ["none", "pruned", "parametrized", "wrapped"])
def test_copies_and_state_dicts_answer_alike(change: str) -> None:
    def made() -> SpikingNetwork:
        snn = network()
        name, linear = layer(snn, nn.Linear)
        if change == "pruned":
            prune.l1_unstructured(linear, "weight", amount=0.5)
        elif change == "parametrized":
            parametrize.register_parametrization(linear, "weight", Halved())
        elif change == "wrapped":
            torch.manual_seed(3)
            snn.layers[name] = LowRank(linear)
        return snn

    snn = made()
    snn(X)  # leaves an attribute with a gradient behind where a layer is pruned
    with torch.no_grad():
        next(snn.layers.parameters()).mul_(1.5)
    twin = copy.deepcopy(snn)
    assert same(answers(twin), answers(snn))
    with torch.no_grad():
        next(twin.layers.parameters()).mul_(2)
    assert not same(answers(twin), answers(snn))
    other = made()
    other.load_state_dict(snn.state_dict())
    assert same(answers(other), answers(snn))


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


def test_mixed_readings_call_the_neurons_and_layers() -> None:
    snn, seen = network(), []
    first = next(iter(snn.neurons))
    expected = analysis.read_mixed(snn, {first: "spiking"}, X)
    for module in (*snn.layers.values(), *snn.neurons.values()):
        module.register_forward_hook(lambda module, *_: seen.append(module))
    got = analysis.read_mixed(snn, {first: "spiking"}, X)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == len(snn.layers) + len(snn.neurons)
