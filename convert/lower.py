"""Turn a traced network into the graph: walk its calls, let each one's handler add nodes, and collect every problem.

`Lowering` is the walk. `handler_of` finds a call's handler by its module's class, its function or its name, and
`explained` says for the report how a call was treated and why.

`encode` then gives every weight layer spikes. A convolution or linear layer should be fed by spikes; what passed an
operator that is not linear, or another weight layer without an activation between, is no spike train any more: a neuron
is put before the next weight layer, signed where the value may be negative. The input and what is affine in it before
the first neuron stay as they are.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from speedysnn.convert.handler_api import (
    Builder,
    Call,
    Handler,
    Key,
    Ref,
    Unsupported,
    neuron_attrs,
    row_of,
)
from speedysnn.convert.ops import HANDLERS, require_read
from speedysnn.convert.report import (
    Accuracy,
    Cost,
    Row,
    Shape,
    Treatment,
    any_batch,
    any_ref,
    cost_of,
    has_tensor,
    plain,
    record,
)
from speedysnn.convert.trace import BatchTensor, Traced, source_of
from speedysnn.graph.ir import Node
from speedysnn.graph.operators import OPERATORS

_INPLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)

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


class Lowering:
    """One walk over the calls of a traced network, which builds its graph and the report's rows.

    Args:
        traced: the traced network.
        example: its inputs.
        handlers: user entries, which win over the registry.
        keep_analog: layer paths, or modules above them, in which no neuron is placed.
    """

    def __init__(
        self,
        traced: Traced,
        example: Sequence[Tensor],
        handlers: Mapping[Key, Handler],
        keep_analog: Sequence[str] = (),
    ) -> None:
        self.traced, self.module, self.handlers = traced, traced.module, {**HANDLERS, **handlers}
        self.records, self.reference = record(traced.module, example, traced.batches)
        self.builder, self.rows = Builder(keep_analog=tuple(keep_analog)), list[Row]()
        self.env: dict[fx.Node, Any] = {}
        self.called: set[str] = set()

    def run(self) -> Any:
        """Walk all calls; returns the output structure of node names (None if a problem was met)."""
        outputs: Any = None
        for node in self.module.graph.nodes:
            self.builder.path, self.builder.source = self.traced.path(node), source_of(node)
            if node.op == "placeholder":
                self.env[node] = self._placeholder(node)
            elif node.op == "get_attr":
                self.env[node] = self._attribute(str(node.target))
            elif node.op == "output":
                outputs = self._outputs(self.traced.structured(self._resolve(node.args[0])))
            else:
                self.env[node] = self._call(node)
        return outputs

    def _placeholder(self, node: fx.Node) -> Any:
        shape = self.records[node]
        if not isinstance(shape, Shape):
            return shape
        name = self.builder.emit("input", (), name=str(node.target))
        self.builder.track(name, "input", (), {}, shape)
        return Ref(name, tuple(shape))

    def _attribute(self, target: str) -> Any:
        value: Any = self.module
        for part in target.split("."):
            value = getattr(value, part)
        return value.detach() if isinstance(value, Tensor) else value

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.env[value]
        if isinstance(value, tuple | list):
            return tuple(self._resolve(item) for item in value)
        if isinstance(value, dict):
            return {key: self._resolve(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(self._resolve(value.start), self._resolve(value.stop), self._resolve(value.step))
        return value

    def _call(self, node: fx.Node) -> Any:
        recorded = self.records[node]
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is not None:
            self.called.add(str(node.target))
        if not has_tensor(recorded):
            return recorded
        args, kwargs = self._resolve(node.args), self._resolve(node.kwargs)
        before = len(self.builder.nodes)
        try:
            if module is None and not any_ref((args, kwargs)):
                return self._constant(node, args, kwargs)
            handler = handler_of(self.handlers, node, module)
            call = Call(self.builder, module, args, kwargs, recorded)
            result = handler(call)
            require_read(call, handler, node.target)
        except Unsupported as problem:
            self._report(node, "unsupported", "", problem.reason, problem.advice)
            return self._stand_in(node, recorded)
        self._explain(node, before)
        if is_inplace(node, module) and isinstance(node.args[0], fx.Node):
            self.env[node.args[0]] = result
        return result

    def _constant(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The value of a call that reads nothing from the input; what it makes for the batch serves any batch."""
        sized = any_batch((args, kwargs))
        args, kwargs = plain(args), plain(kwargs)
        if node.op == "call_method":
            value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            value = node.target(*args, **kwargs)
        if not sized or not torch.is_tensor(value):
            return value
        return BatchTensor(value)

    def _stand_in(self, node: fx.Node, recorded: Any) -> Any:
        """A value to go on with, so that every problem is found in one walk."""
        if isinstance(recorded, Shape):
            name = self.builder.emit("input", (), name=f"unsupported.{node.name}")
            self.builder.track(name, "input", (), {}, recorded)
            return Ref(name, tuple(recorded))
        if isinstance(recorded, tuple):
            return tuple(self._stand_in(node, item) for item in recorded)
        return recorded

    def _explain(self, node: fx.Node, before: int) -> None:
        made = self.builder.nodes[before:]
        cost = sum((cost_in(self.builder, new) for new in made), Cost())
        self._report(node, *explained(made), cost)

    def _report(
        self,
        node: fx.Node,
        treatment: Treatment,
        accuracy: Accuracy,
        why: str,
        advice: str = "",
        cost: Cost | None = None,
    ) -> None:
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        costs = asdict(cost or Cost())
        row = Row(
            self.builder.path, word_of(node, module), treatment, accuracy, why, advice, self.builder.source, **costs
        )
        self.rows.append(row)

    def encode(self) -> None:
        """Feed every weight layer with spikes, and say so in the report."""
        for name in encode(self.builder):
            node = next(node for node in self.builder.nodes if node.name == name)
            kind = "signed spikes" if node.attrs["floor"] is None else "spikes"
            why = f"re-encodes as {kind} what a weight layer receives, which is no spike train any more"
            costs = asdict(cost_in(self.builder, node))
            self.rows.append(Row(name, "encode", "spiking", "approximate", why, "", node.source, **costs))

    def _outputs(self, value: Any) -> Any:
        if isinstance(value, BatchTensor):
            value = Call(self.builder, None, (), {}, None).constant(row_of(value))
        if isinstance(value, Ref):
            return value.name
        if isinstance(value, dict):
            return {str(key): self._outputs(item) for key, item in value.items()}
        if isinstance(value, tuple | list) and value:
            return [self._outputs(item) for item in value]
        self.rows.append(
            Row("output", type(value).__name__, "unsupported", "", "an output that is no tensor", "return tensors only")
        )
        return []


