"""Read a network as a graph, by torch.fx or torch.export, and prove that the graph is the network.

`read` tries torch.fx first and torch.export where that fails, with a useful message where both do. The proof: the
graph's analog reading gives what the source network gives, to a relative error below 1e-5. A network of staircases is
proven in float64 (`exact_error`): in float32 a rounding error at a tie is a whole step. All others are proven in their
own type, on a GPU without TF32 (`full_precision`), whose mantissa has only 10 bits.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from speedysnn.convert.handler_api import Handler, Key
from speedysnn.convert.lower import Lowering
from speedysnn.convert.report import Report
from speedysnn.convert.trace import Traced, evaluating, export, first_line, open_batches, trace
from speedysnn.display import Done, no_progress
from speedysnn.errors import ConversionError, InputError, SpeedySNNError
from speedysnn.graph.ir import Graph, fold_batch_norm
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.layer import IFNeuron

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
    again: bool = False,
) -> Lowered:
    """Trace a model in evaluation mode and convert every call; the graph is None where the report has problems.

    `again`: torch.fx read another network than the model is, as what changes a tensor under another name does to it;
    torch.export reads it, with nothing in place.

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
    if again:
        return lower(export(model, example, functional=True), example, **options)
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


TOLERANCE = 1e-5
_UNSEEN = (
    "nothing was converted. The source may use hooks, weight normalisation or in-place operations that tracing does "
    "not see: remove them and convert again"
)

Run = Callable[..., Any]
Tensors = Mapping[str, Mapping[str, Tensor]]


