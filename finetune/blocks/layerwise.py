"""Block-wise training: every layer learns the source's activations by itself, with no gradient from layer to layer.

A block is what lies between two neuron layers. Its inputs are the quantized outputs of the layers before it, so a block
also learns to correct their errors. The backward pass needs the memory of one block instead of the whole network.
`fit_closed_form` chooses theta, then a bias or v_init, without gradients; `local_gradients` gives gradients for all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.execution.interpreter import Execution
from speedysnn.execution.runner import accept
from speedysnn.finetune.objectives import layer_distance
from speedysnn.graph.ir import Node, map_outputs
from speedysnn.graph.operators import OPERATORS
from speedysnn.network import SpikingNetwork

Visit = Callable[[str, Tensor, Tensor], None]
_THETA_FACTORS = torch.linspace(0.5, 1.5, 41)


class _Blocks(Execution):
    """A quantized pass that detaches every neuron's output, so that each layer's gradient stays in its own block."""

    def __init__(self, snn: SpikingNetwork, visit: Visit, before: Visit | None = None) -> None:
        super().__init__(snn.graph, snn.neurons, snn.layer, snn.timesteps, graph_info=snn.graph_info)
        self._visit, self._before = visit, before

    def quantized_neuron(self, node: Node, drive: Tensor) -> Tensor:
        """Compute the layer's output, show it to `visit` with its gradient, and hand it on without."""
        if self._before is not None:
            self._before(node.name, drive, drive)
        out = super().quantized_neuron(node, drive)
        self._visit(node.name, drive, out)
        return out.detach()


def run_blocks(snn: SpikingNetwork, inputs: Sequence[Tensor], visit: Visit, before: Visit | None = None) -> Any:
    """Run the quantized reading block by block.

    Args:
        snn: the network.
        inputs: one batch, (B, ...) each, or (T, B, ...) for events.
        visit: called with each layer's name, drive and output, which still have their gradients.
        before: called with each layer's name and drive (twice) before the layer is computed, so that it may change it.

    Returns:
        The outputs, nested as the source nests them.
    """
    run = _Blocks(snn, visit, before)
    values = [accept(snn, x, i) for i, x in enumerate(inputs)]
    out = run.static([run.mean(value) for value in values], "quantized")
    return map_outputs(snn.graph.outputs, {name: out[name] for name in snn.graph.output_names})


def local_gradients(
    snn: SpikingNetwork,
    inputs: Sequence[Tensor],
    source: Mapping[str, Tensor],
    total: Tensor,
    parameters: Sequence[nn.Parameter],
    last: Callable[[Any], Tensor],
) -> tuple[Tensor, list[Tensor | None]]:
    """Compute the layer-wise loss and its gradients, each layer's in its own block only.

    loss = (1/L) sum_l sum (r_l - a_l)^2 / sum a_l^2 + last(output), r the quantized output and a the source's
    activation of L layers. The sums run over neurons and images.

    Args:
        snn: the network.
        inputs: one batch, (B, ...) each.
        source: the source's activation of each layer by name, (B, ...).
        total: sum a_l^2 over the whole batch, (L,), in the order of `source`.
        parameters: what trains.
        last: loss of the network's output, which trains what comes after the last neuron.

    Returns:
        The loss, and a gradient (or None) for each of the parameters.
    """
    gradients: list[Tensor | None] = [None] * len(parameters)
    losses: list[Tensor] = []
    power = dict(zip(source, total, strict=True))

    def add(loss: Tensor) -> None:
        losses.append(loss.detach())
        given = torch.autograd.grad(loss, list(parameters), allow_unused=True, retain_graph=True)
        for i, grad in enumerate(given):
            if grad is not None:
                known = gradients[i]
                gradients[i] = grad if known is None else known + grad

    def visit(name: str, _: Tensor, out: Tensor) -> None:
        distance = layer_distance({name: out}, {name: source[name]}, power[name][None])
        add(distance / len(source))

    add(last(run_blocks(snn, inputs, visit)))
    return torch.stack(losses).sum(), gradients


