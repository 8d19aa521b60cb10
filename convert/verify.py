"""Prove that the converted network's analog reading is the source network, to a relative error below 1e-5.

A network of staircases is proven in float64 (`exact_error`): in float32 a rounding error at a tie is a whole step. All
others are proven in their own type, on a GPU without TF32 (`full_precision`), whose mantissa has only 10 bits.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from speedysnn.convert.trace import evaluating
from speedysnn.display import Done, no_progress
from speedysnn.errors import ConversionError
from speedysnn.graph.ir import Graph, fold_batch_norm
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.layer import IFNeuron

TOLERANCE = 1e-5

Tensors = Mapping[str, Mapping[str, Tensor]]


def leaves(value: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def relative_error(ours: Any, reference: Any) -> float:
    """Norm of the difference over the norm of the reference, all outputs together."""
    pairs = list(zip(leaves(ours), leaves(reference), strict=True))
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
            f"{TOLERANCE:.0e}); nothing was converted. The source may use hooks, weight normalisation or in-place "
            "operations that tracing does not see: remove them and convert again"
        )
    return error


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
