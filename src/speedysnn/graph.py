"""The graph as data: nodes of allow-listed operators, to and from JSON."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from speedysnn.errors import ArtifactError
from speedysnn.operators import OPERATORS

Json = Any
Attrs = Mapping[str, Json]


@dataclass(frozen=True)
class Node:
    """One operator: its unique name, what it is, what it reads, its constants, and where it came from.

    Attributes:
        name: unique in the graph; the layer path where there is one.
        op: a key of `speedysnn.operators.OPERATORS`, or "input" or "neuron".
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
