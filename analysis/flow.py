"""Where the events of a graph arise and how far they get, known from the graph alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from speedysnn.graph import Graph, Node
from speedysnn.operators import OPERATORS

Kind = Literal["constant", "events", "analog"]
UNIT = ("batch_norm", "scale")
_MOVES = (
    "flatten", "reshape", "permute", "squeeze", "unsqueeze", "sum", "pad", "slice", "identity", "add", "cat", "stack",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "expand", "repeat", "roll", "flip", "masked_fill", "take",
    "unfold",
)  # fmt: skip


def routes(node: Node) -> bool:
    """Whether every event that enters comes out as events, so that the next layer takes them one by one."""
    if node.op == "interpolate":
        return str(node.attrs["mode"]).startswith("nearest")
    return node.op in _MOVES or node.op in UNIT or node.op in ("affine", "sub", "mean") or "avg_pool" in node.op


def weighted(node: Node) -> bool:
    """Whether a node is a convolution or linear layer."""
    return node.op in OPERATORS and OPERATORS[node.op].weighted


@dataclass(frozen=True)
class Flow:
    """What every node's output is, known from the graph alone.

    Attributes:
        kinds: "constant" (no event lies upstream), "events" (from spikes, moved or added only), or "analog".
        sources: nodes where events arise: neurons, event inputs, and max-pooling of events.
        graded: sources whose events may carry a size, so that a weight is multiplied.
    """

    kinds: Mapping[str, Kind]
    sources: frozenset[str]
    graded: frozenset[str]

    @staticmethod
    def of(graph: Graph, event_inputs: Iterable[str], graded_neurons: Iterable[str]) -> "Flow":
        """Read the flow of events off the graph."""
        given, graded = frozenset(event_inputs), set(graded_neurons) | set(event_inputs)
        kinds: dict[str, Kind] = {}
        pure: set[str] = set()  # events without a constant added to them
        sources, sized = set(given), set(graded)
        for node in graph.nodes:
            kinds[node.name] = _kind(node, kinds, pure, given)
            if node.op == "neuron" or node.name in given or (node.inputs and all(i in pure for i in node.inputs)):
                pure.add(node.name)
            if node.op != "neuron" and (_sums(node) or any(name in sized for name in node.inputs)):
                sized.add(node.name)
            if kinds[node.name] == "events" and (node.op == "neuron" or "max_pool" in node.op):
                sources.add(node.name)
        return Flow(kinds, frozenset(sources), frozenset(sources & sized))


def _sums(node: Node) -> bool:
    return node.op in ("add", "sub", "sum", "mean") or "avg_pool" in node.op


def _kind(node: Node, kinds: Mapping[str, Kind], pure: set[str], event_inputs: frozenset[str]) -> Kind:
    if node.op == "input":
        return "events" if node.name in event_inputs else "constant"
    if node.op == "neuron":
        return "events"
    before = [kinds[name] for name in node.inputs]
    if node.op == "constant" or all(kind == "constant" for kind in before):
        return "constant"
    if "analog" in before:
        return "analog"
    if "max_pool" in node.op:
        return "events" if all(name in pure for name in node.inputs) else "analog"
    return "events" if routes(node) else "analog"


def pool_graph(graph: Graph, flow: Flow) -> Graph:
    """The part between neurons or event inputs, which become inputs, and the max-pooling that lets events through."""
    ends = [node.name for node in graph.nodes if node.name in flow.sources and "max_pool" in node.op]
    wanted, nodes = set(ends), []
    for node in reversed(graph.nodes):
        if node.name in wanted:
            begins = node.op in ("neuron", "input")
            nodes.append(Node(node.name, "input") if begins else node)
            wanted.update(() if begins else node.inputs)
    return Graph(tuple(reversed(nodes)), ends)
