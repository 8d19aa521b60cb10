"""The layers that a network's nodes own: torch's own modules, or one class of ours where it has none."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from speedysnn.errors import InputError
from speedysnn.graph import Node
from speedysnn.operators import OPERATORS

_CONVOLUTIONS: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d, "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}  # fmt: skip
_CLASSES: dict[str, type[nn.Module]] = {
    **_CONVOLUTIONS, "linear": nn.Linear, "layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm,
    "group_norm": nn.GroupNorm,
}  # fmt: skip
_PLAIN = frozenset({*_CONVOLUTIONS.values(), nn.Linear})
_OPTIONS = {"stride", "padding", "dilation", "groups", "output_padding"}
_PROBE_ERROR = 1e-5  # relative; what a merged weight may round differently


def key_of(name: str) -> str:
    """A node name as a module key: torch forbids dots there."""
    return name.replace(".", "/")


class OperatorModule(nn.Module):
    """A node with tensors of its own for which torch has no module, or one that behaves otherwise.

    Batch-norm is one of these: here its mean and variance are fixed in training mode too.

    Args:
        op: a key of `speedysnn.operators.OPERATORS`.
        attrs: its constants.
    """

    def __init__(self, op: str, attrs: Mapping[str, Any]) -> None:
        super().__init__()
        self.op, self.attrs = op, dict(attrs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The operator's result."""
        return OPERATORS[self.op].run(inputs, self.attrs, own_tensors(self, self.op))

    def extra_repr(self) -> str:
        """The operator's name."""
        return self.op


def layer_module(node: Node, tensors: Mapping[str, Tensor], buffers: Sequence[str], copy: bool) -> nn.Module:
    """The module of a node with these tensors, weight first: a file's own order is by chance, and optimizers count."""
    given = {name: _laid_out(value, copy) for name, value in tensors.items()}
    trained = {n: x for n, x in given.items() if n not in buffers and x.is_floating_point()}
    module = _torch_module(node, given) if len(trained) == len(given) else None
    module = module or OperatorModule(node.op, node.attrs)
    for name in sorted(given, key=lambda name: (name != "weight", name)):
        if name in trained:
            module.register_parameter(name, nn.Parameter(given[name]))
        else:
            module.register_buffer(name, given[name])
    return module


def _laid_out(value: Tensor, copy: bool) -> Tensor:
    value = value.detach().clone() if copy else value.detach()
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def _torch_module(node: Node, given: Mapping[str, Tensor]) -> nn.Module | None:
    """Torch's module for a node, its tensors still to be set; None where there is none, or torch refuses the sizes."""
    make = _MAKERS.get(node.op)
    if make is None:
        return None
    try:
        return make(node, given)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, ZeroDivisionError):
        return None  # a damaged file's sizes: the operator itself says at the trial run what does not fit


def _linear_module(_: Node, given: Mapping[str, Tensor]) -> nn.Module | None:
    weight = given["weight"]
    if weight.ndim != 2:
        return None
    return nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in given, device="meta")


def _convolution_module(node: Node, given: Mapping[str, Tensor]) -> nn.Module | None:
    weight, kind = given["weight"], _CONVOLUTIONS[node.op]
    if weight.ndim != int(node.op[-2]) + 2:
        return None
    groups, turned = int(node.attrs["groups"]), "transpose" in node.op
    ends = (weight.shape[0], weight.shape[1] * groups) if turned else (weight.shape[1] * groups, weight.shape[0])
    options = {name: tuple(x) if isinstance(x, list) else x for name, x in node.attrs.items() if name in _OPTIONS}
    return kind(*ends, tuple(weight.shape[2:]), bias="bias" in given, device="meta", **options)


def _layer_norm_module(node: Node, given: Mapping[str, Tensor]) -> nn.Module | None:
    if "weight" not in given:  # torch has no bias without a weight
        return None
    return nn.LayerNorm(node.attrs["shape"], node.attrs["eps"], bias="bias" in given, device="meta")


def _rms_norm_module(node: Node, given: Mapping[str, Tensor]) -> nn.Module | None:
    if "weight" not in given:
        return None
    return nn.RMSNorm(node.attrs["shape"], node.attrs["eps"], device="meta")


def _group_norm_module(node: Node, given: Mapping[str, Tensor]) -> nn.Module | None:
    if len(given) != 2:  # torch has both or neither
        return None
    return nn.GroupNorm(node.attrs["groups"], given["weight"].numel(), node.attrs["eps"], device="meta")


