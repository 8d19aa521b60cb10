"""What NIR cannot say: every reason against writing a network, in plain words."""

from collections.abc import Iterator, Mapping
from typing import Any

from speedysnn.export._fold import WEIGHTED, plain
from speedysnn.graph import Node
from speedysnn.network import SpikingNetwork
from speedysnn.operators import OPERATORS

OTHERS = ("input", "add", "identity", "avg_pool2d", "adaptive_avg_pool2d", "flatten", "reshape")


def problems(snn: SpikingNetwork) -> Iterator[str]:
    """Everything that keeps the network from being folded, one line each."""
    if len(snn.graph.inputs) != 1 or not isinstance(snn.graph.outputs, str):
        yield "several inputs or outputs; expected one of each: convert the part between them"
    names = [plain(node.name) for node in snn.graph.nodes]
    if len(set(names)) < len(names):
        yield "two layers whose names differ only in '.' and '_'; rename one and convert again"
    by_name = {node.name: node for node in snn.graph.nodes}
    for node in snn.graph.nodes:
        yield from (f"{node.name!r}: {reason}" for reason in _node_problems(snn, node, by_name))


def _node_problems(snn: SpikingNetwork, node: Node, by_name: Mapping[str, Node]) -> Iterator[str]:
    if node.op == "neuron":
        yield from _neuron_problems(snn, node, by_name)
    elif node.op in OPERATORS and OPERATORS[node.op].hybrid:
        yield f"{node.op} needs an analog unit; replace it by ReLU and convert again without allow_hybrid"
    elif node.op.startswith(("max_pool", "adaptive_max_pool")):
        yield f"{node.op} of rates is no operator of NIR; use average pooling or a strided convolution and train again"
    elif node.op == "linear" and _rank(snn, node, by_name) not in (1, None):
        yield "a linear layer over more than one dimension; expected flattened features"
    elif node.op == "avg_pool2d" and not _plain_pool(node.attrs):
        yield "average pooling with ceil_mode, divisor_override or count_include_pad=False; expected the defaults"
    elif node.op == "flatten" and not (node.attrs["start"] == 1 and node.attrs["end"] in (-1, 2, 3)):
        yield "flattens other dimensions than all but the first; expected flatten(x, 1)"
    elif node.op == "reshape" and not (len(node.attrs["shape"]) == 2 and node.attrs["shape"][0] == 0):
        yield "reshape is no operator of NIR; expected flatten(x, 1)"
    elif node.op not in (*WEIGHTED, *OTHERS):
        yield f"{node.op} is not written to NIR; expected conv2d, linear, average pooling, add or flatten"


def _rank(snn: SpikingNetwork, node: Node, by_name: Mapping[str, Node]) -> int | None:
    before = by_name[node.inputs[0]]
    shape = snn.input_shapes[0] if before.op == "input" else before.attrs.get("shape")
    return None if shape is None or before.op == "reshape" else len(shape)


def _plain_pool(attrs: Mapping[str, Any]) -> bool:
    padded = attrs["padding"] not in (0, [0, 0], (0, 0))
    return not attrs["ceil_mode"] and attrs["divisor_override"] is None and (attrs["count_include_pad"] or not padded)


def _neuron_problems(snn: SpikingNetwork, node: Node, by_name: Mapping[str, Node]) -> Iterator[str]:
    neuron, before = snn.neurons[node.name], by_name[node.inputs[0]]
    if neuron.spikes != "binary":
        yield f"emits {neuron.spikes} spikes, NIR's neurons 0 or 1; re-convert with spikes='binary'"
    if neuron.signed:
        yield "emits negative spikes, NIR's neurons 0 or 1; put a ReLU there and convert again"
    if neuron.lookahead:
        yield f"looks {neuron.lookahead} steps ahead, NIR's neurons none; set_delay(0), or re-convert with delay=0"
    readers = sum(list(each.inputs).count(before.name) for each in by_name.values())
    if neuron.offset is not None and (before.op not in WEIGHTED or readers > 1):
        yield "has a corrected bias that no weight layer alone can take; re-convert with correct='none'"
