"""One training step: loss and gradients of a batch, computed in pieces that fit the caches and the memory.

On the CPU the pieces run in parallel. Objectives are means over images and the layer-wise term is a sum over them, so
the pieces' gradients add up to those of the whole batch, and so do those of several processes.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from speedysnn.errors import TrainingError
from speedysnn.execution import scheduling
from speedysnn.execution.observers import LayerRecord
from speedysnn.execution.runner import images_at_once
from speedysnn.finetune.blocks.layerwise import local_gradients
from speedysnn.finetune.config import Config
from speedysnn.finetune.engine import Engine
from speedysnn.finetune.objectives import Objective, Recorder, Target, layer_distance, loss_of, powers
from speedysnn.finetune.penalties import Budget, Rates
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Reading

Gradients = Sequence[Tensor | None]
MEMORY_SHARE = 0.7  # of what is free; the rest is for buffers that live shorter than the backward pass
_PIECE_FACTOR = 2  # times the images of a plain pass: what is kept for the backward pass fits no cache anyway
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


@dataclass(frozen=True)
class Need:
    """How much memory a training step needs, in bytes.

    Attributes:
        image: kept for the backward pass of one image.
        state: gradients, the optimizer's two moments and the best state, for all trained parameters.
        images: images under way at once.
        free: bytes that were free before; None where that cannot be known.
        how: in words, whether batch-norm is in place, or what is kept.
        what: what needs it.

    Example:
        >>> from speedysnn.finetune.step import Need
        >>> print(Need(image=2**20, state=2**22, images=50, free=2**30))
        a step needs about 54 MiB of 1,024 MiB free: 50 images at once, 1.0 MiB each
    """

    image: int
    state: int
    images: int
    free: int | None
    how: str = ""
    what: str = "a step"

    @property
    def peak(self) -> int:
        """Bytes that the step adds to the memory in use."""
        return self.state + self.images * self.image

    def __str__(self) -> str:
        free = "" if self.free is None else f" of {self.free / 2**20:,.0f} MiB free"
        each = f"{self.images} images at once, {self.image / 2**20:.1f} MiB each"
        how = self.how and f"; {self.how}"
        return f"{self.what} needs about {self.peak / 2**20:,.0f} MiB{free}: {each}{how}"


def print_need(stage: str, need: Need) -> None:
    """Print on stderr what a stage needs.

    Args:
        stage: its name.
        need: the memory.
    """
    sys.stderr.write(f"{stage} stage: {need}\n")


def require_memory(need: Need, on_memory: Callable[[str, Need], None] | None) -> None:
    """Tell what a reconstruction needs, and refuse one that cannot have it.

    Args:
        need: the memory.
        on_memory: told first.

    Raises:
        TrainingError: more is needed than is free.
    """
    if on_memory is not None:
        on_memory("reconstruct", need)
    if need.free is not None and need.peak > need.free:
        raise TrainingError(f"reconstruct stage: {need}; use fewer images or copies, or a machine with more memory")


def saved_bytes(snn: SpikingNetwork, inputs: Sequence[Tensor], reading: Reading) -> int:
    """Measure what one image keeps for its backward pass, by a forward pass over the first image of a batch.

    Args:
        snn: the network.
        inputs: a batch, (B, ...) each.
        reading: the reading that is trained.

    Returns:
        Bytes.
    """
    seen: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in snn.parameters()}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    first = [x.narrow(x.ndim - len(shape) - 1, 0, 1) for x, shape in zip(inputs, snn.input_shapes, strict=True)]
    with torch.enable_grad(), snn.reading(reading), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = snn(*first)
    del out
    return sum(seen.values())


def state_bytes(parameters: Iterable[Tensor], workers: int) -> int:
    """Count what the parameters need: gradients of every piece under way, two moments and the best state.

    Args:
        parameters: what trains.
        workers: pieces under way at once.

    Returns:
        Bytes.
    """
    return (workers + 3) * sum(p.numel() * p.element_size() for p in parameters)


def free_bytes(device: torch.device) -> int | None:
    """Ask the system how much memory is free, within the limits of a container.

    Args:
        device: whose memory.

    Returns:
        Bytes, or None.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [value for value in (psutil.virtual_memory().available, _container_left()) if value is not None]
    return min(free, default=None)


