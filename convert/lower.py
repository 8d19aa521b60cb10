"""Turn a traced network into the graph: walk the calls, ask each one's handler, collect every problem."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from speedysnn.convert.builder import BatchInt, Builder, Call, Ref, Unsupported
from speedysnn.convert.ops import HANDLERS, Handler, Key
from speedysnn.convert.report import Report, Row
from speedysnn.convert.trace import Shape, has_tensor, path_of, record, source_of, trace
from speedysnn.graph import Graph

_INPLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, torch.relu_)
_WHY = {
    "neuron": ("approximate", "becomes integrate-and-fire neurons; its error is what `analyze` measures"),
    "max_pool": ("exact", "exact in rate: the running maximum of the counts, emitted as differences"),
    "batch_norm": ("exact", "affine a channel: folded into the layer before it, else applied at every step"),
}


class Lowering:
    """One walk over a traced network.

    Args:
        module: the traced network.
        example: its inputs.
        handlers: user entries, which win over the registry.
    """

    def __init__(self, module: fx.GraphModule, example: Sequence[Tensor], handlers: Mapping[Key, Handler]) -> None:
        self.module, self.handlers = module, {**HANDLERS, **handlers}
        self.records, self.reference = record(module, example)
        self.builder, self.rows = Builder(), list[Row]()
        self.env: dict[fx.Node, Any] = {}
        self.called: set[str] = set()

    def run(self) -> Any:
        """Walk all calls; returns the output structure of node names (None if a problem was met)."""
        outputs: Any = None
        for node in self.module.graph.nodes:
            self.builder.path, self.builder.source = path_of(node), source_of(node)
            if node.op == "placeholder":
                self.env[node] = self._placeholder(node)
            elif node.op == "get_attr":
                self.env[node] = self._attribute(str(node.target))
            elif node.op == "output":
                outputs = self._outputs(self._resolve(node.args[0]))
            else:
                self.env[node] = self._call(node)
        return outputs

    def _placeholder(self, node: fx.Node) -> Any:
        shape = self.records[node]
        if not isinstance(shape, Shape):
            return shape
        return Ref(self.builder.emit("input", (), name=str(node.target)), tuple(shape))

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
            if module is None and not _any_ref((args, kwargs)):
                return self._fold_constant(node, args, kwargs)
            handler = self._handler(node, module)
            result = handler(Call(self.builder, module, args, kwargs, recorded))
        except Unsupported as problem:
            self._report(node, "unsupported", problem.reason, problem.advice)
            return self._stand_in(node, recorded)
        self._explain(node, before)
        if _is_inplace(node, module) and isinstance(node.args[0], fx.Node):
            self.env[node.args[0]] = result
        return result

    def _fold_constant(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if _any_batch((args, kwargs)):
            raise Unsupported("a tensor made for the batch size inside the network", "make it with a batch of 1")
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _handler(self, node: fx.Node, module: nn.Module | None) -> Handler:
        for key in _keys(node, module):
            if key in self.handlers:
                return self.handlers[key]
        if module is not None:
            name = f"{type(module).__module__}.{type(module).__name__}"
            line = f"to_spiking(..., handlers={{{type(module).__name__}: handler}})"
            raise Unsupported(f"{name} has no handler", f"use a ReLU network, or pass {line}")
        word = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        raise Unsupported(f"{word} has no handler", f"use a supported operator, or pass handlers={{{word!r}: handler}}")

    def _stand_in(self, node: fx.Node, recorded: Any) -> Any:
        """A value to go on with, so that every problem is found in one walk."""
        if isinstance(recorded, Shape):
            return Ref(self.builder.emit("input", (), name=f"unsupported.{node.name}"), tuple(recorded))
        if isinstance(recorded, tuple):
            return tuple(self._stand_in(node, item) for item in recorded)
        return recorded

    def _explain(self, node: fx.Node, before: int) -> None:
        made = [new.op for new in self.builder.nodes[before:]]
        if not made:
            self._report(node, "exact", "changes nothing when evaluating: left out")
            return
        for word, (treatment, why) in _WHY.items():
            if any(word in op for op in made):
                self._report(node, treatment, why)
                return
        self._report(node, "exact", "affine at every step, so its mean over time is exact")

    def _report(self, node: fx.Node, treatment: Any, why: str, advice: str = "") -> None:
        if node.op == "call_module":
            word = type(self.module.get_submodule(str(node.target))).__name__
        else:
            word = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        self.rows.append(Row(self.builder.path, word, treatment, why, advice, self.builder.source))

    def _outputs(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return value.name
        if isinstance(value, dict):
            return {str(key): self._outputs(item) for key, item in value.items()}
        if isinstance(value, tuple) and value:
            return [self._outputs(item) for item in value]
        self.rows.append(
            Row("output", type(value).__name__, "unsupported", "an output that is no tensor", "return tensors only")
        )
        return []


def _keys(node: fx.Node, module: nn.Module | None) -> list[Any]:
    """Registry keys in order: a module's class (or a base whose forward it keeps), a function, a method's name."""
    if module is not None:
        kinds = [cls for cls in type(module).__mro__ if getattr(cls, "forward", None) is type(module).forward]
        return [*kinds, f"{type(module).__module__}.{type(module).__name__}"]
    if isinstance(node.target, str):
        return [node.target]
    return [node.target, f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', '')}"]


def _is_inplace(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if isinstance(node.target, str):
        return node.target.endswith("_")
    return node.target in _INPLACE or bool(node.kwargs.get("inplace", False))


def _any_ref(value: Any) -> bool:
    return _holds(value, Ref)


def _any_batch(value: Any) -> bool:
    return _holds(value, BatchInt)


def _holds(value: Any, kind: type) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds(item, kind) for item in value)
    if isinstance(value, dict):
        return any(_holds(item, kind) for item in value.values())
    return isinstance(value, kind)


def lower(
    model: nn.Module, example: Sequence[Tensor], handlers: Mapping[Key, Handler]
) -> tuple[Graph | None, dict[str, dict[str, Tensor]], Report]:
    """Trace a model in evaluation mode and convert every call; the graph is None where the report has problems.

    Raises:
        ConversionError: the model cannot be traced, or does not run on the example.
    """
    traced = trace(model, tuple(key for key in handlers if isinstance(key, type)))
    walk = Lowering(traced, example, handlers)
    outputs = walk.run()
    leaves = [name for name, m in model.named_modules() if name and not list(m.children())]
    reached = {*walk.called, *(name.rsplit(".", 1)[0] for name in walk.called)}
    report = Report(
        network=type(model).__name__,
        rows=tuple(walk.rows),
        activations_found=sum("torch.nn.modules.activation" in type(m).__module__ for m in model.modules()),
        neurons=sum(node.op == "neuron" for node in walk.builder.nodes),
        never_called=tuple(name for name in leaves if name not in reached),
    )
    if not report.supported:
        return None, {}, report
    graph = walk.builder.finish(outputs)
    return graph, walk.builder.tensors, report
