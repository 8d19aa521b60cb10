"""Handlers of what is not linear: hybrid operators, and the two-neuron form of leaky rectifiers."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn.convert.builder import Ref, Unsupported
from speedysnn.convert.call import Call

Handler = Callable[[Call], Any]


def unary(op: str, *constants: tuple[str, Any]) -> Handler:
    """A hybrid operator of one input; constants by position after the input, or from the module."""

    def handle(call: Call) -> Ref:
        attrs = {}
        for position, (name, default) in enumerate(constants, 1):
            attrs[name] = getattr(call.module, name) if call.module else call.number(position, name, default)
        return call.emit(op, (call.ref(),), attrs)

    return handle


def along(op: str) -> Handler:
    """A hybrid operator along one dimension other than the batch (softmax, glu)."""

    def handle(call: Call) -> Ref:
        x = call.ref()
        m: Any = call.module
        dim = m.dim if m is not None else call.number(1, "dim", -1 if op == "glu" else None)
        if dim is None:
            raise Unsupported(f"{op} without a dimension", "name the dimension")
        return call.emit(op, (x,), {"dim": call.dims(dim, len(x.shape))[0]})

    return handle


def softmax2d(call: Call) -> Ref:
    """Softmax over channels."""
    return call.emit("softmax", (call.ref(),), {"dim": 1})


def leaky(call: Call) -> Ref:
    """LeakyReLU as two neuron layers: relu(x) - slope relu(-x)."""
    m: Any = call.module
    if m is None:
        return two_neurons(call, call.number(1, "negative_slope", 0.01))
    slope = m.negative_slope if isinstance(m, nn.LeakyReLU) else (m.lower + m.upper) / 2
    return two_neurons(call, float(slope))


def rrelu(call: Call) -> Ref:
    """RReLU in evaluation mode: its slope is the mean of the bounds."""
    return two_neurons(call, (call.number(1, "lower", 1 / 8) + call.number(2, "upper", 1 / 3)) / 2)


def prelu(call: Call) -> Ref:
    """PReLU as two neuron layers; one slope, or one a channel."""
    x = call.ref()
    weight = call.module.weight if call.module is not None else call.get(1, "weight")
    if not isinstance(weight, Tensor):
        raise Unsupported("a slope computed inside the network", "make it a parameter")
    return two_neurons(call, weight.detach().view(1, -1, *[1] * (len(x.shape) - 2)))


def two_neurons(call: Call, slope: float | Tensor) -> Ref:
    """max(x, 0) - slope max(-x, 0): one layer of neurons for each sign."""
    x = call.ref()
    up = call.neuron(x)
    negated = call.emit("scale", (x,), {"factor": -1.0, "offset": 0.0}, shape=x.shape)
    down = call.neuron(negated)
    if isinstance(slope, Tensor):
        scaled = call.emit("affine", (down,), None, {"weight": -slope}, shape=x.shape)
    else:
        scaled = call.emit("scale", (down,), {"factor": -float(slope), "offset": 0.0}, shape=x.shape)
    return call.emit("add", (up, scaled), shape=x.shape)


def _own(call: Call, position: int, name: str) -> Tensor | None:
    value = getattr(call.module, name, None) if call.module is not None else call.get(position, name)
    if value is not None and not isinstance(value, Tensor):
        raise Unsupported(f"its {name} is computed inside the network", "make it a parameter or a buffer")
    return value


def layer_norm(call: Call) -> Ref:
    """Layer-norm and RMS-norm over the last dimensions."""
    m: Any = call.module
    shape = list(m.normalized_shape if m is not None else call.number(1, "normalized_shape"))
    eps = m.eps if m is not None else call.number(4, "eps", 1e-5)
    tensors = {"weight": _own(call, 2, "weight"), "bias": _own(call, 3, "bias")}
    return call.emit("layer_norm", (call.ref(),), {"shape": shape, "eps": eps}, tensors)


def rms_norm(call: Call) -> Ref:
    """RMS-norm over the last dimensions."""
    m: Any = call.module
    shape = list(m.normalized_shape if m is not None else call.number(1, "normalized_shape"))
    eps = m.eps if m is not None else call.number(3, "eps")
    return call.emit("rms_norm", (call.ref(),), {"shape": shape, "eps": eps}, {"weight": _own(call, 2, "weight")})


def group_norm(call: Call) -> Ref:
    """Group-norm."""
    m: Any = call.module
    groups = m.num_groups if m is not None else call.number(1, "num_groups")
    eps = m.eps if m is not None else call.number(4, "eps", 1e-5)
    tensors = {"weight": _own(call, 2, "weight"), "bias": _own(call, 3, "bias")}
    return call.emit("group_norm", (call.ref(),), {"groups": groups, "eps": eps}, tensors)


def instance_norm(call: Call) -> Ref:
    """Instance-norm; with running statistics it is a batch-norm."""
    m: Any = call.module
    if m is None:
        if call.get(1, "running_mean") is not None:
            raise Unsupported("functional instance-norm with running statistics", "use the module")
        tensors, eps = {"weight": _own(call, 3, "weight"), "bias": _own(call, 4, "bias")}, call.number(7, "eps", 1e-5)
        return call.emit("instance_norm", (call.ref(),), {"eps": eps}, tensors)
    tensors = {"weight": m.weight, "bias": m.bias}
    if m.running_mean is not None:
        return call.emit(
            "batch_norm", (call.ref(),), {"eps": m.eps}, {"mean": m.running_mean, "var": m.running_var, **tensors}
        )
    return call.emit("instance_norm", (call.ref(),), {"eps": m.eps}, tensors)


def power(call: Call) -> Ref:
    """A constant power of the input."""
    exponent = call.number(1, "exponent")
    if not isinstance(exponent, int | float):
        raise Unsupported("a power that is no number", "use a constant exponent")
    return call.emit(
        "square" if exponent == 2 else "pow", (call.ref(),), {} if exponent == 2 else {"exponent": exponent}
    )


def operand(call: Call, value: Any, like: Ref) -> Ref:
    """A tensor of the graph, also for a number or a tensor of the model's own."""
    if isinstance(value, Ref):
        return value
    if isinstance(value, int | float):
        return call.emit("scale", (like,), {"factor": 0.0, "offset": float(value)}, shape=like.shape)
    if isinstance(value, Tensor):
        return constant(call, value)
    raise Unsupported(f"a {type(value).__name__} beside a tensor", "use a number or a tensor")


