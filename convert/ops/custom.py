"""One line for a user's own activation: what to write on the right of `handlers={MyActivation: ...}`."""

from collections.abc import Callable
from typing import Any

from speedysnn.convert.builder import Ref
from speedysnn.convert.call import Call
from speedysnn.convert.ops.nonlinear import two_neurons
from speedysnn.errors import InputError
from speedysnn.operators import OPERATORS

Handler = Callable[[Call], Any]


def as_neuron(floor: float | None = 0.0, ceiling: float | None = None) -> Handler:
    """Treat a module or function of one tensor as min(max(x, floor), ceiling): integrate-and-fire neurons.

    `handlers={MyReLU1: convert.as_neuron(ceiling=1.0)}`. A floor below 0, or None, gives signed spikes.
    """

    def handle(call: Call) -> Ref:
        return call.neuron(call.ref(), ceiling=ceiling, floor=floor)

    return handle


def as_leaky(slope: float) -> Handler:
    """Treat a module or function of one tensor as max(x, 0) - slope max(-x, 0): two layers of neurons.

    `handlers={my_leaky: convert.as_leaky(0.1)}`.
    """

    def handle(call: Call) -> Ref:
        return two_neurons(call, slope)

    return handle


def as_operator(name: str, **constants: Any) -> Handler:
    """Treat a module or function of one tensor as an operator of `speedysnn.operators.OPERATORS`.

    `handlers={MyGate: convert.as_operator("hardsigmoid")}`.

    Raises:
        InputError: no such operator of one input without tensors, or its constants are others.
    """
    operator = OPERATORS.get(name)
    if operator is None or operator.arity != 1 or any(not tensor.endswith("?") for tensor in operator.tensors):
        raise InputError(f"as_operator: expected an operator of one input and no tensors, got {name!r}")
    if set(constants) != set(operator.attrs):
        raise InputError(f"as_operator({name!r}): expected the constants {operator.attrs}, got {tuple(constants)}")

    def handle(call: Call) -> Ref:
        return call.emit(name, (call.ref(),), constants)

    return handle
