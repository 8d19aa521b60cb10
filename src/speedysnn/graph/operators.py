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
from speedysnn.graph.activations import ACTIVATIONS, Activation

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
        attrs: names of its constants; a name that ends in "?" may be absent.
        arity: number of inputs, -1 for one or more.
        homogeneous: g(c x) = c g(x) for c > 0, so that a rate operator may run on sums instead of means.
        hybrid: needs an analog unit; spikes and accumulation alone cannot do it.
        weighted: multiplies by trained weights, so its input should be spikes.
        sign: of the result: "positive" whatever the inputs, what it "keeps" of non-negative inputs, or "any".
    """

    run: Run
    behaviour: Literal["affine", "rate"] = "affine"
    tensors: tuple[str, ...] = ()
    attrs: tuple[str, ...] = ()
    arity: int = 1
    homogeneous: bool = False
    hybrid: bool = False
    weighted: bool = False
    sign: str = "any"

    def check(self, name: str, inputs: int, attrs: Attrs) -> None:
        """Raise ArtifactError unless the number of inputs and the constants' names are right."""
        if inputs != self.arity if self.arity >= 0 else inputs < 1:
            raise ArtifactError(f"graph: node {name!r} reads {inputs} values, expected {self.arity}")
        needed = {attr for attr in self.attrs if not attr.endswith("?")}
        if not needed <= set(attrs) <= {attr.rstrip("?") for attr in self.attrs}:
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
    options = (a.get("recompute"), bool(a.get("antialias")))
    return F.interpolate(x[0], a["size"], a["scale"], a["mode"], a["align_corners"], *options)


def _expand(x: Sequence[Tensor], a: Attrs, _: Tensors) -> Tensor:
    """Shape constants: 0 stands for the input's own first dimension."""
    return x[0].expand([x[0].shape[0] if size == 0 else size for size in a["shape"]])


def _take(x: Sequence[Tensor], a: Attrs, w: Tensors) -> Tensor:
    """Entries of one dimension by an index tensor of any shape, which takes that dimension's place."""
    index, dim = w["index"], a["dim"]
    taken = x[0].index_select(dim, index.reshape(-1))
    return taken.reshape(*x[0].shape[:dim], *index.shape, *x[0].shape[dim + 1 :])


def _unary(function: Callable[..., Tensor], *names: str) -> Run:
    """A function of one tensor and of the constants of these names."""

    def run(x: Sequence[Tensor], a: Attrs, _: Tensors) -> Tensor:
        return function(x[0], *(a[name] for name in names))

    return run


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Run:
    def run(x: Sequence[Tensor], _: Attrs, __: Tensors) -> Tensor:
        return function(x[0], x[1])

    return run


def _compare(function: Callable[[Tensor, Any], Tensor]) -> Run:
    """One number `value` against the input; 1 where it holds."""

    def run(x: Sequence[Tensor], a: Attrs, _: Tensors) -> Tensor:
        return function(x[0], a["value"]).to(x[0].dtype)

    return run


def _layer_norm(x: Sequence[Tensor], a: Attrs, w: Tensors) -> Tensor:
    return F.layer_norm(x[0], a["shape"], w.get("weight"), w.get("bias"), a["eps"])


def _rms_norm(x: Sequence[Tensor], a: Attrs, w: Tensors) -> Tensor:
    return F.rms_norm(x[0], a["shape"], w.get("weight"), a["eps"])


def _group_norm(x: Sequence[Tensor], a: Attrs, w: Tensors) -> Tensor:
    return F.group_norm(x[0], a["groups"], w.get("weight"), w.get("bias"), a["eps"])


def _instance_norm(x: Sequence[Tensor], a: Attrs, w: Tensors) -> Tensor:
    return F.instance_norm(x[0], weight=w.get("weight"), bias=w.get("bias"), eps=a["eps"])


def _vector_norm(x: Sequence[Tensor], a: Attrs, _: Tensors) -> Tensor:
    out: Tensor = torch.linalg.vector_norm(x[0], a["p"], a["dim"], a["keepdim"])
    return out


def _variance(x: Sequence[Tensor], a: Attrs, _: Tensors) -> Tensor:
    return torch.var(x[0], a["dim"], correction=a["correction"], keepdim=a["keepdim"])


def _where(x: Sequence[Tensor], _: Attrs, __: Tensors) -> Tensor:
    return torch.where(x[0] > 0.5, x[1], x[2])


_HOMOGENEOUS = ("abs",)  # activations with g(c x) = c g(x)
_LRN = ("size", "alpha", "beta", "k")
_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_AVG = ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_MAX = ("kernel", "stride", "padding", "dilation", "ceil_mode")
_WEIGHTS = ("weight", "bias?")


