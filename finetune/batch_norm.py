"""Batch-norm in place while a network trains: put in, trained with the statistics of whole batches, folded at the end.

A converted network has its batch-norm folded. Put in again, behind every weight layer that leads to a neuron, it holds
each channel's mean and spread where they are while weights and levels before it move.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from speedysnn.execution.interpreter import Execution, Value
from speedysnn.execution.module import is_plain, own_tensors
from speedysnn.execution.observers import Observer
from speedysnn.execution.runner import accept, images_at_once
from speedysnn.graph.ir import Graph, Node, fold_batch_norm, map_outputs
from speedysnn.graph.operators import OPERATORS
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Reading

MOMENTUM = 0.1  # of batch-norm's running statistics
EPS = 1e-5
_LEAST_SPREAD = 1e-2  # of a channel, as a share of its layer's: a channel that hardly varies is not blown up


class TrainingExecution(Execution):
    """A pass in which batch-norm takes its statistics over all images and steps, and updates the running ones.

    Attributes:
        momentum: share of the running statistics that is replaced; 0 leaves them as they are.
    """

    momentum = MOMENTUM

    def affine(self, node: Node, args: Sequence[Tensor], sparse: bool) -> Tensor:
        """Compute an affine node; batch-norm with the statistics of its own input.

        Args:
            node: the node.
            args: its inputs, (T*B, ...) each.
            sparse: whether they are spikes.

        Returns:
            The node's value.
        """
        module = self.layers(node.name)
        if node.op != "batch_norm" or module is None:
            return super().affine(node, args, sparse)
        tensors = own_tensors(module, node.op)
        mean, var = tensors["mean"], tensors["var"]
        if not self.momentum:
            mean, var = mean.clone(), var.clone()
        return F.batch_norm(
            args[0], mean, var, tensors.get("weight"), tensors.get("bias"), True, self.momentum, node.attrs["eps"]
        )


def execution(
    kind: type[Execution], snn: SpikingNetwork, inputs: Sequence[Tensor], observer: Observer | None = None
) -> tuple[Any, list[Value]]:
    """Prepare a pass over a network of this kind.

    Args:
        kind: `Execution` or a class made from it.
        snn: the network.
        inputs: one batch, (B, ...) each, or (T, B, ...) for events.
        observer: called with what every layer received and emitted, or None.

    Returns:
        The pass, and its inputs as it takes them.
    """
    run = kind.of(snn)
    run.observer = observer
    return run, [accept(snn, x, i) for i, x in enumerate(inputs)]


def run_through(run: Execution, snn: SpikingNetwork, ready: Sequence[Value], reading: Reading) -> Any:
    """Run a prepared pass.

    Args:
        run: the pass.
        snn: its network.
        ready: its inputs.
        reading: "spiking", "quantized" or "analog".

    Returns:
        The outputs, averaged over T and nested as the source nests them.
    """
    if reading == "spiking":
        values = run.spiking(ready, per_step=False)
        outputs = {name: run.mean(values[name]) for name in snn.graph.output_names}
    else:
        outputs = run.static([run.mean(value) for value in ready], reading)
    return map_outputs(snn.graph.outputs, outputs)


def run_training(
    snn: SpikingNetwork, inputs: Sequence[Tensor], reading: Reading = "spiking", observer: Observer | None = None,
    momentum: float = MOMENTUM,
) -> Any:  # fmt: skip
    """Run a whole batch with batch-norm's statistics taken from it.

    Args:
        snn: the network, not folded.
        inputs: one batch, (B, ...) each, or (T, B, ...) for events.
        reading: "spiking" or "quantized".
        observer: called with what every layer received and emitted, or None.
        momentum: share of the running statistics that is replaced.

    Returns:
        The outputs, averaged over T and nested as the source nests them.
    """
    run, ready = execution(TrainingExecution, snn, inputs, observer)
    run.momentum = momentum
    return run_through(run, snn, ready, reading)


def with_statistics(ann: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """Copy a network and give batch-norm layers that never saw data the statistics of these images.

    Args:
        ann: the network, which is left as it is.
        inputs: one batch, (B, ...) each.

    Returns:
        The copy, in evaluation mode.
    """
    own = copy.deepcopy(ann).eval()
    for module in own.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and not module.running_mean.any():
            module.momentum = None  # the plain average
            module.train()
    with torch.no_grad():
        own(*inputs)
    return own.eval()


def fold_batch_norms(snn: SpikingNetwork) -> SpikingNetwork:
    """Fold a trained network's batch-norm into the layers before it.

    Args:
        snn: the network; the new one takes over its neurons.

    Returns:
        A network that shares no weights with the given one.
    """
    graph, own = _folded(snn)
    device = next(snn.parameters()).device
    return SpikingNetwork(
        graph, own, snn.neurons, snn.timesteps, snn.input_shapes, snn.calibration, snn.provenance, copy=False
    ).to(device)


def _folded(snn: SpikingNetwork) -> tuple[Graph, dict[str, dict[str, Tensor]]]:
    own = {
        node.name: {name: value.detach().clone() for name, value in snn.tensors(node.name).items()}
        for node in snn.graph.nodes
        if snn.tensors(node.name)
    }
    return fold_batch_norm(snn.graph, own), own


def unfolded(snn: SpikingNetwork, inputs: Sequence[Tensor]) -> SpikingNetwork | None:
    """Put a batch-norm behind every weight layer that leads to a neuron, which changes no output.

    It stands where a convolution or linear layer with a bias, torch's own and with no hook or parametrization, is read
    by neurons, at once or after adds and other operators without weights. Its mean is 0, its variance 1 and its shift
    the bias; see `set_statistics`.

    Args:
        snn: the network, which is left as it is.
        inputs: one image, (1, ...) an input, to learn shapes from.

    Returns:
        A network that shares neurons and all other layers with the given one; None where no layer can have one.

    Example:
        >>> import torch
        >>> from speedysnn import convert
        >>> from speedysnn.finetune.batch_norm import unfolded
        >>> ann = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> snn, x = convert.to_spiking(ann, torch.rand(16, 8), timesteps=4), torch.rand(3, 8)
        >>> normed = unfolded(snn, [x[:1]])
        >>> [node.op for node in normed.graph.nodes]
        ['input', 'linear', 'batch_norm', 'neuron', 'linear']
        >>> torch.allclose(normed(x), snn(x))
        True
    """
    behind = {name: _norm_name(snn.graph, name) for name in _places(snn, inputs)}
    if not behind:
        return None
    own, nodes = dict[str, dict[str, Tensor]](), list[Node]()
    for node in snn.graph.nodes:
        read = tuple(behind.get(name, name) for name in node.inputs)
        nodes.append(Node(node.name, node.op, read, node.attrs, node.path, node.source))
        tensors = {name: x.detach().clone() for name, x in snn.tensors(node.name).items()}
        if node.name in behind:
            bias = tensors.pop("bias")
            zeros, ones = torch.zeros_like(bias), torch.ones_like(bias)
            own[behind[node.name]] = {"mean": zeros, "var": ones, "weight": ones * (1 + EPS) ** 0.5, "bias": bias}
            nodes.append(Node(behind[node.name], "batch_norm", (node.name,), {"eps": EPS}))
        if tensors:
            own[node.name] = tensors
    graph = Graph(tuple(nodes), snn.graph.outputs)
    out = SpikingNetwork(
        graph, own, snn.neurons, snn.timesteps, snn.input_shapes, snn.calibration, snn.provenance, copy=False
    )
    for key in set(snn.layers) - {key for name, key in snn._keys.items() if name in behind}:
        out.layers[key] = snn.layers[key]
    out.images_per_pass = snn.images_per_pass
    return out.train(snn.training)


def _norm_name(graph: Graph, name: str) -> str:
    taken, found = {node.name for node in graph.nodes}, f"{name}.batch_norm"
    while found in taken:
        found += "_"
    return found


def _places(snn: SpikingNetwork, inputs: Sequence[Tensor]) -> list[str]:
    """Names of the weight layers behind which a batch-norm may stand."""
    readers: dict[str, list[Node]] = {node.name: [] for node in snn.graph.nodes}
    for node in snn.graph.nodes:
        for name in node.inputs:
            readers[name].append(node)

    def leads_to_a_neuron(name: str) -> bool:
        return any(
            node.op == "neuron" or (not OPERATORS[node.op].weighted and leads_to_a_neuron(node.name))
            for node in readers[name]
        )

    values = _example_values(snn, inputs)
    owners = Counter(id(p) for layer in snn.layers.values() for p in layer.parameters(recurse=False))
    out = []
    for node in snn.graph.nodes:
        module = snn.layer(node.name)
        if module is None or not is_plain(module) or node.name in snn.graph.output_names:
            continue
        own = dict(module.named_parameters(recurse=False))
        alone = {"weight", "bias"} == own.keys() and all(owners[id(p)] == 1 for p in own.values())
        normed = any(reader.op == "batch_norm" for reader in readers[node.name])
        if alone and not normed and _by_channel(node, own, values[node.name]) and leads_to_a_neuron(node.name):
            out.append(node.name)
    return out


def _by_channel(node: Node, own: dict[str, nn.Parameter], value: Tensor) -> bool:
    """Whether the layer's channels are dimension 1 of its value, and its weight can take a batch-norm in."""
    if node.op == "linear" and value.ndim != 2:
        return False
    if "transpose" in node.op and node.attrs["groups"] != 1:
        return False
    return value.ndim > 1 and value.shape[1] == own["bias"].numel()


