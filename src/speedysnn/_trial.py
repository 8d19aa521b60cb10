"""Whether what came out of a file is a network that runs: its records, options, and shapes, without using memory."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from speedysnn.errors import ArtifactError
from speedysnn.executor import run_graph
from speedysnn.graph import Graph, Node, map_outputs
from speedysnn.histogram import ActivationHistogram
from speedysnn.neurons import IFNeuron
from speedysnn.operators import OPERATORS

__all__ = ["check_histograms", "check_options", "check_records", "require_runs"]

_SAID = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
_LARGE = 2**31  # of a neuron's numbers
LARGEST = 2**33  # values of one layer for one picture; the largest networks there are stay a hundred times below
_WRONG = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, AssertionError)
_OPTIONS: dict[str, tuple[type, ...]] = {
    "width": (int, float), "detach_reset": (bool,), "channel_dim": (int,), "ceiling": (int, float, type(None)),
    "floor": (int, float, type(None)), "steps": (int, type(None)),
}  # fmt: skip


def require_runs(
    graph: Graph,
    tensors: Mapping[str, Mapping[str, Tensor]],
    neurons: Mapping[str, IFNeuron],
    shapes: Sequence[Sequence[int]],
) -> None:
    """Refuse a graph that does not fit its own tensors and input shapes, or asks for absurd memory.

    The graph runs once for two images on torch's "meta" device, which computes shapes alone.

    Raises:
        ArtifactError: the node where it stops, and why.
    """
    if len(shapes) != len(graph.inputs):
        raise ArtifactError(f"graph: expected {len(graph.inputs)} input shapes, one an input, got {len(shapes)}")
    floats = (x.dtype for own in tensors.values() for x in own.values() if x.is_floating_point())
    kind = next(floats, torch.float32)
    empty = partial(torch.empty, dtype=kind, device="meta")
    each = zip(graph.inputs, shapes, strict=True)
    given = (_checked_shape(node, partial(empty, (2, *shape))) for node, shape in each)
    try:
        values = run_graph(graph, given, _TrialRun(tensors, neurons))
    except NotImplementedError:  # an operator without shape rules: nothing can be said
        return
    map_outputs(graph.outputs, values)


class _TrialRun:
    """What a node gives on the "meta" device: shapes alone."""

    def __init__(self, tensors: Mapping[str, Mapping[str, Tensor]], neurons: Mapping[str, IFNeuron]) -> None:
        self.tensors, self.neurons = tensors, neurons

    def neuron(self, node: Node, drive: Tensor) -> Tensor:
        """The analog reading's shape."""
        return _checked_shape(node, lambda: _neuron(self.neurons[node.name], drive))

    def operator(self, node: Node, args: list[Tensor]) -> Tensor:
        """The operator's shape."""
        return _checked_shape(node, lambda: _run(node, args, self.tensors.get(node.name, {})))


def _checked_shape(node: Node, call: Callable[[], Any]) -> Tensor:
    """The call's result, (2, ...) and of a size that memory may hold."""
    try:
        out = call()
    except NotImplementedError:
        raise
    except _WRONG as err:
        reason = str(err).strip().partition("\n")[0]
        raise ArtifactError(f"graph: node {node.name!r} ({node.op}) cannot run: {reason}") from None
    if not isinstance(out, Tensor) or not out.ndim or out.shape[0] != 2 or out.numel() > 2 * LARGEST:
        made = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ArtifactError(f"graph: node {node.name!r} ({node.op}) gives {made} for two images")
    return out


def _run(node: Node, args: list[Tensor], own: Mapping[str, Tensor]) -> Tensor:
    index = {name: value.to("meta") for name, value in own.items()}
    if node.op == "take" and (own["index"].min() < -args[0].shape[node.attrs["dim"]]
                              or own["index"].max() >= args[0].shape[node.attrs["dim"]]):  # fmt: skip
        raise IndexError("an index lies outside the dimension it picks from")
    if node.op.startswith("conv"):  # shape rules take lists of any length here, kernels do not
        for name, value in node.attrs.items():
            if isinstance(value, list | tuple) and len(value) not in (1, args[0].ndim - 2):
                raise ValueError(f"{name}={list(value)} for {args[0].ndim - 2} dimensions")
    return OPERATORS[node.op].run(args, node.attrs, index)


def _neuron(neuron: IFNeuron, x: Tensor) -> Tensor:
    for value in (neuron.log_threshold, neuron.v_init, neuron.offset):
        if value is None:
            continue
        if value.ndim > 1 or (value.ndim and value.numel() != x.shape[neuron.channel_dim]):
            raise ValueError(
                f"its threshold, v_init and offset must be one number or {x.shape[neuron.channel_dim]}, one a channel "
                f"of {tuple(x.shape[1:])}, got shape {tuple(value.shape)}"
            )
    return neuron.analog(x)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options of a neuron that are of another type than it takes.

    Raises:
        ArtifactError: the option, what was expected, what came.
    """
    for option, kinds in _OPTIONS.items():
        value = options.get(option, 0.0 if float in kinds else False if bool in kinds else 0)
        if type(value) not in kinds or not (value is None or abs(value) < _LARGE):
            expected = " or ".join(_SAID[kind] for kind in kinds)
            raise ArtifactError(f"neuron {name!r}: {option} is {value!r}, expected {expected} (numbers below 2^31)")


def check_histograms(histograms: Mapping[str, ActivationHistogram], neurons: Mapping[str, IFNeuron]) -> None:
    """Refuse histograms of another number of channels than the thresholds they are kept for.

    Raises:
        ArtifactError: the layer, and both numbers.
    """
    for name, histogram in histograms.items():
        neuron = neurons.get(name)
        if neuron is None:
            raise ArtifactError(f"histogram {name!r}: no neuron is called so")
        rows = histogram.channels // 2 if neuron.signed else histogram.channels
        if neuron.log_threshold.numel() not in (1, rows) or neuron.v_init.numel() not in (1, rows):
            raise ArtifactError(
                f"histogram {name!r} has {rows} channels, its neuron {neuron.log_threshold.numel()} thresholds and "
                f"{neuron.v_init.numel()} initial membranes"
            )


def check_records(document: Mapping[str, Any]) -> None:
    """Refuse records of another form than `artifact.describe` writes, which commands would stumble over later.

    Raises:
        ArtifactError: the record, what was expected, what came.
    """
    provenance, shapes = document["provenance"], document["input_shapes"]
    tuned = provenance.get("finetuned", []) if isinstance(provenance, dict) else None
    normalize = provenance.get("normalize") if isinstance(provenance, dict) else None
    if not isinstance(tuned, list) or not all(_names_groups(run) for run in tuned):
        raise ArtifactError("provenance: expected an object whose 'finetuned' lists runs with what they trained")
    if not isinstance(normalize, str | None):
        raise ArtifactError(f"provenance: expected 'normalize' as text or null, got {normalize!r}")
    if not all(isinstance(size, int) and size > 0 for shape in shapes for size in shape):
        raise ArtifactError(f"input_shapes: expected lists of whole numbers of at least 1, got {shapes!r}")


def _names_groups(run: Any) -> bool:
    trained = run.get("config", {}).get("train") if isinstance(run, dict) and isinstance(run.get("config"), dict) else 0
    return isinstance(trained, list) and all(isinstance(name, str) for name in trained)