def leaves(value: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def relative_error(ours: Any, reference: Any) -> float:
    """Norm of the difference over the norm of the reference, all outputs together."""
    pairs = list(zip(leaves(ours), leaves(reference), strict=True))
    for a, b in pairs:
        if a.shape != b.shape:
            raise ConversionError(
                f"the converted graph gives {tuple(a.shape)} where the source network gives {tuple(b.shape)}; {_UNSEEN}"
            )
    noise = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    signal = sum(float(b.double().square().sum()) for _, b in pairs)
    return math.sqrt(noise / signal) if signal > 0 else math.sqrt(noise)


def require_equal(ours: Any, reference: Any) -> float:
    """Check the analog reading against the source network, and return its relative error.

    Raises:
        ConversionError: it is not below 1e-5, or something is not finite.
    """
    if not all(bool(torch.isfinite(leaf).all()) for leaf in leaves(reference)):
        raise ConversionError(
            "the source network gives NaN or infinity on the first calibration batch: check the checkpoint and the "
            "input's normalisation"
        )
    error = relative_error(ours, reference)
    if not error < TOLERANCE:
        raise ConversionError(
            f"the converted graph differs from the source network by {error:.2e} (relative, expected below "
            f"{TOLERANCE:.0e}); {_UNSEEN}"
        )
    return error


_SIZE_TOLERANCE = 2e-2  # of a network fixed to its size, which is further off; staircases step at rounding errors
_GROWN = (1, 32)  # by one, and to the next size of a network that halves its images five times


def free_sizes(source: Run, ours: Run, example: Sequence[Tensor]) -> list[list[int]]:
    """Dimensions of each input, counted behind the batch, that may have another size than the example's.

    Both networks are run at larger sizes. A dimension is free where they give the same whenever the source runs, and it
    runs at least once: what was read from a size, a padding or a divisor, then follows the input in the graph as well.
    Behind the first dimension all are tried together, or all but the next few where the source refuses.
    """
    ranks = [x.ndim - 1 for x in example]
    free: set[int] = set()
    for first in range(1, max(ranks, default=0)):
        verdict = _same_when_grown(source, ours, example, range(first, max(ranks)))
        if verdict is not None:
            free.update(range(first, max(ranks)) if verdict else ())
            break
    if _same_when_grown(source, ours, example, range(1)):
        free.add(0)
    return [sorted(dim for dim in free if dim < rank) for rank in ranks]


def _same_when_grown(source: Run, ours: Run, example: Sequence[Tensor], dims: range) -> bool | None:
    """Whether both give the same for larger inputs; None where the source takes none of them."""
    seen = False
    for by in _GROWN:
        grown = [_grown(x, dims, by) for x in example]
        try:
            reference = source(*grown)
        except Exception:
            continue
        if not all(bool(leaf.isfinite().all()) for leaf in leaves(reference)):
            continue
        try:
            if not relative_error(ours(*grown), reference) < _SIZE_TOLERANCE:
                return False
        except (ConversionError, RuntimeError, IndexError, ValueError):
            return False
        seen = True
    return True if seen else None


def _grown(x: Tensor, dims: range, by: int) -> Tensor:
    """The tensor repeated to larger sizes; by one in its first dimension, by two in the next, or by 32 in each."""
    for dim in (dim for dim in dims if dim < x.ndim - 1):
        size = x.shape[dim + 1] + (by + dim - dims[0] if by == 1 else by)
        x = x.index_select(dim + 1, torch.arange(size, device=x.device) % x.shape[dim + 1])
    return x


def has_staircases(graph: Graph) -> bool:
    """Whether a source activation is a quantizer, so that its output jumps."""
    return any(node.attrs.get("steps") is not None for node in graph.neurons)


def exact_error(
    ann: nn.Module,
    graph: Graph,
    tensors: Tensors,
    neurons: Mapping[str, IFNeuron],
    example: Sequence[Tensor],
    fold_bn: bool,
    done: Done = no_progress,
) -> float | None:
    """Relative error of the analog reading, source and graph both in float64; None if the source runs only in float32.

    `done` is called with 1 after the source's answer and after the graph's.

    Batch-norm moves values by some 1e-7 when it is folded in float32, which takes a few of 1e5 values over a tie: each
    is then a whole step off, in a graph that is right. In float64 no value is that close to one.

    Raises:
        ConversionError: the error is not below 1e-5.
    """
    inputs = [x.double() if x.is_floating_point() else x for x in example]
    try:
        source = copy.deepcopy(ann).double()
        with evaluating(source):
            reference = source(*inputs)
    except (RuntimeError, TypeError, ValueError):  # float32 tensors made in forward, a kernel without float64, no copy
        return None
    done(1)
    wide = {
        name: {key: value.double() if value.is_floating_point() else value.clone() for key, value in own.items()}
        for name, own in tensors.items()
    }
    folded = fold_batch_norm(graph, wide) if fold_bn else graph
    shapes = [x.shape[1:] for x in inputs]
    snn = SpikingNetwork(folded, wide, neurons, 1, shapes).double().to(inputs[0].device)
    with torch.no_grad(), snn.reading("analog"):
        ours = snn(*inputs)
    done(1)
    return require_equal(ours, reference)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TF32 in convolutions and matrix products on this device; the settings come back."""
    if device.type != "cuda":
        yield
        return
    settings = _settings()
    before = [read() for read, _, _ in settings]
    try:
        for _, write, exact in settings:
            write(exact)
        yield
    finally:
        for (_, write, _), value in zip(settings, before, strict=True):
            write(value)


def _settings() -> list[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """(read, write, value for full precision): torch's older settings, or those of torch 2.9 where they are in use.

    torch refuses to read the older one where the newer was set otherwise.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    try:
        convolutions.allow_tf32  # noqa: B018 - it raises
        own = partial(getattr, convolutions, "allow_tf32"), partial(setattr, convolutions, "allow_tf32"), False
        return [own, (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")]
    except RuntimeError:
        owners = (getattr(convolutions, "conv", None), getattr(convolutions, "rnn", None), products)
        word = "fp32_precision"
        return [(partial(getattr, owner, word), partial(setattr, owner, word), "ieee") for owner in owners]
