"""Spikes for every weight layer: neurons that re-encode what reaches it as an analog value.

A convolution or linear layer should be fed by spikes. What passed an operator that is not linear, or another weight
layer without an activation between, is no spike train any more: a neuron is put before the next weight layer, signed
where the value may be negative. The input and what is affine in it before the first neuron stay as they are.
"""

from dataclasses import dataclass
from typing import Literal

from speedysnn.convert.handler_api import Builder, Ref, neuron_attrs
from speedysnn.graph.ir import Node
from speedysnn.graph.operators import OPERATORS

Kind = Literal["input", "spikes", "current", "analog"]
_ORDER: tuple[Kind, ...] = ("input", "spikes", "current", "analog")


@dataclass(frozen=True)
class Carried:
    """What is known of a value: its kind, whether a neuron lies upstream, and whether it can be negative."""

    kind: Kind
    timed: bool
    signed: bool


def carried(node: Node, inputs: list[Carried]) -> Carried:
    """What a node's output carries, from what its inputs carry."""
    if node.op == "input":
        return Carried("input", False, True)
    if node.op == "neuron":
        floor = node.attrs["floor"]
        return Carried("spikes", True, floor is None or floor < 0)
    operator = OPERATORS[node.op]
    timed, signed = any(i.timed for i in inputs), any(i.signed for i in inputs)
    kind = max((i.kind for i in inputs), key=_ORDER.index)
    if operator.hybrid:
        kind = "analog"
    elif operator.weighted:
        kind = "current"
    if node.op == "constant":
        kind = "input"
    return Carried(kind, timed, _signed(node, operator.sign, signed))


def _signed(node: Node, sign: str, inputs: bool) -> bool:
    if node.op == "scale":
        return inputs or node.attrs["factor"] < 0 or node.attrs["offset"] < 0
    if node.op == "clamp" and node.attrs["min"] is not None:
        return bool(node.attrs["min"] < 0)
    if node.op == "pad":
        return inputs or (node.attrs["value"] or 0) < 0
    return False if sign == "positive" else inputs if sign == "keeps" else True


def encode(builder: Builder) -> dict[str, str]:
    """Put a neuron before every weight layer that would receive an analog value; returns neuron -> layer it feeds."""
    carries: dict[str, Carried] = {}
    made: dict[tuple[str, int], str] = {}
    fed: dict[str, str] = {}
    nodes, builder.nodes = builder.nodes, []
    for node in nodes:
        if node.op in OPERATORS and OPERATORS[node.op].weighted:
            builder.path, builder.source = node.path, node.source
            value = carries[node.inputs[0]]
            if not builder.kept_analog() and (value.kind == "analog" or (value.kind == "current" and value.timed)):
                name = _neuron(builder, node, value, made)
                fed.setdefault(name, node.name)
                node = Node(node.name, node.op, (name,), node.attrs, node.path, node.source)
                carries[name] = Carried("spikes", True, value.signed)
        carries[node.name] = carried(node, [carries[name] for name in node.inputs])
        builder.nodes.append(node)
    return fed


def _neuron(builder: Builder, layer: Node, value: Carried, made: dict[tuple[str, int], str]) -> str:
    source = layer.inputs[0]
    shape = builder.shapes[source]
    channel_dim = len(shape) - 1 if layer.op == "linear" else 1
    if (source, channel_dim) not in made:
        x = Ref(source, shape)
        attrs = {**neuron_attrs(builder, x, None, None if value.signed else 0.0), "channel_dim": channel_dim}
        name = builder.emit("neuron", (source,), attrs, name=f"{source}.spikes")
        builder.track(name, "neuron", (source,), attrs, shape)
        made[source, channel_dim] = name
    return made[source, channel_dim]
