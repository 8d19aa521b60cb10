"""One training step on a whole batch, batch-norm in place; where memory is short, block by block and computed twice.

Batch-norm takes its statistics from the whole batch, so the batch cannot run in pieces. Instead the graph can: what a
block keeps for its backward pass is then computed again when that pass reaches it, and only the values that cross
between blocks stay. The gradients are the same; the running statistics move once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from speedysnn.errors import TrainingError
from speedysnn.execution.interpreter import Value
from speedysnn.execution.observers import LayerRecord
from speedysnn.execution.runner import value_sizes
from speedysnn.finetune.batch_norm import MOMENTUM, TrainingExecution, execution
from speedysnn.finetune.objectives import Target, powers
from speedysnn.finetune.penalties import Rates
from speedysnn.finetune.step import MEMORY_SHARE, Need, Step, free_bytes, saved_bytes, state_bytes, wide
from speedysnn.graph import Block, blocks
from speedysnn.graph.ir import map_outputs
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Reading


class _Terms:
    """An observer of a block that adds up what the loss takes from its layers: distances, spikes and membranes."""

    def __init__(
        self, source: Mapping[str, Tensor], total: Mapping[str, Tensor], rates: Rates | None, membrane: bool
    ) -> None:
        self.source, self.total, self.rates, self.membrane = source, total, rates, membrane
        self.distances: list[Tensor] = []

    def __call__(self, tap: LayerRecord) -> None:
        """Take in one layer."""
        if tap.name in self.source:
            gap = tap.mean_output() - self.source[tap.name]
            self.distances.append(gap.square().sum() / self.total[tap.name])
        if self.rates is not None:
            self.rates.take(tap, self.membrane)

    def sums(self, like: Tensor) -> Tensor:
        """Three sums: of the distances, the spikes, and the membranes."""
        rates = self.rates
        parts = self.distances, [] if rates is None else rates.spikes, [] if rates is None else rates.membranes
        zero = like.new_zeros(())
        return torch.stack([torch.stack(part).sum() if part else zero for part in parts])


@dataclass
class WholeStep(Step):
    """Computes loss and gradients of whole batches in one reading, and moves batch-norm's running statistics."""

    _blocks: Sequence[Block] = field(default=(), init=False)

    def run(
        self, inputs: Sequence[Tensor], target: Target, source: Mapping[str, Tensor], images: int | None = None
    ) -> Tensor:
        """Compute the batch's loss; its gradients replace what the parameters' `grad` held.

        Args:
            inputs: the batch.
            target: what the objective compares its outputs with, of as many images.
            source: the source's activations for it, empty without matching.
            images: images of the batch.

        Returns:
            The mean loss over the batch, one number.
        """
        if not self._blocks:
            self._blocks = self._plan(inputs)
        for parameter in self.parameters:
            parameter.grad = None
        with self.engine.autocast(inputs[0].device):
            ours, sums, neurons = self._forward(inputs, source)
        loss = self._distance(wide(ours), target)
        if source:
            loss = loss + self.config.layer_match_weight * sums[0] / len(source)
        if self.config.membrane:
            loss = loss + self.config.membrane * sums[2] / len(self.snn.neurons)
        shown = loss.detach()  # the budget's weight changes, so its penalty is not shown
        if self.budget is not None:
            rate = sums[1] / max(neurons, 1e-12)
            loss = loss + self.budget.factor * rate
            self.budget.update(float(rate.detach()))
        gradients = torch.autograd.grad(loss, list(self.parameters), allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return shown

    def _forward(self, inputs: Sequence[Tensor], source: Mapping[str, Tensor]) -> tuple[Any, Tensor, float]:
        """The outputs, the sums over layers, and how many neurons (times images, weighted) the rate counts."""
        total = dict(zip(source, powers(source), strict=True))
        sums, neurons, graph = torch.zeros(3, device=inputs[0].device), 0.0, self.snn.graph
        run, ready = execution(TrainingExecution, self.snn, inputs)
        if self.reading != "spiking":
            ready = [Value(run.mean(value)) for value in ready]
        given = {node.name: value for node, value in zip(graph.inputs, ready, strict=True)}
        values = dict(given)
        for block in self._blocks:
            part = _Part(self, block, source, total)
            part.timed = {name: value.dynamic for name, value in values.items()}
            tensors = [value.tensor for value in values.values()]
            if len(self._blocks) > 1:
                *found, more = checkpoint(part, *tensors, use_reentrant=False, preserve_rng_state=False)
            else:
                *found, more = part(*tensors)
            sums, neurons = sums + more, neurons + part.neurons
            crossing = {name: Value(x, part.found[name]) for name, x in zip(block.outputs, found, strict=True)}
            values = {**given, **crossing}
        outputs = {name: run.mean(values[name]) for name in graph.output_names}
        return map_outputs(graph.outputs, outputs), sums, neurons

    def _plan(self, inputs: Sequence[Tensor]) -> list[Block]:
        """Say what a step needs, and cut the graph into blocks where one piece of it would need too much."""
        graph, count = self.snn.graph, inputs[0].shape[inputs[0].ndim - len(self.snn.input_shapes[0]) - 1]
        image = saved_bytes(self.snn, inputs, self.reading)
        state, free = state_bytes(self.parameters, 1), free_bytes(inputs[0].device)
        found = [Block(0, len(graph.nodes), (), graph.output_names, graph.nodes)]
        how = "batch-norm in place"
        if free is not None and state + count * image > MEMORY_SHARE * free:
            found, image = blocks_that_save(self.snn, inputs, self.reading, image)
            how += f", computed twice over {len(found)} blocks"
        need = Need(image, state, count, free, how)
        if self.on_memory is not None:
            self.on_memory(self.reading, need)
        if free is not None and need.peak > free:
            raise TrainingError(
                f"{self.reading} stage: {need}; use a smaller batch_size, fewer steps T, smaller images, "
                "batch_norm=False (a batch then runs in pieces), a reconstruct or blockwise stage, or a machine with "
                "more memory"
            )
        return found


class _Part:
    """What `checkpoint` calls: a block from the values that reach it to those that leave it, the same at every call.

    Attributes:
        timed: whether a value that reaches it has a time axis, by name.
        found: the same of those that leave it, known after the first call.
        neurons: how many its rate counts, known after the first call.
    """

    def __init__(
        self, step: WholeStep, block: Block, source: Mapping[str, Tensor], total: Mapping[str, Tensor]
    ) -> None:
        self.step, self.block, self.source, self.total = step, block, source, total
        self.calls, self.neurons = 0, 0.0
        self.timed, self.found = dict[str, bool](), dict[str, bool]()

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors that leave the block, and the sums over its layers."""
        step, config = self.step, self.step.config
        rates = step.budget.rates() if step.budget else Rates({}) if config.membrane else None
        terms = _Terms(self.source, self.total, rates, bool(config.membrane))
        watched = terms if self.source or rates is not None else None
        run, _ = execution(TrainingExecution, step.snn, (), watched)
        run.momentum = 0.0 if self.calls else MOMENTUM
        values = {name: Value(x, timed) for x, (name, timed) in zip(tensors, self.timed.items(), strict=True)}
        found = run.part(values, step.reading, self.block.start, self.block.stop)
        if not self.calls:
            self.neurons = 0.0 if rates is None else rates.neurons
            self.found = {name: found[name].dynamic for name in self.block.outputs}
        self.calls += 1
        return (*(found[name].tensor for name in self.block.outputs), terms.sums(tensors[0].new_zeros(())))


def blocks_that_save(
    snn: SpikingNetwork, inputs: Sequence[Tensor], reading: Reading, image: int
) -> tuple[list[Block], int]:
    """Cut a graph into blocks to be computed again, and estimate what an image then needs.

    An image keeps the values that cross between blocks, and what the largest of them keeps for its backward pass: its
    share of all values of the network.

    Args:
        snn: the network.
        inputs: a batch, (B, ...) each.
        reading: the reading that is trained.
        image: bytes that an image needs where all is kept.

    Returns:
        The blocks, of the number of layers that needs least, and bytes an image.
    """
    first = [x.narrow(x.ndim - len(s) - 1, 0, 1) for x, s in zip(inputs, snn.input_shapes, strict=True)]
    with torch.no_grad():
        sizes = value_sizes(snn, first)
    steps, every = snn.timesteps if reading == "spiking" else 1, sum(sizes.values())
    plans = []
    for layers in (1, 2, 3, 4, 6):
        found = blocks(snn.graph, sizes, layers)
        crossing = sum(sizes[name] for block in found for name in block.outputs) * steps * inputs[0].element_size()
        largest = max(sum(sizes[node.name] for node in block.nodes) for block in found)
        plans.append((crossing + image * largest // every, layers, found))
    need, _, chosen = min(plans, key=lambda plan: plan[:2])
    return chosen, need
