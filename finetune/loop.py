"""The training loop: one epoch, one evaluation, and the checks that stop a run whose loss or gradients go wrong."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from speedysnn.data.batches import Batch
from speedysnn.display import track
from speedysnn.errors import InputError, TrainingError
from speedysnn.finetune.augment import augmentation, gather, mix
from speedysnn.finetune.blocks.whole import WholeStep
from speedysnn.finetune.config import Config, Stage
from speedysnn.finetune.engine import Engine
from speedysnn.finetune.objectives import Objective, Target, loss_of, outputs_and_layers, require_classes
from speedysnn.finetune.optimization import Average, Rounding, bad_gradients, keep_in_range, rate_schedule
from speedysnn.finetune.penalties import Budget, Events
from speedysnn.finetune.result import Log
from speedysnn.finetune.step import Need, Step, logits
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Reading

_RUNAWAY = 10.0  # times the loss of the stage's first epoch
_EVAL_BATCH = 64


def chunked(order: Sequence[int], size: int, min_size: int = 1) -> list[list[int]]:
    """Cut a list of images into batches; a last one with fewer than `min_size` images joins the one before.

    Args:
        order: indices of the images.
        size: images of a batch.
        min_size: images that a batch needs.

    Returns:
        The batches, each a list of indices.

    Example:
        >>> from speedysnn.finetune.loop import chunked
        >>> chunked(range(5), 2)
        [[0, 1], [2, 3], [4]]
        >>> chunked(range(5), 2, min_size=2)
        [[0, 1], [2, 3, 4]]
    """
    chunks = [list(order[i : i + size]) for i in range(0, len(order), size)]
    if len(chunks) > 1 and len(chunks[-1]) < min_size:
        chunks[-2:] = [chunks[-2] + chunks[-1]]
    return chunks


def seed_of(seed: int, stage: int, epoch: int) -> int:
    """Derive the seed of an epoch, so that a resumed run draws what an uninterrupted one draws.

    Args:
        seed: of the run.
        stage: number of the stage.
        epoch: number of the epoch in it.

    Returns:
        A seed that no other epoch of the run has.

    Example:
        >>> from speedysnn.finetune.loop import seed_of
        >>> seed_of(0, 0, 0), seed_of(0, 0, 1), seed_of(0, 1, 0)
        (17, 118, 10024)
    """
    return (seed * 1_000_003 + stage * 10_007 + epoch * 101 + 17) % (2**63)


def check_loss(snn: SpikingNetwork, loss: float, place: "Place", *, whole_epoch: bool = False) -> None:
    """Refuse a loss or a gradient that is not finite, and an epoch's loss ten times that of the stage's first.

    Args:
        snn: the network, whose parameters hold the gradients.
        loss: of a step, or the mean over an epoch.
        place: where the run stands.
        whole_epoch: whether it is the mean over an epoch.

    Raises:
        TrainingError: naming the stage, the epoch and the layer.
    """
    here = f"{place.stage.kind} stage, epoch {place.epoch + 1}"
    kept = "The best state so far is kept in the network; lower the learning rate, or set clip"
    bad = bad_gradients(snn)
    if not math.isfinite(loss) or bad:
        where = f"; first in the gradient of {bad[0]}" if bad else ""
        raise TrainingError(f"{here}: the loss or a gradient is NaN or infinite{where}. {kept}")
    first = place.first_loss
    if whole_epoch and first is not None and loss > _RUNAWAY * max(first, 1e-6):
        raise TrainingError(
            f"{here}: the loss runs away: {loss:.4g} after {first:.4g} in the stage's first epoch; the largest "
            f"gradient is that of {_steepest(snn)}. {kept}"
        )


def _steepest(snn: SpikingNetwork) -> str:
    """Name the parameter with the largest gradient."""
    norms = {name: float(p.grad.norm()) for name, p in snn.named_parameters() if p.grad is not None}
    return max(norms, key=lambda name: norms[name], default="no parameter")


@dataclass(frozen=True)
class Place:
    """Where in a run an epoch stands.

    Attributes:
        stage: its stage.
        index: number of that stage.
        epoch: number of the epoch within it, from 0.
        run_epoch: rows of the history before it.
        first_loss: mean loss of the stage's first epoch, None before it ended.
    """

    stage: Stage
    index: int
    epoch: int
    run_epoch: int
    first_loss: float | None = None

    def __str__(self) -> str:
        return f"{self.stage.kind} {self.epoch + 1}/{self.stage.epochs}"


@dataclass
class Trainer:
    """Trains a network for an epoch, and judges it on held-out images.

    Attributes:
        snn: the network; its parameters change.
        teacher: maps the inputs to the outputs that are trained towards.
        train: the images that train.
        held_out: the images that judge.
        config: the settings.
        progress: whether to show progress.
        on_memory: called with the reading and the memory of its steps before the first is done, or None.
        loss_fn: objective in place of the one named in `config`, or None.
        budget: limit on the spikes, or None.
        engine: the processes that share the work.
        log: writes the log files, or None.
        average: running average of the network's state.
        whole: whether a batch runs in one piece, because batch-norm is in place and takes its statistics from it.
        folded: the network that batch-norm was put into for the present stage, None where `snn` is the user's own.
        how: why batch-norm is not in place, for `on_memory`.
        rounding: of the weights, wherever the network runs.
    """

    snn: SpikingNetwork
    teacher: nn.Module
    train: Dataset[Any]
    held_out: Dataset[Any]
    config: Config
    progress: bool
    on_memory: Callable[[str, Need], None] | None = None
    loss_fn: Objective | None = None
    budget: Budget | None = None
    engine: Engine = field(default_factory=Engine)
    log: Log | None = None
    average: Average = field(default_factory=Average)
    whole: bool = False
    folded: SpikingNetwork | None = None
    how: str = ""
    rounding: Rounding = Rounding()  # noqa: RUF009 - frozen
    _answers: dict[int, Tensor] = field(default_factory=dict, init=False)
    _example: Tensor | None = field(default=None, init=False)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.snn.parameters()).device

    @property
    def _labels_count(self) -> bool:
        """Whether labels count in the loss."""
        return self.config.objective == "labels" or bool(self.config.label_weight)

    def target(self, batch: Batch, inputs: Sequence[Tensor]) -> Target:
        """Make what the objective compares with: the teacher's outputs for the same images, labels, or both.

        Args:
            batch: the images and their labels.
            inputs: the images where the network computes.

        Returns:
            The parts that the loss uses.
        """
        if self.config.objective == "labels":
            return Target(labels=self._labels(batch))
        with torch.no_grad():
            return self._with_labels(logits(self.teacher(*inputs)), batch)

    def _labels(self, batch: Batch) -> Tensor:
        """Classes (B,), or their probabilities (B, classes) where images are mixed."""
        if batch.labels is None:
            what = f"label_weight {self.config.label_weight}" if self.config.label_weight else "objective 'labels'"
            raise InputError(f"{what}: the training data has none; use 'kl' alone, which needs none")
        return batch.labels.to(self.device)

    def _with_labels(self, answers: Tensor, batch: Batch) -> Target:
        """The teacher's outputs, and the labels where they count too."""
        return Target(answers, self._labels(batch) if self.config.label_weight else None)

    def goals(
        self, indices: Sequence[int], batch: Batch, inputs: Sequence[Tensor], *, layers: bool
    ) -> tuple[Target, dict[str, Tensor]]:
        """Make a batch's target and, if asked for, the source's activations; the teacher runs at most once.

        Where images are not augmented, the teacher's answers of the first epoch are reused.

        Args:
            indices: which images of the training part these are.
            batch: the images and their labels.
            inputs: the images where the network computes.
            layers: whether the source's activations are needed.

        Returns:
            The target, and the activations by neuron name, (B, ...) each.
        """
        config = self.config
        if layers:
            network = self.matched()
            with torch.no_grad():
                out, activations = outputs_and_layers(network, inputs, "analog")
            own = config.objective == "labels" or network is not getattr(self.teacher, "snn", None)
            return self.target(batch, inputs) if own else self._with_labels(logits(out), batch), activations
        if config.objective == "labels" or config.augment != "none" or config.mixup:
            return self.target(batch, inputs), {}
        if any(i not in self._answers for i in indices):
            self._answers.update(zip(indices, self.target(batch, inputs).teacher().cpu(), strict=True))
        answers = torch.stack([self._answers[i] for i in indices]).to(self.device)
        return self._with_labels(answers, batch), {}

    def matched(self) -> SpikingNetwork:
        """Find the network whose layers are matched: the teacher's.

        Returns:
            A network with neurons of the same names.

        Raises:
            InputError: the teacher has other layers.
        """
        network = getattr(self.teacher, "snn", self.teacher)
        if not isinstance(network, SpikingNetwork) or set(network.neurons) != set(self.snn.neurons):
            raise InputError(
                "layer_match_weight: expected a teacher with the same layers: a SpikingNetwork, or none at all; "
                "set it to 0 to train towards the teacher's outputs alone"
            )
        return network

    def batch(self, indices: Sequence[int], generator: torch.Generator | None) -> tuple[Batch, list[Tensor], list[int]]:
        """Gather this process's part of a batch of training images, augmented, or of held-out images as they are.

        Every process draws the same augmentation for the whole batch and keeps its part.

        Args:
            indices: which images.
            generator: draws the augmentation; None for held-out images.

        Returns:
            The part, its inputs on the network's device, and its indices.
        """
        batch = gather(self.train if generator is not None else self.held_out, indices)
        if generator is not None:
            augmented = augmentation(self.config.augment)(batch.inputs[0], generator)
            batch = self._mixed(Batch((augmented, *batch.inputs[1:]), batch.labels), generator)
        own = self.engine.own(len(indices))
        dims = [x.ndim - len(shape) - 1 for x, shape in zip(batch.inputs, self.snn.input_shapes, strict=True)]
        inputs = [x.narrow(dim, own.start, own.stop - own.start) for x, dim in zip(batch.inputs, dims, strict=True)]
        labels = None if batch.labels is None else batch.labels[own]
        return Batch(tuple(inputs), labels), [x.to(self.device) for x in inputs], list(indices[own])

    def _mixed(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with its first input mixed (no events), and labels where they count; others are dropped."""
        events = batch.inputs[0].ndim > len(self.snn.input_shapes[0]) + 1
        if not self.config.mixup or events:
            return batch
        labels = batch.labels if self._labels_count else None
        classes = 0
        if labels is not None:
            outputs = self._outputs(batch)
            require_classes(labels, outputs)
            classes = outputs.shape[1]
        images, mixed = mix(batch.inputs[0], self.config.mixup, generator, labels, classes)
        return Batch((images, *batch.inputs[1:]), mixed)

    def _outputs(self, batch: Batch) -> Tensor:
        """Compute the network's outputs for one image, once in a run, to learn how many classes there are."""
        if self._example is None:
            shapes = self.snn.input_shapes
            one = [x.narrow(x.ndim - len(s) - 1, 0, 1) for x, s in zip(batch.inputs, shapes, strict=True)]
            with torch.no_grad(), self.snn.reading("quantized"):
                self._example = logits(self.snn(*(x.to(self.device) for x in one)))
        return self._example

    def epoch(self, place: Place, optimizer: torch.optim.Optimizer) -> float:
        """Train on every image once; what is random depends on the seed, the stage and the epoch alone.

        Args:
            place: where the run stands.
            optimizer: of the parameters that train.

        Returns:
            The mean loss over images.

        Raises:
            TrainingError: the loss or a gradient is not finite, or the loss runs away.
        """
        config, stage, total = self.config, place.stage, 0.0
        count = len(self.train)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed_of(config.seed, place.index, place.epoch))
        chunks = chunked(torch.randperm(count, generator=generator).tolist(), config.batch_size, 2 if self.whole else 1)
        chosen = [p for group in optimizer.param_groups for p in group["params"]]
        one = self.step(place, chosen)
        schedule = rate_schedule(optimizer, place.epoch, stage.epochs, len(chunks), config.warmup)
        done = 0
        status = lambda: f"loss {total / max(done, 1):.4f}"  # noqa: E731 - it reads the names above
        for number, indices in enumerate(track(chunks, str(place), enabled=self.progress, status=status)):
            batch, inputs, own = self.batch(indices, generator)
            loss, factor = one(batch, inputs, own, len(indices)), schedule.lr_lambdas[0](schedule.last_epoch)
            check_loss(self.snn, float(loss), place)
            if config.clip is not None:
                nn.utils.clip_grad_norm_(chosen, config.clip)
            optimizer.step()
            schedule.step()
            keep_in_range(self.snn)
            self.average.update(self.snn, config.average)
            total, done = total + float(loss) * len(indices), done + len(indices)
            if self.log is not None:
                self.log.step(place.run_epoch, {"stage": stage.kind, "epoch": place.epoch + 1, "step": number,
                                                "loss": float(loss), "learning_rate": factor})  # fmt: skip
        check_loss(self.snn, total / count, place, whole_epoch=True)
        return total / count

    def step(
        self, place: Place, chosen: Sequence[nn.Parameter]
    ) -> Callable[[Batch, Sequence[Tensor], Sequence[int], int], Tensor]:
        """Prepare what computes the loss and the gradients of one batch.

        Args:
            place: where the run stands.
            chosen: the parameters that train.

        Returns:
            A function (batch, inputs, indices, images of the whole batch) -> loss.
        """
        stage, config = place.stage, self.config
        local = stage.kind == "blockwise"
        on_memory = self.on_memory if place.epoch == 0 else None
        kind = WholeStep if self.whole and not local else Step
        one = kind(self.snn, config, stage.reading, chosen, on_memory, local, self.loss_fn, self.budget, self.engine,
                   self.how)  # fmt: skip

        def run(batch: Batch, inputs: Sequence[Tensor], indices: Sequence[int], images: int) -> Tensor:
            target, source = self.goals(indices, batch, inputs, layers=local or bool(config.layer_match_weight))
            with self.rounding.seen(self.snn, self.folded):
                return one.run(inputs, target, source, images)

        return run

    def evaluate(self, reading: Reading) -> dict[str, float | None]:
        """Judge the network on the held-out images.

        Args:
            reading: the reading that is judged.

        Returns:
            held_out_loss, held_out_agreement (share of images answered as the teacher does), held_out_accuracy,
            spikes_per_neuron and budget_rate; None where one is not known.
        """
        compute = loss_of(self.config, self.loss_fn)
        count = len(self.held_out)  # type: ignore[arg-type]
        loss, agree, right, labelled = 0.0, 0, 0, 0
        spikes = Events(self.budget.fan_out if self.budget is not None else {})
        with torch.no_grad(), self.snn.reading(reading), self.rounding.seen(self.snn, self.folded):
            for start in range(0, count, _EVAL_BATCH):
                batch, inputs, own = self.batch(range(start, min(start + _EVAL_BATCH, count)), None)
                if not own:
                    continue
                target = self.target(batch, inputs)
                with self.engine.autocast(self.device):
                    ours = logits(self.snn(*inputs, observer=spikes.count)).float()
                reference = ours if target.logits is None else target.logits
                loss += float(compute(ours, target, self.config.temperature)) * len(ours)
                agree += int((ours.argmax(1) == reference.argmax(1)).sum()) if reference.ndim == 2 else 0
                if batch.labels is not None and ours.ndim == 2:
                    right += int((ours.argmax(1).cpu() == batch.labels).sum())
                    labelled += len(ours)
        numbers = [loss, agree, right, labelled, *spikes.sums]
        loss, agree, right, labelled, *sums = self.engine.total(numbers, self.device)  # type: ignore[assignment]
        return {
            "held_out_loss": loss / count,
            "held_out_agreement": None if self.config.objective == "labels" else agree / count,
            "held_out_accuracy": right / labelled if labelled else None,
            "spikes_per_neuron": sums[0] / max(1.0, sums[1]),
            "budget_rate": None if self.budget is None else sums[2] / max(1e-12, sums[3]),
        }
