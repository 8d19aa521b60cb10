"""Handlers of activations that are not linear: hybrid operators, and the two-neuron form of leaky rectifiers."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn.convert.handler_api import Call, Handler, Key, Ref, Unsupported, never_negative
from speedysnn.errors import InputError
from speedysnn.graph.activations import ACTIVATIONS, Activation
from speedysnn.graph.operators import OPERATORS


def unary(op: str, *constants: tuple[str, Any]) -> Handler:
    """A hybrid operator of one input; constants by position after the input, or from the module."""

    def handle(call: Call) -> Ref:
        attrs = {}
        for position, (name, default) in enumerate(constants, 1):
            attrs[name] = getattr(call.settings, name) if call.module else call.number(position, name, default)
        return call.emit(op, (call.ref(),), attrs)

    return handle


def along(op: str) -> Handler:
    """A hybrid operator along one dimension other than the batch (softmax, glu)."""

    def handle(call: Call) -> Ref:
        x = call.ref()
        dim = call.settings.dim if call.module is not None else call.number(1, "dim", -1 if op == "glu" else None)
        if dim is None:
            raise Unsupported(f"{op} without a dimension", "name the dimension")
        return call.emit(op, (x,), {"dim": call.dims(dim, len(x.shape))[0]})

    return handle


def softmax2d(call: Call) -> Ref:
    """Softmax over channels."""
    return call.emit("softmax", (call.ref(),), {"dim": 1})


def leaky(call: Call) -> Ref:
    """LeakyReLU as two neuron layers: relu(x) - slope relu(-x)."""
    m = call.settings
    if call.module is None:
        return two_neurons(call, call.number(1, "negative_slope", 0.01))
    slope = m.negative_slope if isinstance(call.module, nn.LeakyReLU) else (m.lower + m.upper) / 2
    return two_neurons(call, float(slope))


def rrelu(call: Call) -> Ref:
    """RReLU in evaluation mode: its slope is the mean of the bounds."""
    if call.number(3, "training", False):
        raise Unsupported("a slope drawn at random", "pass training=self.training")
    return two_neurons(call, (call.number(1, "lower", 1 / 8) + call.number(2, "upper", 1 / 3)) / 2)


def prelu(call: Call) -> Ref:
    """PReLU as two neuron layers; one slope, or one a channel."""
    x = call.ref()
    weight = call.settings.weight if call.module is not None else call.get(1, "weight")
    if not isinstance(weight, Tensor):
        raise Unsupported("a slope computed inside the network", "make it a parameter")
    return two_neurons(call, weight.detach().view(1, -1, *[1] * (len(x.shape) - 2)))


def two_neurons(call: Call, slope: float | Tensor) -> Ref:
    """max(x, 0) - slope max(-x, 0): one layer of neurons for each sign."""
    x = call.ref()
    up = call.neuron(x)
    if never_negative(call.builder, x.name):
        return up
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


def activation(row: Activation) -> Handler:
    """The handler of an activation: a layer of neurons, or its operator with the row's constants."""

    def handle(call: Call) -> Ref:
        if row.behaviour == "neuron":
            return call.neuron(call.ref(), ceiling=row.ceiling, floor=row.floor)
        out: Ref = constants(call)
        return out

    constants: Handler = unary(row.name, *row.constants.items())
    return handle


ACTIVATION_ROWS: dict[Key, Handler] = {
    key: handler for row in ACTIVATIONS for handler in [activation(row)] for key in row.calls()
}