def constant(call: Call, value: Tensor, shape: tuple[int, ...] | None = None) -> Ref:
    """A tensor of the model's own, the same for every image; given a first dimension of 1 where it has none."""
    first = next((node for node in call.builder.nodes if node.op == "input"), None)
    if first is None:
        raise Unsupported("a constant before the network's input", "let the network read its input first")
    anchor = Ref(first.name, call.builder.shapes[first.name])
    kept = value if value.ndim and value.shape[0] == 1 else value.unsqueeze(0)
    return call.emit("constant", (anchor,), None, {"value": kept}, shape=shape or (anchor.shape[0], *kept.shape[1:]))


def pairwise(op: str) -> Handler:
    """Maximum and minimum of two branches, or of a branch and a constant."""

    def handle(call: Call) -> Ref:
        a, b = call.args[0], call.get(1, "other")
        like = a if isinstance(a, Ref) else call.ref(1, "other")
        return call.emit(op, (operand(call, a, like), operand(call, b, like)))

    return handle


def compare(op: str) -> Handler:
    """A comparison, 1 where it holds: with a number, or between two branches by their difference."""

    def handle(call: Call) -> Ref:
        x, other = call.ref(), call.get(1, "other")
        if isinstance(other, Ref):
            x, other = call.emit("sub", (x, other)), 0
        if not isinstance(other, int | float):
            raise Unsupported("a comparison with a tensor", "compare with a number")
        return call.emit(op, (x,), {"value": other})

    return handle


def where(call: Call) -> Ref:
    """torch.where(condition computed from the input, a, b)."""
    condition = call.ref(0, "condition")
    branches = [operand(call, call.get(i, name), condition) for i, name in ((1, "input"), (2, "other"))]
    return call.emit("where", (condition, *branches))


def reduce(op: str) -> Handler:
    """amax, amin, and max or min along a dimension, of which the values are kept."""

    def handle(call: Call) -> Any:
        x = call.ref()
        dims = call.dims(call.number(1, "dim"), len(x.shape))
        pair = not isinstance(call.result, tuple) or any(isinstance(item, tuple) for item in call.result)
        shape = call.result[0] if pair else call.result
        out = call.emit(op, (x,), {"dim": dims, "keepdim": bool(call.number(2, "keepdim", False))}, shape=shape)
        return (out, None) if pair else out

    return handle


def vector_norm(call: Call) -> Ref:
    """torch.linalg.vector_norm along dimensions other than the batch."""
    x = call.ref()
    dims = call.dims(call.number(2, "dim"), len(x.shape))
    attrs = {"p": float(call.number(1, "ord", 2.0)), "dim": dims, "keepdim": bool(call.number(3, "keepdim", False))}
    return call.emit("vector_norm", (x,), attrs)


def normalize(call: Call) -> Ref:
    """torch.nn.functional.normalize: x / max(norm, eps)."""
    x = call.ref()
    dims = call.dims(call.number(2, "dim", 1), len(x.shape))
    shape = tuple(1 if i in dims else size for i, size in enumerate(x.shape))
    attrs = {"p": float(call.number(1, "p", 2.0)), "dim": dims, "keepdim": True}
    norm = call.emit("vector_norm", (x,), attrs, shape=shape)
    floor = call.emit("clamp", (norm,), {"min": float(call.number(3, "eps", 1e-12)), "max": None}, shape=shape)
    return call.emit("div", (x, floor))


