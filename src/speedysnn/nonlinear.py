"""Operators that are not linear in their input, as the hybrid part of a network runs them.

In the spiking reading they act on the running mean and emit its difference, y[t] = t g(mean[1..t]) -
(t-1) g(mean[1..t-1]), so that the mean over T steps is exactly g of the mean. They need an analog unit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attrs = Mapping[str, Any]
Tensors = Mapping[str, Tensor]
Run = Callable[[Sequence[Tensor], Attrs, Tensors], Tensor]


def _unary(function: Callable[..., Tensor], *names: str) -> Run:
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


def _gelu(x: Sequence[Tensor], a: Attrs, _: Tensors) -> Tensor:
    return F.gelu(x[0], approximate=a["approximate"])


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


_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "exp": torch.exp,
    "abs": torch.abs,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
    "selu": F.selu,
    "mish": F.mish,
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "log": torch.log,
    "reciprocal": torch.reciprocal,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
}

# name -> run, constants, owned tensors, inputs, sign of the result ("positive", "keeps" or "any")
NONLINEAR: dict[str, tuple[Run, tuple[str, ...], tuple[str, ...], int, str]] = {
    **{name: (_unary(run), (), (), 1, "any") for name, run in _ELEMENTWISE.items()},
    **{
        name: (_unary(_ELEMENTWISE[name]), (), (), 1, "positive")
        for name in ("sigmoid", "hardsigmoid", "exp", "abs", "square", "sqrt", "rsqrt")
    },
    "gelu": (_gelu, ("approximate",), (), 1, "any"),
    "elu": (_unary(F.elu, "alpha"), ("alpha",), (), 1, "any"),
    "celu": (_unary(F.celu, "alpha"), ("alpha",), (), 1, "any"),
    "softplus": (_unary(F.softplus, "beta", "threshold"), ("beta", "threshold"), (), 1, "positive"),
    "hardshrink": (_unary(F.hardshrink, "lambd"), ("lambd",), (), 1, "any"),
    "softshrink": (_unary(F.softshrink, "lambd"), ("lambd",), (), 1, "any"),
    "clamp": (_unary(torch.clamp, "min", "max"), ("min", "max"), (), 1, "any"),
    "pow": (_unary(torch.pow, "exponent"), ("exponent",), (), 1, "any"),
    "softmax": (_unary(torch.softmax, "dim"), ("dim",), (), 1, "positive"),
    "log_softmax": (_unary(torch.log_softmax, "dim"), ("dim",), (), 1, "any"),
    "glu": (_unary(F.glu, "dim"), ("dim",), (), 1, "any"),
    "amax": (_unary(torch.amax, "dim", "keepdim"), ("dim", "keepdim"), (), 1, "keeps"),
    "amin": (_unary(torch.amin, "dim", "keepdim"), ("dim", "keepdim"), (), 1, "keeps"),
    "vector_norm": (_vector_norm, ("p", "dim", "keepdim"), (), 1, "positive"),
    "var": (_variance, ("dim", "correction", "keepdim"), (), 1, "positive"),
    "layer_norm": (_layer_norm, ("shape", "eps"), ("weight?", "bias?"), 1, "any"),
    "rms_norm": (_rms_norm, ("shape", "eps"), ("weight?",), 1, "any"),
    "group_norm": (_group_norm, ("groups", "eps"), ("weight?", "bias?"), 1, "any"),
    "instance_norm": (_instance_norm, ("eps",), ("weight?", "bias?"), 1, "any"),
    "local_response_norm": (
        _unary(F.local_response_norm, "size", "alpha", "beta", "k"), ("size", "alpha", "beta", "k"), (), 1, "keeps",
    ),
    "mul": (_binary(torch.mul), (), (), 2, "keeps"),
    "div": (_binary(torch.div), (), (), 2, "keeps"),
    "matmul": (_binary(torch.matmul), (), (), 2, "keeps"),
    "einsum": (lambda x, a, w: torch.einsum(a["equation"], *x), ("equation",), (), 2, "keeps"),
    "maximum": (_binary(torch.maximum), (), (), 2, "keeps"),
    "minimum": (_binary(torch.minimum), (), (), 2, "keeps"),
    "gt": (_compare(torch.gt), ("value",), (), 1, "positive"),
    "ge": (_compare(torch.ge), ("value",), (), 1, "positive"),
    "lt": (_compare(torch.lt), ("value",), (), 1, "positive"),
    "le": (_compare(torch.le), ("value",), (), 1, "positive"),
    "where": (_where, (), (), 3, "any"),
}  # fmt: skip
