"""train: a network learns from labels as a spiking one from the start, thresholds and batch-norm included."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from speedysnn.convert.spiking import to_spiking
from speedysnn.data import Batch
from speedysnn.errors import InputError
from speedysnn.finetune.augment import augmentation
from speedysnn.finetune.checkpoint import RunState
from speedysnn.finetune.config import Config
from speedysnn.finetune.fit import Report, Result, _record, _score
from speedysnn.finetune.loop import Trainer, _seed, _set_rate
from speedysnn.finetune.norm import folded, run_training, with_statistics
from speedysnn.finetune.objectives import labels as cross_entropy
from speedysnn.finetune.parameters import keep_in_range, optimizer, trainable
from speedysnn.finetune.samples import as_dataset, gather, hold_out
from speedysnn.finetune.step import logits
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Delay
from speedysnn.progress import track

OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True)
class TrainConfig(Config):
    """Settings of `finetune.train`: those of `Config`, with one stage, on spikes, towards labels.

    Attributes:
        optimizer: "adamw", or "sgd" with momentum 0.9.
        calibration: first training images that choose the starting thresholds.
    """

    epochs_quantized: int = 0
    epochs_spiking: int = 30
    objective: str = "labels"
    optimizer: str = "adamw"
    calibration: int = 256

    def __post_init__(self) -> None:
        """Refuse what could not train."""
        super().__post_init__()
        if self.epochs_quantized or self.objective != "labels" or self.match or self.mixup:
            raise InputError(
                "train: expected epochs_spiking alone, objective 'labels' and neither match nor mixup; for those "
                "convert a trained network and use finetune.fit"
            )
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.calibration < 2:
            raise InputError(f"calibration: expected at least 2 images, got {self.calibration}")


class _Classes(Trainer):
    """A trainer whose labels are checked against the network's outputs."""

    def target(self, batch: Batch, inputs: Sequence[Tensor]) -> Tensor:
        """The labels, (B,)."""
        target = super().target(batch, inputs)
        with torch.no_grad(), self.snn.reading("analog"):
            ours = logits(self.snn(*(x[:1] for x in inputs)))
        low, high = int(target.min()), int(target.max())
        if ours.ndim != 2 or high >= ours.shape[1] or low < 0:
            raise InputError(
                f"labels: expected classes 0..{ours.shape[-1] - 1} for outputs (B, ...) of {tuple(ours.shape[1:])}, "
                f"got {low}..{high}; build the network with as many outputs as classes"
            )
        return target


def train(
    ann: nn.Module,
    train: Any,
    timesteps: int = 4,
    *,
    validation: Any = None,
    config: TrainConfig | None = None,
    spikes: str = "binary",
    delay: Delay = 0,
    progress: bool = False,
    on_epoch: Report | None = None,
) -> tuple[SpikingNetwork, Result]:
    """Train an untrained network as a spiking one from its first step, in the spiking reading through time.

    Batch-norm trains with the statistics of the whole batch over all steps (so the batch runs in one piece) and keeps
    running ones for evaluation; at the end it is folded. Dropout does not act. The epoch with the lowest held-out loss
    is kept. A run cannot be resumed.

    Args:
        ann: the network, in any mode; it is left as it is.
        train: a dataset, a loader, tensors or batches, with labels.
        timesteps: T.
        validation: held-out data; without it `config.holdout` of the training data is kept for that.
        config: the settings.
        spikes: "binary", "ternary" or "graded:N".
        delay: steps of look-ahead, or "full".
        progress: show progress.
        on_epoch: called with every new row of the history.

    Raises:
        ConversionError: the network cannot be converted.
        TrainingError: NaN or infinity.
        InputError: no labels, or more classes than outputs.
    """
    config = config or TrainConfig()
    augmentation(config.augment)
    begin = time.monotonic()
    data, held = (as_dataset(train), as_dataset(validation)) if validation is not None else hold_out(
        train, config.holdout, config.seed
    )  # fmt: skip
    snn = _start(ann, data, timesteps, config, spikes=spikes, delay=delay)
    trainer, run = _Classes(snn, snn, data, held, config, progress), RunState()
    with torch.enable_grad(), trainable(snn, config) as groups:
        steps = _optimizer(groups, config)
        _score(trainer, run, "spiking", 0, None, on_epoch)
        for epoch in range(config.epochs_spiking):
            loss = _epoch(trainer, steps, epoch)
            _score(trainer, run, "spiking", epoch + 1, loss, on_epoch)
    snn.load_state_dict(run.best)
    snn = folded(snn)
    _record(snn, config, run)
    return snn, Result(pd.DataFrame(run.history), run.best_epoch, run.best_score, time.monotonic() - begin, config)


def _start(ann: nn.Module, data: Any, timesteps: int, config: TrainConfig, **options: Any) -> SpikingNetwork:
    """The untrained network on spikes, its statistics and thresholds those of the first training images."""
    images = gather(data, range(min(config.calibration, len(data)))).inputs
    device = next((p.device for p in ann.parameters()), torch.device("cpu"))
    ready = with_statistics(ann, [x.to(device) for x in images])
    return to_spiking(ready, [tuple(images)] if len(images) > 1 else images[0], timesteps, fold_bn=False, **options)


def _optimizer(groups: dict[str, dict[str, nn.Parameter]], config: TrainConfig) -> torch.optim.Optimizer:
    adam = optimizer(groups, config, 1.0)
    if config.optimizer == "adamw":
        return adam
    kept = [{k: group[k] for k in ("params", "lr", "peak", "weight_decay")} for group in adam.param_groups]
    return torch.optim.SGD(kept, momentum=0.9)


def _epoch(trainer: Trainer, steps: torch.optim.Optimizer, epoch: int) -> float:
    """One pass over the training part; returns the mean loss. Seeded by (seed, epoch) alone."""
    config, total = trainer.config, 0.0
    count = len(trainer.train)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(_seed(config.seed, 0, epoch))
    chunks = _chunks(torch.randperm(count, generator=generator).tolist(), config.batch_size)
    chosen = [p for group in steps.param_groups for p in group["params"]]
    augment = augmentation(config.augment)
    label = f"spiking {epoch + 1}/{config.epochs_spiking}"
    for step, indices in enumerate(track(chunks, label, enabled=trainer.progress)):
        batch = gather(trainer.train, indices)
        inputs = [x.to(trainer.device) for x in (augment(batch.inputs[0], generator), *batch.inputs[1:])]
        _set_rate(steps, (epoch + step / len(chunks)) / config.epochs_spiking, config.warmup)
        steps.zero_grad()
        ours = logits(run_training(trainer.snn, inputs))
        loss = cross_entropy(ours, trainer.target(batch, inputs), 1.0)
        torch.autograd.backward(loss)
        trainer._guard(loss.detach(), "spiking", epoch)
        if config.clip is not None:
            nn.utils.clip_grad_norm_(chosen, config.clip)
        steps.step()
        keep_in_range(trainer.snn)
        total += float(loss.detach()) * len(indices)
    return total / count


def _chunks(order: Sequence[int], size: int) -> list[list[int]]:
    """Batches of `size`; a last one of a single image, which has no statistics, joins the one before."""
    chunks = [list(order[i : i + size]) for i in range(0, len(order), size)]
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks[-2:] = [chunks[-2] + chunks[-1]]
    return chunks
