"""What a network is made of and what a run of it needs to know: graph, layers, neurons, T, shapes and sizes.

The layers that a network's nodes own: torch's own modules, or one class of ours where it has none.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from speedysnn.calibration import Calibration
from speedysnn.errors import InputError
from speedysnn.execution import scheduling
from speedysnn.graph.ir import Graph, GraphInfo, Node
from speedysnn.graph.operators import OPERATORS
from speedysnn.kernels.sparse_conv import WeightBuffers
from speedysnn.neurons.layer import IFNeuron

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
    """A node's name as the key of a module: torch forbids dots there."""
    return name.replace(".", "/")


class OperatorModule(nn.Module):
    """A node with tensors of its own for which torch has no module, or one that behaves otherwise.

    Batch-norm is one of these: here its mean and variance are fixed in training mode too.

    Args:
        op: a key of `speedysnn.graph.operators.OPERATORS`.
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
        bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)
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


class NetworkModule(nn.Module):
    """A graph with its layers and neurons in execution order; see `SpikingNetwork`.

    `layers` holds one module a node that owns tensors, by the node's name with "/" for ".": torch's own classes where
    there is one. Each may be pruned, parametrized, hooked or replaced; a run calls it. Convolution weights have
    their channels innermost; torch's unstructured pruning wants `to(memory_format=torch.contiguous_format)` first.
    """

    BUFFERS = ("mean", "var", "value", "index", "mask")

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, Mapping[str, Tensor]],
        neurons: Mapping[str, IFNeuron],
        timesteps: int,
        input_shapes: Sequence[Sequence[int]],
        calibration: Calibration | None = None,
        provenance: dict[str, Any] | None = None,
        *,
        copy: bool = True,
    ) -> None:
        super().__init__()
        self.graph, self.graph_info = graph, GraphInfo.of(graph)
        self._nodes = {node.name: node for node in graph.nodes}
        self._keys = {name: key_of(name) for name in self._nodes}
        self._neuron_keys = {node.name: self._keys[node.name] for node in graph.neurons}
        owners = [name for name in self._nodes if name in tensors]
        self.layers = nn.ModuleDict(
            {key_of(name): layer_module(self._nodes[name], tensors[name], self.BUFFERS, copy) for name in owners}
        )
        self._neurons = nn.ModuleDict({key_of(name): neuron for name, neuron in neurons.items()})
        for neuron in neurons.values():
            neuron.belongs_to_network = True
        self.input_shapes = tuple(tuple(int(size) for size in shape) for shape in input_shapes)
        self.calibration, self.provenance = calibration or Calibration(), provenance or {}
        self.weight_buffers = WeightBuffers()
        self.width = scheduling.widest(graph, self.input_shapes)
        self.multiplications = scheduling.multiplications(graph, self.tensors)
        self.images_per_pass: int | None = None
        self.timesteps = timesteps

    @property
    def timesteps(self) -> int:
        """T; setting it keeps every theta (see `SpikingNetwork.recalibrate`)."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"timesteps: expected a whole number of at least 1, got {value!r}")
        self._timesteps = value
        for neuron in self.neurons.values():
            neuron.timesteps = value
        self.reset()

    @property
    def free_sizes(self) -> list[list[int]] | None:
        """Dimensions of each input, counted behind the batch, whose size may be another than in `input_shapes`.

        None where nothing is known of it; the rest was fixed to the traced size.
        """
        return self.provenance.get("free_sizes")

    @property
    def synchronous(self) -> bool:
        """Whether every layer's counts are the quantizer's: it sees its whole input, and no spikes are missed."""
        return all(neuron.synchronous for neuron in self.neurons.values())

    def reset(self) -> None:
        """Forget the neurons' streaming state."""
        for neuron in self.neurons.values():
            neuron.reset()

    @property
    def neurons(self) -> dict[str, IFNeuron]:
        """Neurons by name, in execution order."""
        modules = self._modules["_neurons"]._modules  # type: ignore[union-attr]
        return {name: modules[key] for name, key in self._neuron_keys.items()}  # type: ignore[misc]

    def _neuron(self, name: str) -> IFNeuron:
        module = self._neurons[key_of(name)]
        assert isinstance(module, IFNeuron)
        return module

    def layer(self, name: str) -> nn.Module | None:
        """The module of the named node, None where it owns no tensors."""
        layers = self._modules["layers"]  # as self.layers, which takes longer to find
        return None if layers is None else layers._modules.get(self._keys[name])

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """The tensors that the named node runs with: what pruning, a parametrization or a merged wrapper makes of them.

        Raises:
            InputError: the node's module is a wrapper whose result is no plain weight.
        """
        module = self.layer(name)
        return {} if module is None else effective_tensors(self._nodes[name], module)

    def plain_tensors(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of a node that kernels may run in its module's stead; none where the module was changed."""
        module = self.layer(name)
        return {} if module is None or not is_plain(module) else own_tensors(module, self._nodes[name].op)

    @property
    def watched(self) -> bool:
        """Whether a hook of the user's is to see a layer or a neuron: its calls are then of whole batches."""
        return any(is_watched(module) for module in (*self.layers.modules(), *self._neurons.children()))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters that nodes own, without the neurons'."""
        return sum(p.numel() * p.element_size() for p in self.layers.parameters())

    def _known(self, name: str) -> IFNeuron:
        if key_of(name) not in self._neurons:
            raise InputError(f"no neuron is called {name!r}; there are {', '.join(self.neurons)}")
        return self._neuron(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "NetworkModule":
        """A copy; what pruning left behind as an attribute with a gradient is first computed again without one."""
        for module in self.layers.modules():
            refresh_weight(module)
        out = type(self).__new__(type(self))
        memo[id(self)] = out
        out.__dict__ = copy.deepcopy(self.__dict__, memo)
        return out