def _activation(row: Activation) -> Operator:
    attrs = tuple(row.constants)
    return Operator(
        _unary(row.formula, *attrs),
        "rate",
        attrs=attrs,
        homogeneous=row.name in _HOMOGENEOUS,
        hybrid=True,
        sign=row.sign,
    )


def _analog(
    run: Run,
    attrs: tuple[str, ...] = (),
    tensors: tuple[str, ...] = (),
    arity: int = 1,
    sign: str = "any",
    homogeneous: bool = False,
) -> Operator:
    """A rate operator that needs an analog unit."""
    return Operator(run, "rate", tensors, attrs, arity, homogeneous, hybrid=True, sign=sign)


OPERATORS: dict[str, Operator] = {
    "conv1d": Operator(_conv(F.conv1d), tensors=_WEIGHTS, attrs=_CONV, weighted=True),
    "conv2d": Operator(_conv(F.conv2d), tensors=_WEIGHTS, attrs=_CONV, weighted=True),
    "conv3d": Operator(_conv(F.conv3d), tensors=_WEIGHTS, attrs=_CONV, weighted=True),
    "conv_transpose1d": Operator(
        _conv_transpose(F.conv_transpose1d), tensors=_WEIGHTS, attrs=_TRANSPOSED, weighted=True
    ),
    "conv_transpose2d": Operator(
        _conv_transpose(F.conv_transpose2d), tensors=_WEIGHTS, attrs=_TRANSPOSED, weighted=True
    ),
    "conv_transpose3d": Operator(
        _conv_transpose(F.conv_transpose3d), tensors=_WEIGHTS, attrs=_TRANSPOSED, weighted=True
    ),
    "linear": Operator(lambda x, a, w: F.linear(x[0], w["weight"], w.get("bias")), tensors=_WEIGHTS, weighted=True),
    "batch_norm": Operator(_batch_norm, tensors=("mean", "var", "weight?", "bias?"), attrs=("eps",)),
    "avg_pool1d": Operator(_avg_pool(1), attrs=_AVG, sign="keeps"),
    "avg_pool2d": Operator(_avg_pool(2), attrs=_AVG, sign="keeps"),
    "avg_pool3d": Operator(_avg_pool(3), attrs=_AVG, sign="keeps"),
    "adaptive_avg_pool1d": Operator(_adaptive(F.adaptive_avg_pool1d), attrs=("size",), sign="keeps"),
    "adaptive_avg_pool2d": Operator(_adaptive(F.adaptive_avg_pool2d), attrs=("size",), sign="keeps"),
    "adaptive_avg_pool3d": Operator(_adaptive(F.adaptive_avg_pool3d), attrs=("size",), sign="keeps"),
    "max_pool1d": Operator(_max_pool(F.max_pool1d), "rate", attrs=_MAX, homogeneous=True, sign="keeps"),
    "max_pool2d": Operator(_max_pool(F.max_pool2d), "rate", attrs=_MAX, homogeneous=True, sign="keeps"),
    "max_pool3d": Operator(_max_pool(F.max_pool3d), "rate", attrs=_MAX, homogeneous=True, sign="keeps"),
    "adaptive_max_pool1d": Operator(
        _adaptive(F.adaptive_max_pool1d), "rate", attrs=("size",), homogeneous=True, sign="keeps"
    ),
    "adaptive_max_pool2d": Operator(
        _adaptive(F.adaptive_max_pool2d), "rate", attrs=("size",), homogeneous=True, sign="keeps"
    ),
    "adaptive_max_pool3d": Operator(
        _adaptive(F.adaptive_max_pool3d), "rate", attrs=("size",), homogeneous=True, sign="keeps"
    ),
    "flatten": Operator(lambda x, a, w: x[0].flatten(a["start"], a["end"]), attrs=("start", "end"), sign="keeps"),
    "reshape": Operator(_reshape, attrs=("shape",), sign="keeps"),
    "permute": Operator(lambda x, a, w: x[0].permute(a["dims"]), attrs=("dims",), sign="keeps"),
    "squeeze": Operator(lambda x, a, w: x[0].squeeze(a["dim"]), attrs=("dim",), sign="keeps"),
    "unsqueeze": Operator(lambda x, a, w: x[0].unsqueeze(a["dim"]), attrs=("dim",), sign="keeps"),
    "mean": Operator(lambda x, a, w: x[0].mean(a["dim"], a["keepdim"]), attrs=("dim", "keepdim"), sign="keeps"),
    "sum": Operator(lambda x, a, w: x[0].sum(a["dim"], a["keepdim"]), attrs=("dim", "keepdim"), sign="keeps"),
    "pad": Operator(lambda x, a, w: F.pad(x[0], a["pad"], a["mode"], a["value"]), attrs=("pad", "mode", "value")),
    "slice": Operator(_slices, attrs=("index",), sign="keeps"),
    "interpolate": Operator(_interpolate, attrs=("size", "scale", "mode", "align_corners", "recompute?", "antialias?")),
    "identity": Operator(lambda x, a, w: x[0], sign="keeps"),
    "add": Operator(lambda x, a, w: x[0] + x[1], arity=2, sign="keeps"),
    "sub": Operator(lambda x, a, w: x[0] - x[1], arity=2),
    "cat": Operator(lambda x, a, w: torch.cat(tuple(x), a["dim"]), attrs=("dim",), arity=-1, sign="keeps"),
    "stack": Operator(lambda x, a, w: torch.stack(tuple(x), a["dim"]), attrs=("dim",), arity=-1, sign="keeps"),
    "scale": Operator(lambda x, a, w: x[0] * a["factor"] + a["offset"], attrs=("factor", "offset")),
    "affine": Operator(_affine, tensors=("weight?", "bias?")),
    "pixel_shuffle": Operator(lambda x, a, w: F.pixel_shuffle(x[0], a["factor"]), attrs=("factor",), sign="keeps"),
    "channel_shuffle": Operator(lambda x, a, w: F.channel_shuffle(x[0], a["groups"]), attrs=("groups",), sign="keeps"),
    "constant": Operator(_constant, tensors=("value",)),
    "expand": Operator(_expand, attrs=("shape",), sign="keeps"),
    "repeat": Operator(lambda x, a, w: x[0].repeat(a["repeats"]), attrs=("repeats",), sign="keeps"),
    "roll": Operator(lambda x, a, w: x[0].roll(a["shifts"], a["dims"]), attrs=("shifts", "dims"), sign="keeps"),
    "flip": Operator(lambda x, a, w: x[0].flip(a["dims"]), attrs=("dims",), sign="keeps"),
    "masked_fill": Operator(
        lambda x, a, w: x[0].masked_fill(w["mask"], a["value"]), tensors=("mask",), attrs=("value",)
    ),
    "take": Operator(_take, tensors=("index",), attrs=("dim",), sign="keeps"),
    "pixel_unshuffle": Operator(lambda x, a, w: F.pixel_unshuffle(x[0], a["factor"]), attrs=("factor",), sign="keeps"),
    "unfold": Operator(
        lambda x, a, w: F.unfold(x[0], a["kernel"], a["dilation"], a["padding"], a["stride"]),
        attrs=("kernel", "dilation", "padding", "stride"),
        sign="keeps",
    ),
    **{row.name: _activation(row) for row in ACTIVATIONS if row.behaviour == "rate"},
    "clamp": _analog(_unary(torch.clamp, "min", "max"), ("min", "max")),
    "pow": _analog(_unary(torch.pow, "exponent"), ("exponent",)),
    "softmax": _analog(_unary(torch.softmax, "dim"), ("dim",), sign="positive"),
    "log_softmax": _analog(_unary(torch.log_softmax, "dim"), ("dim",)),
    "glu": _analog(_unary(F.glu, "dim"), ("dim",)),
    "amax": _analog(_unary(torch.amax, "dim", "keepdim"), ("dim", "keepdim"), sign="keeps", homogeneous=True),
    "amin": _analog(_unary(torch.amin, "dim", "keepdim"), ("dim", "keepdim"), sign="keeps", homogeneous=True),
    "vector_norm": _analog(_vector_norm, ("p", "dim", "keepdim"), sign="positive", homogeneous=True),
    "var": _analog(_variance, ("dim", "correction", "keepdim"), sign="positive"),
    "layer_norm": _analog(_layer_norm, ("shape", "eps"), ("weight?", "bias?")),
    "rms_norm": _analog(_rms_norm, ("shape", "eps"), ("weight?",)),
    "group_norm": _analog(_group_norm, ("groups", "eps"), ("weight?", "bias?")),
    "instance_norm": _analog(_instance_norm, ("eps",), ("weight?", "bias?")),
    "local_response_norm": _analog(_unary(F.local_response_norm, *_LRN), _LRN, sign="keeps"),
    "mul": _analog(_binary(torch.mul), arity=2, sign="keeps"),
    "div": _analog(_binary(torch.div), arity=2, sign="keeps"),
    "matmul": _analog(_binary(torch.matmul), arity=2, sign="keeps"),
    "einsum": _analog(lambda x, a, w: torch.einsum(a["equation"], *x), ("equation",), arity=2, sign="keeps"),
    "maximum": _analog(_binary(torch.maximum), arity=2, sign="keeps", homogeneous=True),
    "minimum": _analog(_binary(torch.minimum), arity=2, sign="keeps", homogeneous=True),
    "gt": _analog(_compare(torch.gt), ("value",), sign="positive"),
    "ge": _analog(_compare(torch.ge), ("value",), sign="positive"),
    "lt": _analog(_compare(torch.lt), ("value",), sign="positive"),
    "le": _analog(_compare(torch.le), ("value",), sign="positive"),
    "where": _analog(_where, arity=3),
}
