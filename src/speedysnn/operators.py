"""The operators a network may hold: one table, name -> how it runs and how it behaves in time.

An `affine` operator treats batch entries alone and is affine in its inputs together, so that applied at every step its
mean over time is the operator of the mean. A `rate` operator is not; the spiking reading emits the difference of its
running totals, y[t] = t g(mean of x[1..t]) - (t-1) g(mean of x[1..t-1]), whose mean over T is exactly g of the mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn.errors import ArtifactError

Attrs = Mapping[str, Any]
Tensors = Mapping[str, Tensor]
Run = Callable[[Sequence[Tensor], Attrs, Tensors], Tensor]


@dataclass(frozen=True)
class Operator:
    """How one kind of node runs.

    Attributes:
        run: (inputs, attrs, tensors) -> output.
        behaviour: "affine" or "rate" (see the module).
        tensors: names of the tensors it owns; a name that ends in "?" may be absent.
        attrs: names of its constants.
        arity: number of inputs, -1 for one or more.
        homogeneous: g(c x) = c g(x) for c > 0, so that a rate operator may run on sums instead of means.
    """

    run: Run
    behaviour: Literal["affine", "rate"] = "affine"
    tensors: tuple[str, ...] = ()
    attrs: tuple[str, ...] = ()
    arity: int = 1
    homogeneous: bool = False

    def check(self, name: str, inputs: int, attrs: Attrs) -> None:
        """Raise ArtifactError unless the number of inputs and the constants' names are right."""
        if inputs != self.arity if self.arity >= 0 else inputs < 1:
            raise ArtifactError(f"graph: node {name!r} reads {inputs} values, expected {self.arity}")
        if set(attrs) != set(self.attrs):
            raise ArtifactError(
                f"graph: node {name!r} has the constants {sorted(attrs)}, expected {sorted(self.attrs)}"
            )


def _conv(function: Callable[..., Tensor]) -> Run:
    def run(x: Sequence[Tensor], a: Attrs, w: Tensors) -> Tensor:
        return function(x[0], w["weight"], w.get("bias"), a["stride"], a["padding"], a["dilation"], a["groups"])

    return run


def _conv_transpose(function: Callable[..., Tensor]) -> Run:
    def run(x: Sequence[Tensor], a: Attrs, w: Tensors) -> Tensor:
        return function(
            x[0], w["weight"], w.get("bias"), a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"]
        )

    return run


def _batch_norm(x: Sequence[Tensor], a: Attrs, w: Tensors) -> Tensor:
    return F.batch_norm(x[0], w["mean"], w["var"], w.get("weight"), w.get("bias"), False, 0.0, a["eps"])


def _avg_pool(dims: int) -> Run:
    function: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]

    def run(x: Sequence[Tensor], a: Attrs, _: Tensors) -> Tensor:
        extra = () if dims == 1 else (a["divisor_override"],)
        return function(x[0], a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"], *extra)

    return run


def _max_pool(function: Callable[..., Tensor]) -> Run:
    def run(x: Sequence[Tensor], a: Attrs, _: Tensors) -> Tensor:
        return function(x[0], a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])

    return run


def _adaptive(function: Callable[..., Tensor]) -> Run:
    def run(x: Sequence[Tensor], a: Attrs, _: Tensors) -> Tensor:
        return function(x[0], a["size"])

    return run


def _slices(x: Sequence[Tensor], a: Attrs, _: Tensors) -> Tensor:
    """Constants: for every dimension, [start, stop, step] or one index; None keeps the dimension whole."""
    index: list[Any] = []
    for item in a["index"]:
        index.append(slice(None) if item is None else slice(*item) if isinstance(item, list | tuple) else int(item))
    return x[0][tuple(index)]


def _reshape(x: Sequence[Tensor], a: Attrs, _: Tensors) -> Tensor:
    """Shape constants: 0 stands for the input's own first dimension, -1 for what is left."""
    return x[0].reshape([x[0].shape[0] if size == 0 else size for size in a["shape"]])


def _affine(x: Sequence[Tensor], _: Attrs, w: Tensors) -> Tensor:
    out = x[0] * w["weight"] if "weight" in w else x[0]
    return out + w["bias"] if "bias" in w else out


def _constant(x: Sequence[Tensor], _: Attrs, w: Tensors) -> Tensor:
    return w["value"].expand(x[0].shape[0], *w["value"].shape[1:])


def _interpolate(x: Sequence[Tensor], a: Attrs, _: Tensors) -> Tensor:
    return F.interpolate(x[0], a["size"], a["scale"], a["mode"], a["align_corners"])


_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_AVG = ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_MAX = ("kernel", "stride", "padding", "dilation", "ceil_mode")
_WEIGHTS = ("weight", "bias?")

