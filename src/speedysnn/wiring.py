"""What follows from a graph's wiring alone: what may run on means, how long values live, how far outputs trail."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from speedysnn.graph import Graph
from speedysnn.operators import OPERATORS


@dataclass(frozen=True)
class Wires:
    """What every pass over a graph needs to know of it; see the functions of the same names."""

    last_uses: Mapping[int, list[str]]
    readout_nodes: frozenset[str]
    spent: frozenset[str]

    @classmethod
    def of(cls, graph: Graph) -> "Wires":
        """Of one graph."""
        return cls(last_uses(graph), readout_nodes(graph), spent(graph))


def readout_nodes(graph: Graph) -> frozenset[str]:
    """Nodes from which no neuron and no rate operator is reached: affine to the end, so they may run on means."""
    before_neuron: set[str] = set()
    for node in reversed(graph.nodes):
        timed = node.op == "neuron" or (node.op in OPERATORS and OPERATORS[node.op].behaviour == "rate")
        if timed or node.name in before_neuron:
            before_neuron.update(node.inputs)
            if timed:
                before_neuron.add(node.name)
    return frozenset(node.name for node in graph.nodes if node.name not in before_neuron and node.op != "input")


def last_uses(graph: Graph) -> dict[int, list[str]]:
    """For every position in the graph, the values that nothing later reads."""
    last: dict[str, int] = {}
    for position, node in enumerate(graph.nodes):
        last[node.name] = position
        last.update(dict.fromkeys(node.inputs, position))
    for name in graph.output_names:
        last.pop(name, None)
    out: dict[int, list[str]] = {}
    for name, position in last.items():
        out.setdefault(position, []).append(name)
    return out


def spent(graph: Graph) -> frozenset[str]:
    """Values in memory of their own that a single node reads, once: that node may write over them."""
    uses: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.inputs:
            uses[name] = uses.get(name, 0) + 1
    for name in graph.output_names:
        uses[name] = uses.get(name, 0) + 1
    return frozenset(
        node.name
        for node in graph.nodes
        if uses.get(node.name) == 1 and (node.op == "add" or (node.op in OPERATORS and OPERATORS[node.op].weighted))
    )


def lags(graph: Graph, lookahead: Callable[[str], int]) -> dict[str, int]:
    """Steps by which each node's output trails the input: the look-aheads summed along its longest path."""
    out: dict[str, int] = {}
    for node in graph.nodes:
        before = max((out[name] for name in node.inputs), default=0)
        out[node.name] = before + (lookahead(node.name) if node.op == "neuron" else 0)
    return out


def depth(graph: Graph, names: Iterable[str]) -> int:
    """Neurons on the longest path to any of the named nodes."""
    counted = lags(graph, lambda _: 1)
    return max((counted[name] for name in names), default=0)