def images_that_fit(need: int, state: int, free: int | None, workers: int) -> int | None:
    """Choose the images of a piece so that all pieces under way fit into 70 % of what is free.

    Args:
        need: bytes of one image.
        state: bytes beside the images.
        free: bytes that are free, None where that is not known.
        workers: pieces under way at once.

    Returns:
        At least one image, or None where nothing limits them.

    Example:
        >>> from speedysnn.finetune.step import images_that_fit
        >>> images_that_fit(need=100, state=0, free=1000, workers=2)
        3
        >>> images_that_fit(need=100, state=0, free=None, workers=2) is None
        True
    """
    if free is None or need == 0:
        return None
    return max(1, int(MEMORY_SHARE * max(0, free - state)) // need // workers)


def _container_left() -> int | None:
    """Bytes left within the limit of a container (cgroup), which psutil does not know; None where there is no limit."""
    for limit, used in zip(_LIMITS, _USED, strict=True):
        try:
            most, now = Path(limit).read_text(encoding="ascii").strip(), Path(used).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if most.isdecimal() and now.isdecimal():
            return max(0, int(most) - int(now))
    return None


@dataclass
class Step:
    """Computes loss and gradients of batches in one reading.

    Attributes:
        snn: the network.
        config: the settings.
        reading: the reading that is trained.
        parameters: what trains.
        on_memory: called with the reading and the memory that a step needs, or None.
        local: whether every layer is trained towards the source by itself (`blockwise`).
        loss_fn: objective in place of the named one.
        budget: limit on the spikes, or None.
        engine: the processes that share the work.
        how: why a batch runs in pieces, in words for `on_memory`.
    """

    snn: SpikingNetwork
    config: Config
    reading: Reading
    parameters: Sequence[nn.Parameter]
    on_memory: Callable[[str, Need], None] | None = None
    local: bool = False
    loss_fn: Objective | None = None
    budget: Budget | None = None
    engine: Engine = field(default_factory=Engine)
    how: str = ""
    _size: int = field(default=0, init=False)

    def run(
        self, inputs: Sequence[Tensor], target: Target, source: Mapping[str, Tensor], images: int | None = None
    ) -> Tensor:
        """Compute the batch's loss; its gradients replace what the parameters' `grad` held.

        Args:
            inputs: this process's part of the batch.
            target: what the objective compares its outputs with, of as many images.
            source: the source's activations for it, empty without matching.
            images: images of the whole batch; by default this part is the whole.

        Returns:
            The mean loss over the whole batch, one number.
        """
        dims = [x.ndim - len(shape) - 1 for x, shape in zip(inputs, self.snn.input_shapes, strict=True)]
        own = inputs[0].shape[dims[0]]
        total = powers(source)
        self.engine.add_up([total])
        results = self._pieces(inputs, dims, target, source, total, images or own) if own else []
        for i, parameter in enumerate(self.parameters):
            given = [gradients[i] for _, gradients, _ in results]
            parameter.grad = _sum([grad for grad in given if grad is not None])
        self._add_up_gradients()
        device = inputs[0].device
        numbers = [float(loss) for loss, *_ in results], [float(rate) for *_, rate in results]
        loss, rate = self.engine.total([sum(numbers[0]), sum(numbers[1])], device)
        if self.budget is not None:
            self.budget.update(rate)
        return torch.tensor(loss, device=device)

    def _pieces(
        self, inputs: Sequence[Tensor], dims: Sequence[int], target: Target, source: Mapping[str, Tensor],
        total: Tensor, images: int,
    ) -> list[tuple[Tensor, Gradients, Tensor]]:  # fmt: skip
        """Compute (loss, gradients, spike rate) of every piece of the batch."""
        device, own = inputs[0].device, inputs[0].shape[dims[0]]
        parts = torch.get_num_threads() if device.type == "cpu" else 1
        sizes = scheduling.cut(own, self._images(inputs, own, parts), parts)
        pieces = zip(*(torch.split(x, sizes, dim) for x, dim in zip(inputs, dims, strict=True)), strict=True)
        one = self._local if self.local else self._piece
        calls = [
            partial(one, piece, goal, layers, total, len(goal) / images)
            for piece, goal, layers in zip(pieces, target.split(sizes), _split_layers(source, sizes), strict=True)
        ]
        with self.snn.reading(self.reading):
            return scheduling.run(calls, parallel=device.type == "cpu")

    def _add_up_gradients(self) -> None:
        """Replace every gradient by its sum over all processes."""
        if self.engine.world == 1:
            return
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.engine.add_up([parameter.grad for parameter in self.parameters if parameter.grad is not None])

    def _images(self, inputs: Sequence[Tensor], images: int, parts: int) -> int:
        """Choose the images of a piece at the first batch: as many as fit the caches and the memory."""
        if not self._size:
            steps = self.snn.timesteps if self.reading == "spiking" else 1
            device = inputs[0].device
            image = saved_bytes(self.snn, inputs, self.reading)
            state, free = state_bytes(self.parameters, parts), free_bytes(device)
            fits = images_at_once(self.snn, steps, inputs[0])
            each = -(-images // parts)
            size = fits if self.snn.images_per_pass or images <= fits else min(_PIECE_FACTOR * fits, each)
            limit = images_that_fit(image, state, free, parts)
            self._size = size if limit is None else min(size, limit)
            need = Need(image, state, min(images, self._size * parts), free, self.how)
            if self.on_memory is not None:
                self.on_memory(self.reading, need)
            if free is not None and need.peak > free and not self.local:
                raise TrainingError(
                    f"{self.reading} stage: {need}; use fewer steps T, smaller images, the quantized stage alone "
                    "(epochs_spiking=0), a blockwise stage, or a machine with more memory"
                )
        return self._size

    def _distance(self, ours: Any, target: Target) -> Tensor:
        """Apply the objective to the network's output."""
        return loss_of(self.config, self.loss_fn)(logits(ours), target, self.config.temperature)

    def _piece(
        self, inputs: Sequence[Tensor], target: Target, source: Mapping[str, Tensor], total: Tensor, share: float
    ) -> tuple[Tensor, Gradients, Tensor]:
        """Compute one piece: its share of the loss, its gradients, and its share of the spike rate."""
        config = self.config
        recorder = Recorder() if source else None
        rates = self.budget.rates() if self.budget else Rates({}) if config.membrane else None

        def watch(tap: LayerRecord) -> None:
            if recorder is not None:
                recorder(tap)
            if rates is not None:
                rates.take(tap, bool(config.membrane))

        with self.engine.autocast(inputs[0].device):
            ours = self.snn(*inputs, observer=watch if recorder or rates else None)
        loss = self._distance(wide(ours), target) * share
        if recorder is not None:
            loss = loss + config.layer_match_weight * layer_distance(recorder.outputs, source, total)
        if rates is not None and config.membrane:
            loss = loss + config.membrane * share * rates.membrane
        rate, shown = loss.new_zeros(()), loss.detach()  # the budget's weight changes, so its penalty is not shown
        if rates is not None and self.budget is not None:
            rate = rates.rate * share
            loss = loss + self.budget.factor * rate
        gradients = torch.autograd.grad(loss, list(self.parameters), allow_unused=True)
        return shown, gradients, rate.detach()

    def _local(
        self, inputs: Sequence[Tensor], target: Target, source: Mapping[str, Tensor], total: Tensor, share: float
    ) -> tuple[Tensor, Gradients, Tensor]:
        """Compute one piece of a block-wise stage."""
        with torch.enable_grad(), self.engine.autocast(inputs[0].device):
            loss, gradients = local_gradients(
                self.snn, inputs, source, total, self.parameters, lambda out: self._distance(wide(out), target) * share
            )
        return loss, gradients, loss.new_zeros(())


def logits(output: Any) -> Tensor:
    """Give the one tensor that the objective compares.

    Args:
        output: what a network returned.

    Returns:
        The output itself.

    Raises:
        TrainingError: the network has several outputs.
    """
    if isinstance(output, Tensor):
        return output
    raise TrainingError(f"expected a network with one output tensor, got a {type(output).__name__}")


def wide(output: Any) -> Any:
    """Widen a bfloat16 output to float32, in which the loss is computed."""
    return output.float() if isinstance(output, Tensor) and output.dtype == torch.bfloat16 else output


def _split_layers(source: Mapping[str, Tensor], sizes: list[int]) -> list[dict[str, Tensor]]:
    """Split every layer's activations, (B, ...), into pieces of so many images."""
    out: list[dict[str, Tensor]] = [{} for _ in sizes]
    for name, x in source.items():
        for layers, piece in zip(out, torch.split(x, sizes), strict=True):
            layers[name] = piece
    return out


def _sum(tensors: Sequence[Tensor]) -> Tensor | None:
    """Add up tensors of one shape in their order; None for none."""
    if not tensors:
        return None
    total = tensors[0].clone() if len(tensors) > 1 else tensors[0]
    for tensor in tensors[1:]:
        total += tensor
    return total
