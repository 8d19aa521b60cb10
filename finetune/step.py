"""One training step: the batch in pieces that fit the caches and the memory, beside one another on the CPU.

Objectives are means over images and the layer-wise term is a sum over them, so pieces add up to the whole batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn import plan
from speedysnn.errors import TrainingError
from speedysnn.finetune import memory
from speedysnn.finetune.config import Config
from speedysnn.finetune.matching import Recorder, layer_distance, powers
from speedysnn.finetune.objectives import objective
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Reading

Gradients = tuple[Tensor | None, ...]


@dataclass
class Step:
    """Loss and gradients of a batch in one reading."""

    snn: SpikingNetwork
    config: Config
    reading: Reading
    parameters: Sequence[nn.Parameter]
    tell: Callable[[str, memory.Need], None] | None = None
    _size: int = field(default=0, init=False)

    def run(self, inputs: Sequence[Tensor], target: Tensor, source: Mapping[str, Tensor]) -> Tensor:
        """The batch's loss; its gradients go to the parameters' `grad`, in place of what was there."""
        dims = [x.ndim - len(shape) - 1 for x, shape in zip(inputs, self.snn.input_shapes, strict=True)]
        images = inputs[0].shape[dims[0]]
        device = inputs[0].device
        parts = torch.get_num_threads() if device.type == "cpu" else 1
        sizes = plan.cut(images, self._images(inputs, images, parts), parts)
        pieces = zip(*(torch.split(x, sizes, dim) for x, dim in zip(inputs, dims, strict=True)), strict=True)
        total = powers(source)
        calls = [
            partial(self._piece, piece, goal, layers, total, len(goal) / images)
            for piece, goal, layers in zip(pieces, torch.split(target, sizes), _apart(source, sizes), strict=True)
        ]
        with self.snn.reading(self.reading):
            results = plan.run(calls, parallel=device.type == "cpu")
        for i, parameter in enumerate(self.parameters):
            given = [gradients[i] for _, gradients in results]
            parameter.grad = _sum([grad for grad in given if grad is not None])
        return torch.stack([loss for loss, _ in results]).sum()

    def _images(self, inputs: Sequence[Tensor], images: int, parts: int) -> int:
        """Images a piece, found at the first batch: what fits the caches and the memory."""
        if not self._size:
            steps = self.snn.timesteps if self.reading == "spiking" else 1
            device = inputs[0].device
            image = memory.saved_bytes(self.snn, inputs, self.reading)
            state, free = memory.state_bytes(self.parameters, parts), memory.free_bytes(device)
            size = self.snn.images_per_pass or plan.images_per_pass(self.snn.width, steps, device)
            most = memory.fitting(image, state, free, parts)
            self._size = size if most is None else min(size, most)
            need = memory.Need(image, state, min(images, self._size * parts), free)
            if self.tell is not None:
                self.tell(self.reading, need)
            if free is not None and need.peak > free:
                raise TrainingError(
                    f"{self.reading} stage: {need}; use fewer steps T, smaller images, the quantized stage alone "
                    "(epochs_spiking=0), or a machine with more memory"
                )
        return self._size

    def _piece(
        self, inputs: Sequence[Tensor], target: Tensor, source: Mapping[str, Tensor], total: Tensor, share: float
    ) -> tuple[Tensor, Gradients]:
        recorder = Recorder() if source else None
        ours = logits(self.snn(*inputs, observer=recorder))
        loss = objective(self.config.objective)(ours, target, self.config.temperature) * share
        if recorder is not None:
            loss = loss + self.config.match * layer_distance(recorder.outputs, source, total)
        gradients = torch.autograd.grad(loss, list(self.parameters), allow_unused=True)
        return loss.detach(), gradients


def logits(output: Any) -> Tensor:
    """The one tensor that the objective compares.

    Raises:
        TrainingError: the network has several outputs.
    """
    if isinstance(output, Tensor):
        return output
    raise TrainingError(f"expected a network with one output tensor, got a {type(output).__name__}")


def _apart(source: Mapping[str, Tensor], sizes: list[int]) -> list[dict[str, Tensor]]:
    out: list[dict[str, Tensor]] = [{} for _ in sizes]
    for name, x in source.items():
        for layers, piece in zip(out, torch.split(x, sizes), strict=True):
            layers[name] = piece
    return out


def _sum(tensors: Sequence[Tensor]) -> Tensor | None:
    if not tensors:
        return None
    total = tensors[0].clone() if len(tensors) > 1 else tensors[0]
    for tensor in tensors[1:]:
        total += tensor
    return total
