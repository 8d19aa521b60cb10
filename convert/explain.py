"""What the report says of a call: exact, approximate or hybrid, why, and what it costs."""

from collections.abc import Sequence

from speedysnn.convert.builder import Builder
from speedysnn.convert.cost import Cost, cost_of
from speedysnn.convert.report import Accuracy, Treatment
from speedysnn.graph import Node
from speedysnn.operators import OPERATORS

_WHY = {
    "hybrid": "not linear: an analog unit applies it to the running mean and emits the difference",
    "neuron": "becomes integrate-and-fire neurons; its error is what `analyze` measures",
    "signed": "becomes integrate-and-fire neurons with signed spikes; its error is what `analyze` measures",
    "max_pool": "exact in rate: the running maximum of the counts, emitted as differences",
    "batch_norm": "affine a channel: folded into the layer before it, else applied at every step",
    "left out": "changes nothing when evaluating: left out",
    "affine": "affine at every step, so its mean over time is exact",
}
_HYBRID = "replace it by ReLU and batch-norm and retrain, or accept an analog unit with allow_hybrid=True"


def explained(made: Sequence[Node]) -> tuple[Treatment, Accuracy, str, str]:
    """Treatment, accuracy, why and advice of a call that became these nodes."""
    if any(new.op in OPERATORS and OPERATORS[new.op].hybrid for new in made):
        return "hybrid", "exact", _WHY["hybrid"], _HYBRID
    neurons = [new for new in made if new.op == "neuron"]
    if neurons:
        floor = neurons[0].attrs["floor"]
        return "spiking", "approximate", _WHY["signed" if floor is None or floor < 0 else "neuron"], ""
    words = [word for word in ("max_pool", "batch_norm") if any(word in new.op for new in made)]
    return "spiking", "exact", _WHY[words[0] if words else "affine" if made else "left out"], ""


def cost_in(builder: Builder, node: Node) -> Cost:
    """The cost of a node for one image."""
    images = next((builder.shapes[n.name][0] for n in builder.nodes if n.op == "input"), 1)
    return cost_of(node, builder.shapes, builder.tensors, max(1, images))