OPERATORS: dict[str, Operator] = {
    "conv1d": Operator(_conv(F.conv1d), tensors=_WEIGHTS, attrs=_CONV),
    "conv2d": Operator(_conv(F.conv2d), tensors=_WEIGHTS, attrs=_CONV),
    "conv3d": Operator(_conv(F.conv3d), tensors=_WEIGHTS, attrs=_CONV),
    "conv_transpose1d": Operator(_conv_transpose(F.conv_transpose1d), tensors=_WEIGHTS, attrs=_TRANSPOSED),
    "conv_transpose2d": Operator(_conv_transpose(F.conv_transpose2d), tensors=_WEIGHTS, attrs=_TRANSPOSED),
    "conv_transpose3d": Operator(_conv_transpose(F.conv_transpose3d), tensors=_WEIGHTS, attrs=_TRANSPOSED),
    "linear": Operator(lambda x, a, w: F.linear(x[0], w["weight"], w.get("bias")), tensors=_WEIGHTS),
    "batch_norm": Operator(_batch_norm, tensors=("mean", "var", "weight?", "bias?"), attrs=("eps",)),
    "avg_pool1d": Operator(_avg_pool(1), attrs=_AVG),
    "avg_pool2d": Operator(_avg_pool(2), attrs=_AVG),
    "avg_pool3d": Operator(_avg_pool(3), attrs=_AVG),
    "adaptive_avg_pool1d": Operator(_adaptive(F.adaptive_avg_pool1d), attrs=("size",)),
    "adaptive_avg_pool2d": Operator(_adaptive(F.adaptive_avg_pool2d), attrs=("size",)),
    "adaptive_avg_pool3d": Operator(_adaptive(F.adaptive_avg_pool3d), attrs=("size",)),
    "max_pool1d": Operator(_max_pool(F.max_pool1d), "rate", attrs=_MAX, homogeneous=True),
    "max_pool2d": Operator(_max_pool(F.max_pool2d), "rate", attrs=_MAX, homogeneous=True),
    "max_pool3d": Operator(_max_pool(F.max_pool3d), "rate", attrs=_MAX, homogeneous=True),
    "adaptive_max_pool1d": Operator(_adaptive(F.adaptive_max_pool1d), "rate", attrs=("size",), homogeneous=True),
    "adaptive_max_pool2d": Operator(_adaptive(F.adaptive_max_pool2d), "rate", attrs=("size",), homogeneous=True),
    "adaptive_max_pool3d": Operator(_adaptive(F.adaptive_max_pool3d), "rate", attrs=("size",), homogeneous=True),
    "flatten": Operator(lambda x, a, w: x[0].flatten(a["start"], a["end"]), attrs=("start", "end")),
    "reshape": Operator(_reshape, attrs=("shape",)),
    "permute": Operator(lambda x, a, w: x[0].permute(a["dims"]), attrs=("dims",)),
    "squeeze": Operator(lambda x, a, w: x[0].squeeze(a["dim"]), attrs=("dim",)),
    "unsqueeze": Operator(lambda x, a, w: x[0].unsqueeze(a["dim"]), attrs=("dim",)),
    "mean": Operator(lambda x, a, w: x[0].mean(a["dim"], a["keepdim"]), attrs=("dim", "keepdim")),
    "sum": Operator(lambda x, a, w: x[0].sum(a["dim"], a["keepdim"]), attrs=("dim", "keepdim")),
    "pad": Operator(lambda x, a, w: F.pad(x[0], a["pad"], a["mode"], a["value"]), attrs=("pad", "mode", "value")),
    "slice": Operator(_slices, attrs=("index",)),
    "interpolate": Operator(_interpolate, attrs=("size", "scale", "mode", "align_corners")),
    "identity": Operator(lambda x, a, w: x[0]),
    "add": Operator(lambda x, a, w: x[0] + x[1], arity=2),
    "sub": Operator(lambda x, a, w: x[0] - x[1], arity=2),
    "cat": Operator(lambda x, a, w: torch.cat(tuple(x), a["dim"]), attrs=("dim",), arity=-1),
    "stack": Operator(lambda x, a, w: torch.stack(tuple(x), a["dim"]), attrs=("dim",), arity=-1),
    "scale": Operator(lambda x, a, w: x[0] * a["factor"] + a["offset"], attrs=("factor", "offset")),
    "affine": Operator(_affine, tensors=("weight?", "bias?")),
    "pixel_shuffle": Operator(lambda x, a, w: F.pixel_shuffle(x[0], a["factor"]), attrs=("factor",)),
    "channel_shuffle": Operator(lambda x, a, w: F.channel_shuffle(x[0], a["groups"]), attrs=("groups",)),
    "constant": Operator(_constant, tensors=("value",)),
}