_MAKERS: dict[str, Callable[[Node, Mapping[str, Tensor]], nn.Module | None]] = {
    "linear": _linear_module,
    **dict.fromkeys(_CONVOLUTIONS, _convolution_module),
    "layer_norm": _layer_norm_module,
    "rms_norm": _rms_norm_module,
    "group_norm": _group_norm_module,
}


def own_tensors(module: nn.Module, op: str) -> dict[str, Tensor]:
    """The tensors of an operator as the module's attributes give them, so that a parametrized weight is computed."""
    expected = (name.rstrip("?") for name in OPERATORS[op].tensors)
    found = ((name, getattr(module, name, None)) for name in expected)
    return {name: value for name, value in found if isinstance(value, Tensor)}


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module runs anything beside its `forward`."""
    return (
        bool(module._forward_pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
        or bool(_has_any_global_hook())  # type: ignore[no-untyped-call]
    )


def is_plain(module: nn.Module) -> bool:
    """Whether the module is torch's own convolution or linear layer with nothing added: kernels may stand for it."""
    return type(module) in _PLAIN and not is_hooked(module)


def is_watched(module: nn.Module) -> bool:
    """Whether a user's hook sees calls of the module; the hooks of torch's pruning and weight norm do not count."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    seen = any(not isinstance(hook, BasePruningMethod | WeightNorm) for hook in hooks)
    return seen or bool(module._backward_hooks or module._backward_pre_hooks)


def refresh_weight(module: nn.Module) -> None:
    """Compute again, without gradient, what hooks of pruning and weight norm leave behind as a plain attribute."""
    with torch.no_grad():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod | WeightNorm):
                hook(module, ())


def effective_tensors(node: Node, module: nn.Module) -> dict[str, Tensor]:
    """The tensors with which the node's operator gives what the module gives.

    A module of another class than torch's has to have a `weight`, or a method `merged_weight()` that returns one, with
    which its operator gives what it gives on an example.

    Raises:
        InputError: its result is no such operator's.
    """
    refresh_weight(module)
    for kind in (_CLASSES.get(node.op, OperatorModule), OperatorModule):
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return own_tensors(module, node.op)
    return _merged_tensors(node, module)


def _merged_tensors(node: Node, module: nn.Module) -> dict[str, Tensor]:
    """The weight of a wrapper, checked against what it does; its bias is what it gives for zeros."""
    merge = getattr(module, "merged_weight", None)
    weight = merge() if callable(merge) else getattr(module, "weight", None)
    fits = isinstance(weight, Tensor) and (node.op == "linear" or node.op in _CONVOLUTIONS)
    if not isinstance(weight, Tensor) or not fits:
        why = "it has neither a `weight` nor a method `merged_weight()` that returns one"
        raise InputError(_no_weight(node, module, why))
    weight = weight.dequantize() if type(weight) not in (Tensor, nn.Parameter) else weight
    with torch.no_grad():
        x = _example_input(node, weight)
        bias = module(torch.zeros_like(x))
        bias = bias[(0, slice(None), *[0] * (bias.ndim - 2))]
        own = {"weight": weight} | ({"bias": bias} if bool(bias.any()) else {})
        expected = module(x)
        got = OPERATORS[node.op].run([x], node.attrs, own)
    if got.shape != expected.shape or float((got - expected).norm()) > _PROBE_ERROR * float(expected.norm()):
        raise InputError(_no_weight(node, module, "with its weight the operator gives other values than it"))
    return own


def _example_input(node: Node, weight: Tensor) -> Tensor:
    """An input that the weight's operator takes, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    if node.op == "linear":
        shape: tuple[int, ...] = (4, weight.shape[1])
    else:
        given = node.attrs["dilation"]
        spread = max(given) if isinstance(given, list | tuple) else int(given)
        channels = weight.shape[0] if "transpose" in node.op else weight.shape[1] * int(node.attrs["groups"])
        shape = (2, channels, *(spread * (size - 1) + 2 for size in weight.shape[2:]))
    return torch.randn(shape, generator=generator).to(weight.device, weight.dtype)


def _no_weight(node: Node, module: nn.Module, why: str) -> str:
    return (
        f"layer {node.name!r} ({node.op}) is a {type(module).__name__} whose result is no plain weight: {why}; "
        "merge it into the layer that it wraps, and put that layer back in snn.layers"
    )