_PLAIN = {
    "sigmoid": ((nn.Sigmoid,), (torch.sigmoid, F.sigmoid)),
    "tanh": ((nn.Tanh,), (torch.tanh, F.tanh)),
    "silu": ((nn.SiLU,), (F.silu,)),
    "hardswish": ((nn.Hardswish,), (F.hardswish,)),
    "hardsigmoid": ((nn.Hardsigmoid,), (F.hardsigmoid,)),
    "selu": ((nn.SELU,), (F.selu, torch.selu)),
    "mish": ((nn.Mish,), (F.mish,)),
    "softsign": ((nn.Softsign,), (F.softsign,)),
    "logsigmoid": ((nn.LogSigmoid,), (F.logsigmoid,)),
    "exp": ((), (torch.exp,)),
    "log": ((), (torch.log,)),
    "sqrt": ((), (torch.sqrt,)),
    "rsqrt": ((), (torch.rsqrt,)),
    "abs": ((), (torch.abs, operator.abs)),
    "square": ((), (torch.square,)),
    "reciprocal": ((), (torch.reciprocal,)),
    "erf": ((), (torch.erf,)),
    "sin": ((), (torch.sin,)),
    "cos": ((), (torch.cos,)),
}  # fmt: skip

MODULES: dict[Any, Handler] = {
    **{kind: unary(op) for op, (kinds, _) in _PLAIN.items() for kind in kinds},
    nn.GELU: unary("gelu", ("approximate", "none")),
    nn.ELU: unary("elu", ("alpha", 1.0)),
    nn.CELU: unary("celu", ("alpha", 1.0)),
    nn.Softplus: unary("softplus", ("beta", 1.0), ("threshold", 20.0)),
    nn.Hardshrink: unary("hardshrink", ("lambd", 0.5)),
    nn.Softshrink: unary("softshrink", ("lambd", 0.5)),
    nn.Softmax: along("softmax"),
    nn.LogSoftmax: along("log_softmax"),
    nn.Softmax2d: softmax2d,
    nn.GLU: along("glu"),
    **dict.fromkeys((nn.LeakyReLU, nn.RReLU), leaky),
    nn.PReLU: prelu,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.GroupNorm: group_norm,
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), instance_norm),
    nn.LocalResponseNorm: unary("local_response_norm", ("size", 1), ("alpha", 1e-4), ("beta", 0.75), ("k", 1.0)),
}

FUNCTIONS: dict[Callable[..., Any], Handler] = {
    **{function: unary(op) for op, (_, functions) in _PLAIN.items() for function in functions},
    F.gelu: unary("gelu", ("approximate", "none")),
    **dict.fromkeys((F.elu, F.elu_), unary("elu", ("alpha", 1.0))),
    **dict.fromkeys((F.celu, torch.celu), unary("celu", ("alpha", 1.0))),
    F.softplus: unary("softplus", ("beta", 1.0), ("threshold", 20.0)),
    F.hardshrink: unary("hardshrink", ("lambd", 0.5)),
    F.softshrink: unary("softshrink", ("lambd", 0.5)),
    **dict.fromkeys((F.softmax, torch.softmax), along("softmax")),
    **dict.fromkeys((F.log_softmax, torch.log_softmax), along("log_softmax")),
    F.glu: along("glu"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), leaky),
    F.rrelu: rrelu,
    **dict.fromkeys((F.prelu, torch.prelu), prelu),
    **dict.fromkeys((F.layer_norm, torch.layer_norm), layer_norm),
    **dict.fromkeys((F.rms_norm, torch.rms_norm), rms_norm),
    **dict.fromkeys((F.group_norm,), group_norm),
    F.instance_norm: instance_norm,
    F.local_response_norm: unary("local_response_norm", ("size", 1), ("alpha", 1e-4), ("beta", 0.75), ("k", 1.0)),
    **dict.fromkeys((operator.pow, torch.pow), power),
    torch.maximum: pairwise("maximum"),
    torch.minimum: pairwise("minimum"),
    **{getattr(torch, op): compare(op) for op in ("gt", "ge", "lt", "le")},
    **{getattr(operator, op): compare(op) for op in ("gt", "ge", "lt", "le")},
    torch.where: where,
    **dict.fromkeys((torch.amax, torch.max), reduce("amax")),
    **dict.fromkeys((torch.amin, torch.min), reduce("amin")),
    F.normalize: normalize,
    torch.linalg.vector_norm: vector_norm,
}

METHODS: dict[str, Handler] = {
    **{op: unary(op) for op in _PLAIN},
    "sigmoid_": unary("sigmoid"),
    "tanh_": unary("tanh"),
    "softmax": along("softmax"),
    "log_softmax": along("log_softmax"),
    "pow": power,
    "maximum": pairwise("maximum"),
    "minimum": pairwise("minimum"),
    **{op: compare(op) for op in ("gt", "ge", "lt", "le")},
    **dict.fromkeys(("amax", "max"), reduce("amax")),
    **dict.fromkeys(("amin", "min"), reduce("amin")),
}
