"""The network as data: allow-listed operators, their wiring, JSON, and blocks: a graph cut where few values cross."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from speedysnn.graph.ir import Attrs as Attrs
from speedysnn.graph.ir import Graph as Graph
from speedysnn.graph.ir import Json as Json
from speedysnn.graph.ir import Node as Node
from speedysnn.graph.ir import map_outputs as map_outputs
from speedysnn.graph.operators import OPERATORS as OPERATORS


@dataclass(frozen=True)
class Block:
    """Consecutive nodes of a graph, and the values that cross its borders.

    Attributes:
        start: position of its first node.
        stop: position after its last node.
        inputs: values that earlier nodes made and that it, or a later block, reads.
        outputs: values that later blocks read; of the last block the outputs of the graph.
        nodes: its nodes in execution order.
    """

    start: int
    stop: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]

    @property
    def neurons(self) -> tuple[str, ...]:
        """Names of its neuron layers, in execution order."""
        return tuple(node.name for node in self.nodes if node.op == "neuron")

    @property
    def name(self) -> str:
        """The name of its last neuron layer, or of its last node where it has none."""
        return self.neurons[-1] if self.neurons else self.nodes[-1].name


def live_values(graph: Graph) -> list[tuple[str, ...]]:
    """The values that nodes after each position read, or that the graph gives out.

    Args:
        graph: its nodes in execution order.

    Returns:
        One tuple of names a position: what has to be kept after this node ran.

    Example:
        >>> from speedysnn.graph import live_values
        >>> from speedysnn.graph.ir import Graph, Node
        >>> nodes = (Node("x", "input"), Node("a", "neuron", ("x",)), Node("sum", "add", ("x", "a")))
        >>> live_values(Graph(nodes, "sum"))
        [('x',), ('x', 'a'), ('sum',)]
    """
    last = {name: position for position, node in enumerate(graph.nodes) for name in node.inputs}
    last.update(dict.fromkeys(graph.output_names, len(graph.nodes)))
    out, live = [], dict[str, None]()
    for position, node in enumerate(graph.nodes):
        live[node.name] = None
        live = {name: None for name in live if last.get(name, -1) > position}
        out.append(tuple(live))
    return out


def blocks(graph: Graph, sizes: Mapping[str, int], neurons: int = 3) -> list[Block]:
    """Cut a graph into blocks of at most so many neuron layers, and of more where a residual sum spans more.

    A cut lies where a single value crosses, so that a shortcut and the layers that it passes are one block. Of the
    places within reach the one with the smallest value is taken, and of equal ones the last.

    Args:
        graph: its nodes in execution order.
        sizes: elements of each value for one image, by node name.
        neurons: most neuron layers of a block, where there is a choice.

    Returns:
        The blocks in order; every node is in one of them.

    Example:
        >>> from speedysnn.graph import blocks
        >>> from speedysnn.graph.ir import Graph, Node
        >>> names = ("x", "a", "b", "c")
        >>> nodes = [Node("x", "input")]
        >>> nodes += [Node(name, "neuron", (before,)) for before, name in zip(names, names[1:])]
        >>> [block.neurons for block in blocks(Graph(tuple(nodes), "c"), dict.fromkeys(names, 8), neurons=2)]
        [('a', 'b'), ('c',)]
    """
    live = live_values(graph)
    cuts = [-1]
    while cuts[-1] < len(graph.nodes) - 1:
        cuts.append(_next_cut(graph, live, sizes, cuts[-1] + 1, neurons))
    return [_block(graph, live, before + 1, after + 1) for before, after in pairwise(cuts)]


def every_layer(graph: Graph, sizes: Mapping[str, int] | None = None, most: int = 0) -> list[Block]:
    """Cut a graph behind every neuron layer, however many values cross there or where few enough do.

    Args:
        graph: its nodes in execution order.
        sizes: elements of each value for one image, by node name; None cuts behind every neuron layer.
        most: elements of all values that may cross a cut.

    Returns:
        The blocks in order; each ends in a neuron layer, and the last block also holds what comes after it.

    Example:
        >>> from speedysnn.graph import every_layer
        >>> from speedysnn.graph.ir import Graph, Node
        >>> nodes = (Node("x", "input"), Node("a", "neuron", ("x",)), Node("sum", "add", ("x", "a")),
        ...          Node("b", "neuron", ("sum",)), Node("c", "linear", ("b",)))
        >>> [(block.neurons, block.outputs) for block in every_layer(Graph(nodes, "c"))]
        [(('a',), ('x', 'a')), (('b',), ('c',))]
    """
    live, end = live_values(graph), len(graph.nodes) - 1
    cuts = [position for position, node in enumerate(graph.nodes) if node.op == "neuron"][:-1]
    if sizes is not None:
        cuts = [position for position in cuts if sum(sizes[name] for name in live[position]) <= most]
    return [_block(graph, live, before + 1, after + 1) for before, after in pairwise([-1, *cuts, end])]


def _block(graph: Graph, live: list[tuple[str, ...]], start: int, stop: int) -> Block:
    return Block(start, stop, live[start - 1] if start else (), live[stop - 1], graph.nodes[start:stop])


def _next_cut(graph: Graph, live: list[tuple[str, ...]], sizes: Mapping[str, int], start: int, neurons: int) -> int:
    """Position of the last node of the block that begins at `start`."""
    end, best, seen = len(graph.nodes) - 1, None, 0
    for position in range(start, end):
        seen += graph.nodes[position].op == "neuron"
        if seen > neurons and best is not None:
            break
        if seen and len(live[position]) == 1:
            smallest = sizes[live[best][0]] if best is not None else sizes[live[position][0]]
            best = position if sizes[live[position][0]] <= smallest else best
    rest = best is not None and any(node.op == "neuron" for node in graph.nodes[best + 1 :])
    return best if best is not None and rest else end