def _example_values(snn: SpikingNetwork, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    run, ready = execution(Execution, snn, inputs)
    given = {node.name: Value(run.mean(x)) for node, x in zip(snn.graph.inputs, ready, strict=True)}
    with torch.no_grad():
        found = run.part(given, "analog", 0, len(snn.graph.nodes), keep=True)
    return {name: value.tensor for name, value in found.items()}


class _Measuring(Execution):
    """A pass that adds up, for every batch-norm, its input's values and their squares by channel."""

    sums: dict[str, Tensor]  # (3, C): how many, their sum, and their squares' sum

    def affine(self, node: Node, args: Sequence[Tensor], sparse: bool) -> Tensor:
        """Compute an affine node, and add up what a batch-norm reads."""
        if node.op == "batch_norm":
            x = args[0].detach()
            dims = [dim for dim in range(x.ndim) if dim != 1]
            wide = x.to(torch.float64)
            count = torch.full((x.shape[1],), x.numel() / x.shape[1], dtype=torch.float64, device=x.device)
            found = torch.stack([count, wide.sum(dims), wide.square().sum(dims)])
            self.sums[node.name] = found + self.sums[node.name] if node.name in self.sums else found
        return super().affine(node, args, sparse)


def set_statistics(snn: SpikingNetwork, inputs: Sequence[Tensor], reading: Reading) -> None:
    """Give every batch-norm the mean and variance of these images in this reading, which changes no output.

    With s = sqrt(var + eps) before and s' after, and r the new standard deviation, the layer before it has its weights
    divided by r, and y = g (z - m) / s + b keeps its value: g' = g r s' / s, b' = b + g (m' - m) / s. All channels then
    have weights of the size that makes their variance 1, so that one learning rate fits all.

    Args:
        snn: what `unfolded` gave.
        inputs: training images, (N, ...) each, or (T, N, ...) for events.
        reading: "spiking", "quantized" or "analog".
    """
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        for piece in _pieces(snn, inputs, snn.timesteps if reading == "spiking" else 1):
            run, ready = execution(_Measuring, snn, piece)
            run.sums = sums
            run_through(run, snn, ready, reading)
        for node in snn.graph.nodes:
            if node.op == "batch_norm":
                _restate(snn, node, sums[node.name])


def _restate(snn: SpikingNetwork, node: Node, sums: Tensor) -> None:
    """Write the mean and variance in, and what keeps the function."""
    norm, layer, eps = snn.layer(node.name), snn.layer(node.inputs[0]), node.attrs["eps"]
    assert norm is not None
    assert layer is not None
    own = {name: x.detach().to(torch.float64) for name, x in own_tensors(norm, node.op).items()}
    mean = sums[1] / sums[0]
    spread = (sums[2] / sums[0] - mean.square()).clamp_min(0).sqrt()
    least = _LEAST_SPREAD * float(spread.square().mean().sqrt())
    scale = spread.clamp_min(least) if least else torch.ones_like(spread)
    gain = own["weight"] / (own["var"] + eps).sqrt()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    shape = [1] * weight.ndim
    shape[1 if snn._nodes[node.inputs[0]].op.startswith("conv_transpose") else 0] = -1
    new = {"mean": mean / scale, "var": (spread / scale).square()}
    new["weight"] = gain * scale * (new["var"] + eps).sqrt()
    new["bias"] = own["bias"] + gain * (mean - own["mean"])
    weight.data = (weight.detach().to(torch.float64) / scale.view(shape)).to(weight.dtype)
    for name, value in new.items():
        getattr(norm, name).data.copy_(value)


def _pieces(snn: SpikingNetwork, inputs: Sequence[Tensor], steps: int) -> list[tuple[Tensor, ...]]:
    """The images in parts that fit the caches."""
    size = max(2, images_at_once(snn, steps, inputs[0]))
    dims = [x.ndim - len(shape) - 1 for x, shape in zip(inputs, snn.input_shapes, strict=True)]
    return list(zip(*(torch.split(x, size, dim) for x, dim in zip(inputs, dims, strict=True)), strict=True))


def fold_into(normed: SpikingNetwork, snn: SpikingNetwork) -> None:
    """Write the weights of a network with batch-norm in place into the one that it was made from.

    Args:
        normed: what `unfolded` gave, trained.
        snn: the network that it was given; its graph, layers and neurons stay the same objects.
    """
    _, own = _folded(normed)
    with torch.no_grad():
        for node in snn.graph.nodes:
            module = snn.layer(node.name)
            if module is None or module is normed.layer(node.name):
                continue
            for name, value in own[node.name].items():
                getattr(module, name).copy_(value)
    snn.reset()
