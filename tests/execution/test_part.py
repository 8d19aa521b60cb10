"""A run in parts gives the bits of the whole run, and leaves the caller's values as they are."""

import pytest
import torch
from torch import Tensor, nn

from speedysnn import convert
from speedysnn.assets.digits import load_digits_net
from speedysnn.execution.interpreter import Execution, Value
from speedysnn.execution.runner import accept
from speedysnn.graph import Block, blocks, every_layer
from speedysnn.network import SpikingNetwork


class Branches(nn.Module):
    """A value that is read again much later, a concatenation, a view of a value, and an affine end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.out = nn.Conv2d(8, 4, 3, padding=1), nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = torch.relu(self.b(torch.relu(y)))
        w = torch.relu(self.c(torch.cat([z, torch.relu(y)], 1)) + y)
        return self.out(nn.functional.max_pool2d(torch.relu(w + z), 1).flatten(1)) * 2


NETWORKS = {"branches": Branches, "avg": lambda: load_digits_net("avg"), "max": lambda: load_digits_net("max")}
X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def in_parts(snn: SpikingNetwork, cut: list[Block], reading, x: Tensor) -> Tensor:
    run = Execution(snn.graph, snn.neurons, snn.layer, snn.timesteps, graph_info=snn.graph_info)
    given = accept(snn, x, 0)
    values = {snn.graph.inputs[0].name: given if reading == "spiking" else Value(run.mean(given))}
    for block in cut:
        before = {name: value.tensor.clone() for name, value in values.items()}
        found = run.part(values, reading, block.start, block.stop)
        again = run.part(values, reading, block.start, block.stop)
        assert all(torch.equal(values[name].tensor, kept) for name, kept in before.items()), block.name
        assert found.keys() == again.keys() == set(block.outputs)
        values = {name: found[name] for name in block.outputs}
    return run.mean(values[snn.graph.output_names[0]])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("options", [{"delay": 0}, {"delay": 1, "spikes": "ternary"}, {"delay": "full"}])
def test_parts_make_the_whole(name: str, options) -> None:
    snn = convert.to_spiking(NETWORKS[name](), X, 3, correct="none", **options)
    sizes = {node.name: 1 for node in snn.graph.nodes}
    for reading in ("analog", "quantized", "spiking"):
        if options["delay"] == "full" and reading == "spiking":
            continue  # a whole run takes the quantizer's counts there, as the next test says
        run = Execution(snn.graph, snn.neurons, snn.layer, snn.timesteps, graph_info=snn.graph_info)
        with torch.no_grad():
            if reading == "spiking":
                whole = run.mean(run.spiking([accept(snn, X, 0)], False)[snn.graph.output_names[0]])
            else:
                whole = run.static([X], reading)[snn.graph.output_names[0]]
            called = snn.read(reading, X)
            for cut in (every_layer(snn.graph), blocks(snn.graph, sizes, 1), blocks(snn.graph, sizes, 3)):
                assert torch.equal(in_parts(snn, cut, reading, X), whole)
        torch.testing.assert_close(called, whole, rtol=1e-5, atol=1e-5)


def test_full_look_ahead_in_parts_counts_as_the_quantizer() -> None:
    snn = convert.to_spiking(load_digits_net("avg"), X, 4, delay="full", correct="none")
    with torch.no_grad():
        found = in_parts(snn, every_layer(snn.graph), "spiking", X)
        torch.testing.assert_close(found, snn.read("quantized", X), rtol=1e-4, atol=1e-4)


def test_events_in_parts() -> None:
    snn = convert.to_spiking(Branches(), X, 3, delay=1, correct="none")
    events = (torch.rand(3, 6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    with torch.no_grad():
        found = in_parts(snn, every_layer(snn.graph), "spiking", events)
        torch.testing.assert_close(found, snn(events, at_once=True), rtol=1e-5, atol=1e-5)


def test_values_are_kept_on_demand() -> None:
    snn = convert.to_spiking(load_digits_net("avg"), X, 2, correct="none")
    run = Execution(snn.graph, snn.neurons, snn.layer, snn.timesteps, graph_info=snn.graph_info)
    start = {snn.graph.inputs[0].name: accept(snn, X, 0)}
    with torch.no_grad():
        for reading in ("analog", "spiking"):
            found = run.part(start, reading, 0, len(snn.graph.nodes), keep=True)
            assert set(found) == {node.name for node in snn.graph.nodes}