def fit_closed_form(snn: SpikingNetwork, inputs: Sequence[Tensor], source: Mapping[str, Tensor]) -> dict[str, float]:
    """Choose each layer's theta and bias (or v_init) without gradients, layer after layer in one pass over a batch.

    Each theta is multiplied by the one of 41 factors from 0.5 to 1.5 that gives the least squared error against the
    source's activation. Then the mean error of a channel is subtracted from the bias of the weights that feed this
    layer alone. Where there is no such bias, v_init takes it instead: dv = -T gap / theta, within [0, 1]. A change that
    does not lower the layer's squared error is undone. An amplitude keeps its proportion to theta.

    Args:
        snn: the network; its thresholds, biases and v_init change.
        inputs: one batch, (B, ...) each.
        source: the source's activation of each layer by name, (B, ...).

    Returns:
        By layer, how much its SQNR rose in dB.
    """
    gained: dict[str, float] = {}
    feeders = _feeders(snn)

    def before(name: str, drive: Tensor, _: Tensor) -> None:
        goal = source[name]
        start = _error(snn, name, drive, goal).sum()
        _choose_theta(snn, name, drive, goal)
        shift = _remove_bias(snn, name, drive, goal, feeders.get(name))
        if shift is not None:
            drive.add_(shift)
        end = _error(snn, name, drive, goal).sum()
        gained[name] = float(10 * torch.log10(start.clamp_min(1e-30) / end.clamp_min(1e-30)))

    with torch.no_grad():
        run_blocks(snn, inputs, lambda *_: None, before)
    return gained


def _feeders(snn: SpikingNetwork) -> dict[str, nn.Parameter]:
    """Find, by neuron name, the bias of the weight layer that feeds this neuron layer and nothing else."""
    readers: dict[str, int] = {}
    for node in snn.graph.nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    out = {}
    for node in snn.graph.neurons:
        name = node.inputs[0]
        made = next(other for other in snn.graph.nodes if other.name == name)
        bias = snn.tensors(name).get("bias") if made.op in OPERATORS and OPERATORS[made.op].weighted else None
        if readers[name] == 1 and isinstance(bias, nn.Parameter):
            out[node.name] = bias
    return out


def _per_theta(snn: SpikingNetwork, name: str, x: Tensor) -> Tensor:
    """Sum x, (B, ...), over all elements that share a theta; the result has theta's shape."""
    neuron = snn.neurons[name]
    if neuron.granularity == "layer":
        return x.sum()
    return x.sum([i for i in range(x.ndim) if i != neuron.channel_dim])


def _error(snn: SpikingNetwork, name: str, drive: Tensor, goal: Tensor) -> Tensor:
    """Squared error of a layer's quantized output against the goal, one sum a theta."""
    return _per_theta(snn, name, (snn.neurons[name].quantized(drive) - goal).square())


def _choose_theta(snn: SpikingNetwork, name: str, drive: Tensor, goal: Tensor) -> None:
    """Set every theta, and an amplitude with it, to the multiple of itself with the least squared error."""
    neuron = snn.neurons[name]
    theta = neuron.threshold.detach().clone()
    amplitude = None if neuron.log_amplitude is None else neuron.amplitude.detach().clone()

    def put(factor: Tensor) -> None:
        neuron.set_threshold(theta * factor)
        if amplitude is not None and theta.ndim <= amplitude.ndim:  # else one amplitude serves several thetas and stays
            neuron.set_amplitude(amplitude * factor)

    best, least = torch.ones_like(theta), _error(snn, name, drive, goal)
    for factor in _THETA_FACTORS.to(theta):
        put(factor)
        error = _error(snn, name, drive, goal)
        best, least = torch.where(error < least, factor, best), torch.minimum(error, least)
    put(best)


def _remove_bias(
    snn: SpikingNetwork, name: str, drive: Tensor, goal: Tensor, bias: nn.Parameter | None
) -> Tensor | None:
    """Subtract the layer's mean error from its bias, or, where it has none of its own, from v_init.

    Returns:
        What was added to the drive, broadcastable; None where v_init was changed, or nothing.
    """
    neuron = snn.neurons[name]
    gap = neuron.quantized(drive) - goal
    error = gap.square().sum()
    if bias is not None:
        channel = 1 if drive.ndim > 2 else drive.ndim - 1
        change = -gap.mean([i for i in range(gap.ndim) if i != channel])
        gain = (neuron.amplitude / neuron.threshold).detach()  # of the output by the drive
        if neuron.log_amplitude is not None and gain.shape in (change.shape, ()):
            change = change / gain
        view = change.view([-1 if i == channel else 1 for i in range(drive.ndim)])
        if (neuron.quantized(drive + view) - goal).square().sum() < error:
            bias.add_(change.to(bias.dtype))
            return view
        return None
    count = drive.numel() / neuron.threshold.numel()
    old = neuron.v_init.detach().clone()
    unit = neuron.amplitude if neuron.amplitude.ndim <= neuron.threshold.ndim else neuron.amplitude.mean()
    change = -neuron.timesteps * _per_theta(snn, name, gap) / count / unit
    neuron.v_init.copy_((old + (change if old.ndim == change.ndim else change.mean())).clamp(0, 1))
    if (neuron.quantized(drive) - goal).square().sum() >= error:
        neuron.v_init.copy_(old)
    return None
