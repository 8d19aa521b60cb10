"""Activations of one tensor: one row says everything the package knows of each.

A new activation is one row here. From it come the operator of the graph, the handlers of its module, functions, methods
and ATen overloads, and the ONNX operator that is read as it.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Activation:
    """One activation.

    It is found wherever torch has its name: `torch.NAME`, `torch.nn.functional.NAME`, `Tensor.NAME` and the ATen
    operator NAME, each also with a final "_" for the form that works in place.

    Attributes:
        name: its name, and that of its operator in a graph.
        formula: (x, *constants) -> Tensor, the constants in the order of `constants`.
        module: its class in torch.nn.
        onnx: its ONNX operator, "" where it has none or one that needs a handler of its own.
        constants: name -> default; the names of the module's attributes, in the order of the function's arguments.
        onnx_constants: name -> the default of the ONNX attribute of that name; others keep torch's default.
        functions: further functions that are this activation.
        aten: names of its ATen operators, without the final "_"; None for its own name.
        sign: of the result: "positive" whatever the input, what it "keeps" of a non-negative input, or "any".
        behaviour: "neuron", it becomes integrate-and-fire neurons between `floor` and `ceiling`; or "rate", an analog
            unit applies it to the running mean.
        floor: smallest value of a neuron.
        ceiling: largest value of a neuron, None where there is none.
    """

    name: str
    formula: Callable[..., Tensor]
    module: type[nn.Module] | None = None
    onnx: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)
    onnx_constants: Mapping[str, Any] = field(default_factory=dict)
    functions: tuple[Callable[..., Any], ...] = ()
    aten: tuple[str, ...] | None = None
    sign: Literal["positive", "keeps", "any"] = "any"
    behaviour: Literal["neuron", "rate"] = "rate"
    floor: float | None = None
    ceiling: float | None = None

    def calls(self) -> Iterator[Any]:
        """What a call of it can be in a traced network: a module class, functions, method names, ATen overloads."""
        if self.module is not None:
            yield self.module
        yield from self.functions
        for name in (self.name, f"{self.name}_"):
            yield from (getattr(owner, name) for owner in (torch, F) if hasattr(owner, name))
            if hasattr(Tensor, name):
                yield name
        for name in (self.name,) if self.aten is None else self.aten:
            yield from (*overloads(name), *overloads(f"{name}_"))


def overloads(name: str) -> list[Any]:
    """Every overload of an ATen operator.

    Args:
        name: the operator's name, as in torch.ops.aten.NAME.

    Returns:
        The overloads, none where this torch has no such operator.
    """
    packet = getattr(torch.ops.aten, name, None)
    return [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]


def _gelu(x: Tensor, approximate: str) -> Tensor:
    return F.gelu(x, approximate=approximate)


ACTIVATIONS: tuple[Activation, ...] = (
    Activation("relu", torch.relu, nn.ReLU, "Relu", sign="positive", behaviour="neuron", floor=0.0),
    Activation("relu6", F.relu6, nn.ReLU6, sign="positive", behaviour="neuron", floor=0.0, ceiling=6.0),
    Activation("sigmoid", torch.sigmoid, nn.Sigmoid, "Sigmoid", sign="positive"),
    Activation("hardsigmoid", F.hardsigmoid, nn.Hardsigmoid, sign="positive"),
    Activation("exp", torch.exp, None, "Exp", sign="positive"),
    Activation("abs", torch.abs, None, "Abs", functions=(operator.abs,), sign="positive"),
    Activation("square", torch.square, sign="positive"),
    Activation("sqrt", torch.sqrt, None, "Sqrt", sign="positive"),
    Activation("rsqrt", torch.rsqrt, sign="positive"),
    Activation("silu", F.silu, nn.SiLU),
    Activation("hardswish", F.hardswish, nn.Hardswish, "HardSwish"),
    Activation("tanh", torch.tanh, nn.Tanh, "Tanh"),
    Activation("selu", F.selu, nn.SELU),
    Activation("mish", F.mish, nn.Mish, "Mish"),
    Activation("softsign", F.softsign, nn.Softsign, "Softsign"),
    Activation("logsigmoid", F.logsigmoid, nn.LogSigmoid, aten=("log_sigmoid",)),
    Activation("log", torch.log, None, "Log"),
    Activation("reciprocal", torch.reciprocal, None, "Reciprocal"),
    Activation("erf", torch.erf, None, "Erf"),
    Activation("sin", torch.sin, None, "Sin"),
    Activation("cos", torch.cos, None, "Cos"),
    Activation("gelu", _gelu, nn.GELU, "Gelu", {"approximate": "none"}, {"approximate": "none"}),
    # ATen's elu has a scale and an input scale too, hence a handler of its own.
    Activation("elu", F.elu, nn.ELU, "Elu", {"alpha": 1.0}, {"alpha": 1.0}, aten=()),
    Activation("celu", F.celu, nn.CELU, "Celu", {"alpha": 1.0}, {"alpha": 1.0}),
    Activation("softplus", F.softplus, nn.Softplus, "Softplus", {"beta": 1.0, "threshold": 20.0}, sign="positive"),
    Activation("hardshrink", F.hardshrink, nn.Hardshrink, constants={"lambd": 0.5}),
    Activation("softshrink", F.softshrink, nn.Softshrink, constants={"lambd": 0.5}),
)
