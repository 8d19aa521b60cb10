"""The training loop: one epoch, one evaluation, one stage."""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from speedysnn.data import Batch
from speedysnn.errors import InputError, TrainingError
from speedysnn.executor import Tap, any_order
from speedysnn.finetune.augment import augmentation, mix
from speedysnn.finetune.config import Config
from speedysnn.finetune.matching import outputs_and_layers
from speedysnn.finetune.memory import Need
from speedysnn.finetune.objectives import objective
from speedysnn.finetune.parameters import bad_gradients, keep_in_range
from speedysnn.finetune.samples import gather
from speedysnn.finetune.step import Step, logits
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Reading
from speedysnn.progress import track

_EVAL_BATCH = 64


@dataclass
class Trainer:
    """What every epoch needs: the network, its teacher, the data and the settings."""

    snn: SpikingNetwork
    teacher: nn.Module
    train: Dataset[Any]
    held_out: Dataset[Any]
    config: Config
    progress: bool
    on_memory: Callable[[str, Need], None] | None = None
    _answers: dict[int, Tensor] = field(default_factory=dict, init=False)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.snn.parameters()).device

    def target(self, batch: Batch, inputs: Sequence[Tensor]) -> Tensor:
        """What the objective compares with: labels, or the teacher's output for the same images."""
        if self.config.objective == "labels":
            if batch.labels is None:
                raise InputError("objective 'labels': the training data has none; use 'kl', which needs none")
            return batch.labels.to(self.device)
        with torch.no_grad():
            return logits(self.teacher(*inputs))

    def goals(
        self, indices: Sequence[int], batch: Batch, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(targets, the source's activations by neuron where matching is asked for); the teacher runs at most once.

        Where images come unchanged it answers once for each.
        """
        config = self.config
        if config.match:
            network = self._matched()
            with torch.no_grad():
                out, layers = outputs_and_layers(network, inputs, "analog")
            own = config.objective == "labels" or network is not getattr(self.teacher, "snn", None)
            return self.target(batch, inputs) if own else logits(out), layers
        if config.objective == "labels" or config.augment != "none" or config.mixup:
            return self.target(batch, inputs), {}
        if any(i not in self._answers for i in indices):
            self._answers.update(zip(indices, self.target(batch, inputs).cpu(), strict=True))
        return torch.stack([self._answers[i] for i in indices]).to(self.device), {}

    def _matched(self) -> SpikingNetwork:
        network = getattr(self.teacher, "snn", self.teacher)
        if not isinstance(network, SpikingNetwork) or set(network.neurons) != set(self.snn.neurons):
            raise InputError("match: expected a teacher with the same layers: a SpikingNetwork, or none at all")
        return network

    def epoch(self, reading: Reading, optimizer: torch.optim.Optimizer, stage: int, epoch: int, epochs: int) -> float:
        """One pass over the training part; returns the mean loss. Seeded by (seed, stage, epoch) alone."""
        config = self.config
        count = len(self.train)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(_seed(config.seed, stage, epoch))
        order = torch.randperm(count, generator=generator).tolist()
        chunks = [order[i : i + config.batch_size] for i in range(0, count, config.batch_size)]
        augment, total = augmentation(config.augment), 0.0
        chosen = [p for group in optimizer.param_groups for p in group["params"]]
        one = Step(self.snn, config, reading, chosen, self.on_memory if epoch == 0 else None)
        label = f"{reading} {epoch + 1}/{epochs}"
        for step, indices in enumerate(track(chunks, label, enabled=self.progress)):
            batch = gather(self.train, indices)
            images = mix(augment(batch.inputs[0], generator), config.mixup, generator)
            inputs = [x.to(self.device) for x in (images, *batch.inputs[1:])]
            target, source = self.goals(indices, batch, inputs)
            _set_rate(optimizer, (epoch + step / len(chunks)) / epochs, config.warmup)
            loss = one.run(inputs, target, source)
            self._guard(loss, reading, epoch)
            if config.clip is not None:
                nn.utils.clip_grad_norm_(chosen, config.clip)
            optimizer.step()
            keep_in_range(self.snn)
            total += float(loss) * len(indices)
        return total / count

    def _guard(self, loss: Tensor, reading: str, epoch: int) -> None:
        bad = bad_gradients(self.snn)
        if bool(torch.isfinite(loss)) and not bad:
            return
        where = f"; first in the gradient of {bad[0]}" if bad else ""
        raise TrainingError(
            f"{reading} stage, epoch {epoch + 1}: the loss or a gradient is NaN or infinite{where}. The best state so "
            "far is kept in the network; lower the learning rate, or set clip"
        )

    def evaluate(self, reading: Reading) -> dict[str, float | None]:
        """On the held-out part: loss, agreement with the teacher, accuracy where labels are known, spikes a neuron."""
        compute = objective(self.config.objective)
        count = len(self.held_out)  # type: ignore[arg-type]
        loss, agree, right, labelled, spikes = 0.0, 0, 0, 0, _Events()
        with torch.no_grad(), self.snn.reading(reading):
            for start in range(0, count, _EVAL_BATCH):
                batch = gather(self.held_out, range(start, min(start + _EVAL_BATCH, count)))
                inputs = [x.to(self.device) for x in batch.inputs]
                target = self.target(batch, inputs)
                ours = logits(self.snn(*inputs, observer=spikes.count))
                reference = ours if self.config.objective == "labels" else target
                loss += float(compute(ours, target, self.config.temperature)) * len(ours)
                agree += int((ours.argmax(1) == reference.argmax(1)).sum()) if reference.ndim == 2 else 0
                if batch.labels is not None:
                    right += int((ours.argmax(1).cpu() == batch.labels).sum())
                    labelled += len(ours)
        return {
            "held_out_loss": loss / count,
            "held_out_agreement": None if self.config.objective == "labels" else agree / count,
            "held_out_accuracy": right / labelled if labelled else None,
            "spikes_per_neuron": spikes.per_neuron,
        }


class _Events:
    """Counts spikes (of either sign) a neuron and image."""

    def __init__(self) -> None:
        self.spikes, self.neurons, self._lock = 0.0, 0, threading.Lock()

    @any_order
    def count(self, tap: Tap) -> None:
        neuron = tap.neuron
        if tap.static_output:
            fired, neurons = neuron.counts(tap.drive), tap.output.numel()
        else:
            fired = tap.output / neuron.per_channel(neuron.threshold, tap.output.ndim)
            neurons = tap.output.numel() // neuron.timesteps
        events = float(fired.abs().sum())
        with self._lock:
            self.spikes, self.neurons = self.spikes + events, self.neurons + neurons

    @property
    def per_neuron(self) -> float:
        return self.spikes / max(1, self.neurons)


def _seed(seed: int, stage: int, epoch: int) -> int:
    return (seed * 1_000_003 + stage * 10_007 + epoch * 101 + 17) % (2**63)


def _set_rate(optimizer: torch.optim.Optimizer, progress: float, warmup: float) -> None:
    """Linear rise, then a cosine to zero; a function of progress alone, so that resuming needs no state."""
    if progress < warmup:
        factor = max(progress / warmup, 0.02)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1e-9, 1 - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