NONLINEAR_ROWS: dict[Key, Handler] = {
    nn.Softmax: along("softmax"),
    nn.LogSoftmax: along("log_softmax"),
    nn.Softmax2d: softmax2d,
    nn.GLU: along("glu"),
    **dict.fromkeys((nn.LeakyReLU, nn.RReLU), leaky),
    nn.PReLU: prelu,
    nn.LocalResponseNorm: unary("local_response_norm", ("size", 1), ("alpha", 1e-4), ("beta", 0.75), ("k", 1.0)),
    **dict.fromkeys((F.softmax, torch.softmax), along("softmax")),
    **dict.fromkeys((F.log_softmax, torch.log_softmax), along("log_softmax")),
    F.glu: along("glu"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), leaky),
    F.rrelu: rrelu,
    **dict.fromkeys((F.prelu, torch.prelu), prelu),
    F.local_response_norm: unary("local_response_norm", ("size", 1), ("alpha", 1e-4), ("beta", 0.75), ("k", 1.0)),
    **dict.fromkeys((operator.pow, torch.pow), power),
    "softmax": along("softmax"),
    "log_softmax": along("log_softmax"),
    "pow": power,
}


def as_neuron(floor: float | None = 0.0, ceiling: float | None = None) -> Handler:
    """Treat a module or function of one tensor as min(max(x, floor), ceiling): integrate-and-fire neurons.

    Args:
        floor: smallest value; below 0, or None for no limit, gives signed spikes.
        ceiling: largest value, None for no limit.

    Returns:
        A handler, for the right side of `handlers={MyActivation: ...}`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import convert
        >>> class UpToOne(nn.Module):
        ...     def forward(self, x):
        ...         return torch.minimum(x.relu(), torch.ones(()))
        >>> net = nn.Sequential(nn.Linear(4, 8), UpToOne(), nn.Linear(8, 2))
        >>> snn = convert.to_spiking(net, torch.rand(32, 4), handlers={UpToOne: convert.as_neuron(ceiling=1.0)})
        >>> snn.neurons["1"].ceiling
        1.0
    """

    def handle(call: Call) -> Ref:
        return call.neuron(call.ref(), ceiling=ceiling, floor=floor)

    return handle


def as_leaky(slope: float) -> Handler:
    """Treat a module or function of one tensor as max(x, 0) - slope max(-x, 0): two layers of neurons.

    Args:
        slope: the slope below 0.

    Returns:
        A handler, for the right side of `handlers={my_leaky: ...}`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import convert
        >>> class Leaky(nn.Module):
        ...     def forward(self, x):
        ...         return torch.where(x > 0, x, 0.1 * x)
        >>> net = nn.Sequential(nn.Linear(4, 8), Leaky(), nn.Linear(8, 2))
        >>> snn = convert.to_spiking(net, torch.rand(32, 4), handlers={Leaky: convert.as_leaky(0.1)})
        >>> len(snn.neurons)
        2
    """

    def handle(call: Call) -> Ref:
        return two_neurons(call, slope)

    return handle


def as_operator(name: str, **constants: Any) -> Handler:
    """Treat a module or function of one tensor as an operator of `speedysnn.graph.operators.OPERATORS`.

    Args:
        name: the operator.
        constants: its constants, by name.

    Returns:
        A handler, for the right side of `handlers={MyGate: ...}`.

    Raises:
        InputError: no such operator of one input without tensors, or its constants are others.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import convert
        >>> class Gate(nn.Module):
        ...     def forward(self, x):
        ...         return (x / 6 + 0.5).clamp(0, 1)
        >>> net = nn.Sequential(nn.Linear(4, 8), Gate(), nn.Linear(8, 2))
        >>> own = {Gate: convert.as_operator("hardsigmoid")}
        >>> snn = convert.to_spiking(net, torch.rand(32, 4), allow_hybrid=True, handlers=own)
        >>> [node.op for node in snn.graph.nodes]
        ['input', 'linear', 'hardsigmoid', 'neuron', 'linear']
    """
    row = OPERATORS.get(name)
    if row is None or row.arity != 1 or any(not tensor.endswith("?") for tensor in row.tensors):
        raise InputError(f"as_operator: expected an operator of one input and no tensors, got {name!r}")
    needed = {attr for attr in row.attrs if not attr.endswith("?")}
    if not needed <= set(constants) <= {attr.rstrip("?") for attr in row.attrs}:
        raise InputError(f"as_operator({name!r}): expected the constants {row.attrs}, got {tuple(constants)}")

    def handle(call: Call) -> Ref:
        return call.emit(name, (call.ref(),), constants)

    return handle
