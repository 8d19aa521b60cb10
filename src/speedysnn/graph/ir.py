"""The graph as data: nodes of allow-listed operators, to and from JSON.

What follows from a graph's wiring alone: what may run on means, how long values live, how far outputs trail.

Fold batch-norm into the convolution or linear layer before it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from speedysnn.errors import ArtifactError
from speedysnn.graph.operators import OPERATORS

_OUTPUT_UNREAD = frozenset({"conv1d", "conv2d", "conv3d", "linear"})  # whose gradients do not read their own results

Json = Any
Attrs = Mapping[str, Json]


@dataclass(frozen=True)
class Node:
    """One operator: its unique name, what it is, what it reads, its constants, and where it came from.

    Attributes:
        name: unique in the graph; the layer path where there is one.
        op: a key of `speedysnn.graph.operators.OPERATORS`, or "input" or "neuron".
        inputs: names of the nodes it reads, in order.
        attrs: JSON constants of the operator.
        path: layer path in the source network.
        source: file:line in the source network, "" if unknown.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attrs: Attrs = field(default_factory=dict)
    path: str = ""
    source: str = ""


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order; `outputs` is a node name, or nested lists and dicts of them."""

    nodes: tuple[Node, ...]
    outputs: Json

    def __post_init__(self) -> None:
        """Refuse a graph that could not run."""
        known: set[str] = set()
        for node in self.nodes:
            _check_node(node, known)
            known.add(node.name)
        for name in self.output_names:
            if name not in known:
                raise ArtifactError(f"graph: the output reads {name!r}, which no node makes")

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The input nodes in the order of the arguments."""
        return tuple(node for node in self.nodes if node.op == "input")

    @property
    def neurons(self) -> tuple[Node, ...]:
        """The neuron nodes in execution order."""
        return tuple(node for node in self.nodes if node.op == "neuron")

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every node an output reads, once each."""
        return tuple(dict.fromkeys(_leaves(self.outputs)))

    def to_json(self) -> Json:
        """The graph as JSON data."""
        rows = [
            {"name": n.name, "op": n.op, "inputs": list(n.inputs), "attrs": dict(n.attrs), "path": n.path,
             "source": n.source}
            for n in self.nodes
        ]  # fmt: skip
        return {"nodes": rows, "outputs": self.outputs}

    @staticmethod
    def from_json(data: Json) -> "Graph":
        """Build and check a graph from JSON data.

        Raises:
            ArtifactError: a field is missing or of the wrong type, an operator is not on the list, or an edge dangles.
        """
        try:
            nodes = tuple(
                Node(str(row["name"]), str(row["op"]), tuple(map(str, row["inputs"])), dict(row["attrs"]),
                     str(row.get("path", "")), str(row.get("source", "")))
                for row in data["nodes"]
            )  # fmt: skip
            return Graph(nodes, data["outputs"])
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise ArtifactError(f"graph: not a list of nodes as expected ({type(err).__name__}: {err})") from None


def _leaves(structure: Json) -> Iterator[str]:
    if isinstance(structure, str):
        yield structure
    elif isinstance(structure, list | tuple):
        for item in structure:
            yield from _leaves(item)
    elif isinstance(structure, dict):
        for item in structure.values():
            yield from _leaves(item)
    else:
        raise ArtifactError(f"graph: an output is neither a node, a list nor a dict: {structure!r}")


def map_outputs(structure: Json, values: Mapping[str, Any]) -> Any:
    """The output structure with every node name replaced by its value; lists come back as tuples."""
    if isinstance(structure, str):
        return values[structure]
    if isinstance(structure, dict):
        return {key: map_outputs(item, values) for key, item in structure.items()}
    return tuple(map_outputs(item, values) for item in structure)


def _check_node(node: Node, known: set[str]) -> None:
    if not node.name or node.name in known:
        raise ArtifactError(f"graph: expected unique node names, got {node.name!r} twice or empty")
    missing = [name for name in node.inputs if name not in known]
    if missing:
        raise ArtifactError(f"graph: node {node.name!r} reads {missing[0]!r}, which no earlier node makes")
    try:
        json.dumps(dict(node.attrs), allow_nan=True)
    except (TypeError, ValueError):
        raise ArtifactError(f"graph: node {node.name!r} has constants that are no JSON data") from None
    if node.op == "input":
        return
    if node.op == "neuron":
        if len(node.inputs) != 1:
            raise ArtifactError(f"graph: neuron {node.name!r} reads {len(node.inputs)} values, expected one")
        return
    if node.op not in OPERATORS:
        raise ArtifactError(
            f"graph: node {node.name!r} is an operator {node.op!r} this version does not know; "
            "update speedysnn, or convert the network again"
        )
    OPERATORS[node.op].check(node.name, len(node.inputs), node.attrs)


@dataclass(frozen=True)
class GraphInfo:
    """What follows from a graph's wiring and is the same in every pass over it, found once a network.

    Attributes:
        last_uses: see the function of this name.
        readout_nodes: see the function of this name.
        inplace_safe: see the function of this name.
        sum_safe: those of `inplace_safe` that convolutions and linear layers make. Their gradients do not read their
            own results, so that an addition may write over them while gradients are recorded.
    """

    last_uses: Mapping[int, list[str]]
    readout_nodes: frozenset[str]
    inplace_safe: frozenset[str]
    sum_safe: frozenset[str]

    @classmethod
    def of(cls, graph: Graph) -> "GraphInfo":
        """The facts of one graph."""
        safe = inplace_safe(graph)
        unread = frozenset(node.name for node in graph.nodes if node.op in _OUTPUT_UNREAD)
        return cls(last_uses(graph), readout_nodes(graph), safe, safe & unread)


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


def inplace_safe(graph: Graph) -> frozenset[str]:
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


_OUT_DIM = {"linear": 0, "conv1d": 0, "conv2d": 0, "conv3d": 0,
            "conv_transpose1d": 1, "conv_transpose2d": 1, "conv_transpose3d": 1}  # fmt: skip

Tensors = dict[str, dict[str, Tensor]]


def fold_batch_norm(graph: Graph, tensors: Tensors) -> Graph:
    """W' = W g/s, b' = (b - m) g/s + beta with s = sqrt(var + eps), computed in float64.

    Only where the batch-norm is the one reader of that layer; the layer keeps its name. `tensors` is changed in place.
    """
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    readers.update(graph.output_names)
    by_name = {node.name: node for node in graph.nodes}
    folded, renamed = tensors, dict[str, str]()
    for node in graph.nodes:
        before = by_name[node.inputs[0]] if node.op == "batch_norm" else None
        if before is None or not _foldable(before, readers, folded, node):
            continue
        folded[before.name] = _merge(before, folded[before.name], folded.pop(node.name), node.attrs["eps"])
        renamed[node.name] = before.name
    nodes = tuple(
        Node(n.name, n.op, tuple(renamed.get(i, i) for i in n.inputs), n.attrs, n.path, n.source)
        for n in graph.nodes
        if n.name not in renamed
    )
    return Graph(nodes, _rename(graph.outputs, renamed))


def _foldable(before: Node, readers: Counter[str], tensors: Tensors, norm: Node) -> bool:
    if before.op not in _OUT_DIM or readers[before.name] != 1:
        return False
    weight, features = tensors[before.name]["weight"], tensors[norm.name]["mean"].numel()
    groups = before.attrs.get("groups", 1)
    if before.op.startswith("conv_transpose"):
        return groups == 1 and weight.shape[1] == features
    return bool(weight.shape[0] == features)


def _merge(layer: Node, own: dict[str, Tensor], norm: dict[str, Tensor], eps: float) -> dict[str, Tensor]:
    weight = own["weight"].to(torch.float64)
    mean, var = norm["mean"].to(torch.float64), norm["var"].to(torch.float64)
    gain = norm.get("weight", torch.ones_like(mean)).to(torch.float64) / torch.sqrt(var + eps)
    shape = [1] * weight.ndim
    shape[_OUT_DIM[layer.op]] = -1
    bias = own.get("bias", torch.zeros_like(mean)).to(torch.float64)
    shifted = (bias - mean) * gain + norm.get("bias", torch.zeros_like(mean)).to(torch.float64)
    dtype = own["weight"].dtype
    return {"weight": (weight * gain.view(shape)).to(dtype), "bias": shifted.to(dtype)}


def _rename(outputs: object, renamed: dict[str, str]) -> object:
    if isinstance(outputs, str):
        return renamed.get(outputs, outputs)
    if isinstance(outputs, dict):
        return {key: _rename(item, renamed) for key, item in outputs.items()}
    assert isinstance(outputs, list)
    return [_rename(item, renamed) for item in outputs]
