"""Layers of a converted network pruned, parametrized, wrapped and replaced: they run, train, and are saved."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import speedysnn
from speedysnn import convert
from speedysnn.errors import SpeedySNNError
from speedysnn.network import SpikingNetwork
from tests.material.layers import X, answers, close, layer, network, same


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
