"""Forward hooks on the layers and neurons of a converted network, in every reading."""

from typing import Any

import pytest
import torch
from torch import nn

from speedysnn import analysis
from tests.material.layers import READINGS, X, answers, layer, network


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


def test_mixed_readings_call_the_neurons_and_layers() -> None:
    snn, seen = network(), []
    first = next(iter(snn.neurons))
    expected = analysis.read_mixed(snn, {first: "spiking"}, X)
    for module in (*snn.layers.values(), *snn.neurons.values()):
        module.register_forward_hook(lambda module, *_: seen.append(module))
    got = analysis.read_mixed(snn, {first: "spiking"}, X)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == len(snn.layers) + len(snn.neurons)
