"""Graphs cut into blocks: every node once, only what later blocks read crosses, shortcuts stay whole."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from speedysnn import convert
from speedysnn.assets.digits import load_digits_net
from speedysnn.graph import Block, blocks, every_layer, live_values
from speedysnn.graph.ir import Graph, Node


class Residual(nn.Module):
    """Two shortcuts over two layers each, then a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c, d, e = self.layers
        y = torch.relu(a(x))
        z = torch.relu(c(torch.relu(b(y))) + y)
        w = torch.relu(e(torch.relu(d(z))) + z)
        return self.out(torch.cat([z, w], 1)), w


def graph_of(net: nn.Module, x: Tensor) -> Graph:
    return convert.to_spiking(net, x, 2, correct="none").graph


GRAPHS = [graph_of(Residual(), torch.rand(8, 6)), graph_of(load_digits_net("avg"), torch.rand(8, 1, 8, 8))]


def cuts(graph: Graph) -> list[list[Block]]:
    sizes = {node.name: 10 + i % 3 for i, node in enumerate(graph.nodes)}
    return [every_layer(graph), every_layer(graph, sizes, 11), *(blocks(graph, sizes, n) for n in (1, 2, 3, 10))]


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_node_is_in_one_block(graph: Graph) -> None:
    for found in cuts(graph):
        assert [node for block in found for node in block.nodes] == list(graph.nodes)
        assert [block.start for block in found[1:]] == [block.stop for block in found[:-1]]
        assert all(block.neurons for block in found)
        assert [name for block in found for name in block.neurons] == [node.name for node in graph.neurons]


@pytest.mark.parametrize("graph", GRAPHS)
def test_what_crosses_is_what_later_nodes_read(graph: Graph) -> None:
    for found in cuts(graph):
        for before, after in pairwise(found):
            made = {node.name for node in graph.nodes[: after.start]}
            read = {name for node in graph.nodes[after.start :] for name in node.inputs} | set(graph.output_names)
            assert set(before.outputs) == made & read == set(after.inputs)
        assert found[0].inputs == ()
        assert set(found[-1].outputs) == set(graph.output_names)


@pytest.mark.parametrize("graph", GRAPHS)
def test_layers_are_cut_apart_where_few_enough_values_cross(graph: Graph) -> None:
    sizes, layers = {node.name: 10 + i % 3 for i, node in enumerate(graph.nodes)}, every_layer(graph)
    crossing = [sum(sizes[name] for name in block.outputs) for block in layers[:-1]]
    for most in (0, *crossing):
        found = every_layer(graph, sizes, most)
        expected = [block.stop for block, values in zip(layers[:-1], crossing, strict=True) if values <= most]
        assert [block.stop for block in found] == [*expected, len(graph.nodes)]


def test_a_shortcut_stays_in_one_block_and_the_smallest_value_is_cut() -> None:
    graph = GRAPHS[0]
    found = blocks(graph, dict.fromkeys((node.name for node in graph.nodes), 6), 1)
    assert all(len(block.outputs) == 1 for block in found[:-1])
    assert [(block.neurons, block.outputs) for block in found[:3]] == [
        (("relu",), ("relu",)), (("relu_1",), ("add",)), (("relu_2",), ("relu_2",))
    ]  # fmt: skip
    assert found[-1].neurons == ("relu_3", "relu_4"), "two values cross there: the shortcut and what will be given out"
    assert [len(block.neurons) for block in every_layer(graph)] == [1, 1, 1, 1, 1]
    names = ("x", "a", "b", "c", "d")
    nodes = [Node("x", "input"), *(Node(name, "neuron", (before,)) for before, name in pairwise(names))]
    chain = Graph(tuple(nodes), "d")
    sizes = {"x": 9, "a": 2, "b": 5, "c": 5, "d": 1}
    first = blocks(chain, sizes, 3)[0]
    assert (first.neurons, first.name) == (("a",), "a")


def test_live_values_of_a_graph_that_gives_out_an_early_value() -> None:
    nodes = (Node("x", "input"), Node("a", "neuron", ("x",)), Node("b", "neuron", ("a",)))
    assert live_values(Graph(nodes, ("a", "b"))) == [("x",), ("a",), ("a", "b")]
