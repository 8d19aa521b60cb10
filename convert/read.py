"""Read a network as a graph: torch.fx first, torch.export where that fails, and a useful message where both do."""

from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.convert.handler_api import Handler, Key
from speedysnn.convert.lower import Lowering
from speedysnn.convert.report import Report
from speedysnn.convert.trace import Traced, export, first_line, open_batches, trace
from speedysnn.errors import ConversionError, InputError, SpeedySNNError
from speedysnn.graph.ir import Graph

# Packages of modules that quantize: what such a network computes is not what its layers say.
_QUANTIZERS = ("torch.ao.", "torch.nn.quantized", "torch.nn.qat", "torch.nn.intrinsic.q", "torchao.",
               "torch.quantization")  # fmt: skip
_LISTED = 5  # modules that a message names

Lowered = tuple[Graph | None, dict[str, dict[str, Tensor]], Report]


def read(
    model: nn.Module,
    example: Sequence[Tensor],
    handlers: Mapping[Key, Handler],
    *,
    allow_hybrid: bool = False,
    keep_analog: Sequence[str] = (),
) -> Lowered:
    """Trace a model in evaluation mode and convert every call; the graph is None where the report has problems.

    Raises:
        ConversionError: neither torch.fx nor torch.export can trace the model, or it does not run on the example.
    """
    if isinstance(keep_analog, str):
        raise InputError(f"keep_analog: expected a list of layer paths, got {keep_analog!r}")
    refuse_quantized(model, handlers)
    options: dict[str, Any] = {"handlers": handlers, "allow_hybrid": allow_hybrid, "keep_analog": keep_analog}
    _require_run(model, example)
    if isinstance(model, torch.fx.GraphModule) and _is_exported(model):
        return lower(Traced(model, "export", open_batches(model, example), model), example, **options)
    leaves = tuple(key for key in handlers if isinstance(key, type))
    functions = tuple(key for key in handlers if isinstance(key, FunctionType))
    try:
        by_fx = lower(trace(model, leaves, functions), example, **options)
    except ConversionError as err:
        try:
            return lower(export(model, example), example, **options)
        except ConversionError as second:
            raise ConversionError(f"{err}; {second}. {_advice(model, example, options)}") from None
    if not any(row.treatment == "unsupported" for row in by_fx[2].rows):
        return by_fx
    try:
        by_export = lower(export(model, example), example, **options)
    except ConversionError:
        return by_fx
    return by_export if not any(row.treatment == "unsupported" for row in by_export[2].rows) else by_fx


def lower(
    traced: Traced,
    example: Sequence[Tensor],
    handlers: Mapping[Key, Handler],
    allow_hybrid: bool,
    keep_analog: Sequence[str],
) -> Lowered:
    """Convert every call of a traced network."""
    walk = Lowering(traced, example, handlers, keep_analog)
    outputs = walk.run()
    for path in keep_analog:
        if not any(row.path == path or row.path.startswith(f"{path}.") for row in walk.rows):
            names = ", ".join(dict.fromkeys(row.path for row in walk.rows[:20]))
            raise InputError(f"keep_analog: the network has no module {path!r}; there are {names}, ...")
    if not any(row.treatment == "unsupported" for row in walk.rows):
        walk.encode()
    model = traced.model
    called = {*walk.called, *(scope for node in traced.module.graph.nodes for scope in traced.scopes(node))}
    leaves = [name for name, m in model.named_modules()
              if name and not list(m.children()) and not isinstance(m, nn.Sequential)]  # fmt: skip
    report = Report(
        network=type(model).__name__,
        rows=tuple(walk.rows),
        activations_found=sum("torch.nn.modules.activation" in type(m).__module__ for m in model.modules()),
        neurons=sum(node.op == "neuron" for node in walk.builder.nodes),
        never_called=tuple(name for name in leaves if name not in called and not _inside_leaf(name, walk.called)),
        allow_hybrid=allow_hybrid,
        tracer=traced.tracer,
    )
    if not report.supported:
        return None, {}, report
    graph = walk.builder.finish(outputs)
    return graph, walk.builder.tensors, report


def _inside_leaf(name: str, called: set[str]) -> bool:
    """Whether a module is a part of one that was converted as a whole."""
    return any(name.startswith(f"{module}.") for module in called)


def _is_exported(model: torch.fx.GraphModule) -> bool:
    return any(isinstance(node.target, torch._ops.OpOverload) for node in model.graph.nodes)


def _require_run(model: nn.Module, example: Sequence[Tensor]) -> None:
    try:
        model(*example)
    except SpeedySNNError:
        raise
    except Exception as err:  # the user's forward may raise anything
        shapes = ", ".join(str(tuple(x.shape)) for x in example)
        hint = "; if it was exported for one batch size, export it again with dynamic_shapes"
        raise ConversionError(
            f"the network does not run on the example input {shapes}: {first_line(err)}"
            f"{hint if isinstance(model, torch.fx.GraphModule) else ''}"
        ) from None


def _advice(model: nn.Module, example: Sequence[Tensor], options: dict[str, Any]) -> str:
    """Advice that names modules inside which can be converted on their own, the largest first."""
    inputs = _seen(model, example)
    parts: list[str] = []
    for name, module in model.named_modules():
        if not name or name not in inputs or any(name.startswith(f"{part}.") for part in parts):
            continue
        if not list(module.children()):
            continue
        try:
            ok = lower(trace(module), inputs[name], **{**options, "allow_hybrid": True})[2].supported
        except ConversionError:
            ok = False
        if ok:
            parts.append(name)
    sizes = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in parts}
    ordered = sorted(parts, key=lambda name: -sizes[name])[:3]
    if not ordered:
        return "Rewrite that line without decisions on tensor values and without *args"
    return f"Rewrite that line, or convert a module inside that can be: {', '.join(ordered)}"


def _seen(model: nn.Module, example: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The tensors each module received first, in one run."""
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if name not in seen and args and all(isinstance(arg, Tensor) and arg.ndim for arg in args):
                seen[name] = list(args)

        return hook

    handles = [m.register_forward_pre_hook(keep(name)) for name, m in model.named_modules()]
    try:
        model(*example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def refuse_quantized(model: nn.Module, handlers: Mapping[Key, Handler]) -> None:
    """Refuse fake-quantizers, observers and quantized layers, which round weights too and run on integers.

    Raises:
        ConversionError: there are some that no handler was given for; lists their layer paths.
    """
    found = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if type(module).__module__.startswith(_QUANTIZERS) and type(module) not in handlers and not _is_float(module)
    }
    if not found:
        return
    listed = ", ".join(f"{name or 'the network'} ({kind})" for name, kind in list(found.items())[:_LISTED])
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    raise ConversionError(
        f"{type(model).__name__} was prepared for quantization: {listed}{more}. Expected a network in floating point: "
        "build the network without prepare_qat or convert and load the trained weights into it (batch-norm moves from "
        "'0.bn.' to its own layer), or train the clips (QCFS, PACT, LSQ), which become thresholds. What the thresholds "
        "cost is then measured by `speedysnn analyze`"
    )


def _is_float(module: nn.Module) -> bool:
    """Whether it only groups float layers, or does nothing until the network is converted."""
    return type(module).__name__ in ("ConvReLU2d", "LinearReLU", "QuantStub", "DeQuantStub", "QuantWrapper") and (
        not type(module).__module__.startswith(("torch.ao.nn.intrinsic.q", "torch.ao.nn.q"))
    )
