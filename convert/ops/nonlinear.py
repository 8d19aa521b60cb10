"""Handlers of activations that are not linear: hybrid operators, and the two-neuron form of leaky rectifiers."""

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


def power(call: Call) -> Ref:
    """A constant power of the input."""
    exponent = call.number(1, "exponent")
    if not isinstance(exponent, int | float):
        raise Unsupported("a power that is no number", "use a constant exponent")
    return call.emit(
        "square" if exponent == 2 else "pow", (call.ref(),), {} if exponent == 2 else {"exponent": exponent}
    )


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
    F.local_response_norm: unary("local_response_norm", ("size", 1), ("alpha", 1e-4), ("beta", 0.75), ("k", 1.0)),
    **dict.fromkeys((operator.pow, torch.pow), power),
}

METHODS: dict[str, Handler] = {
    **{op: unary(op) for op in _PLAIN},
    "sigmoid_": unary("sigmoid"),
    "tanh_": unary("tanh"),
    "softmax": along("softmax"),
    "log_softmax": along("log_softmax"),
    "pow": power,
}