def handler_of(handlers: Mapping[Key, Handler], node: fx.Node, module: nn.Module | None) -> Handler:
    """Find the handler of a call.

    Raises:
        Unsupported: there is none.
    """
    for key in _keys(node, module):
        if key in handlers:
            return handlers[key]
    if module is not None:
        name = f"{type(module).__module__}.{type(module).__name__}"
        line = f"to_spiking(..., handlers={{{type(module).__name__}: handler}})"
        raise Unsupported(f"{name} has no handler", f"use a ReLU network, or pass {line}")
    word = word_of(node, None)
    raise Unsupported(f"{word} has no handler", f"use a supported operator, or pass handlers={{{word!r}: handler}}")


def word_of(node: fx.Node, module: nn.Module | None) -> str:
    """The name of what is called: a module's class, a method, or a function."""
    if module is not None:
        return type(module).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _keys(node: fx.Node, module: nn.Module | None) -> list[Any]:
    """Registry keys in order: a module's class (or a base whose forward it keeps), a function, a method's name."""
    if module is not None:
        kinds = [cls for cls in type(module).__mro__ if getattr(cls, "forward", None) is type(module).forward]
        return [*kinds, f"{type(module).__module__}.{type(module).__name__}"]
    if isinstance(node.target, str):
        return [node.target]
    return [node.target, f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', '')}"]


def is_inplace(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the call changes its first argument."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if isinstance(node.target, str):
        return node.target.endswith("_")
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    name = str(getattr(node.target, "__name__", ""))  # torch.exp_, torch.nn.functional.elu_
    in_name = name.endswith("_") and not name.endswith("__")
    return in_name or node.target in _INPLACE or bool(node.kwargs.get("inplace", False))


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
