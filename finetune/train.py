"""train: a network learns from labels or a teacher as a spiking one, thresholds and batch-norm included."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.convert.spiking import to_spiking
from speedysnn.data import Batch
from speedysnn.errors import InputError
from speedysnn.finetune.config import Config
from speedysnn.finetune.fit import budget_of, check_names, run_all, teacher_of
from speedysnn.finetune.loop import Place, Trainer
from speedysnn.finetune.norm import folded, run_training, with_statistics
from speedysnn.finetune.objectives import aim_of
from speedysnn.finetune.parameters import optimizer
from speedysnn.finetune.result import Result, record, result_of
from speedysnn.finetune.run import Report
from speedysnn.finetune.samples import as_dataset, gather, hold_out
from speedysnn.finetune.step import logits
from speedysnn.modes import evaluating
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Delay
from speedysnn.settings import repeatable

OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True)
class TrainConfig(Config):
    """Settings of `finetune.train`: those of `Config`, towards labels; towards a teacher as well where one is given.

    Stages are spiking (through time) or quantized (the same levels in one pass, T times cheaper; timing is not seen).

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
        others = any(stage.kind == "blockwise" for stage in self.plan)
        if others or self.match or self.membrane or self.budget_of != "spikes":
            raise InputError(
                "train: expected quantized or spiking stages and neither match, membrane nor a budget of synops; for "
                "those convert a trained network and use finetune.fit"
            )
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.calibration < 2:
            raise InputError(f"calibration: expected at least 2 images, got {self.calibration}")


class _Whole(Trainer):
    """A trainer that keeps batch-norm's statistics over the whole batch and all steps."""

    least = 2  # one image has no statistics

    def step(
        self, place: Place, chosen: Sequence[nn.Parameter]
    ) -> Callable[[Batch, Sequence[Tensor], Sequence[int], int], Tensor]:
        """The whole batch in one piece."""
        aim = aim_of(self.config, self.aim)

        def run(batch: Batch, inputs: Sequence[Tensor], indices: Sequence[int], images: int) -> Tensor:
            for parameter in chosen:
                parameter.grad = None
            target, _ = self.goals(indices, batch, inputs, layers=False)
            rates = self.budget.rates() if self.budget is not None else None
            observer = rates.take if rates is not None else None
            with self.engine.autocast(self.device):
                ours = logits(run_training(self.snn, inputs, place.stage.reading, observer))
            loss = aim(ours.float(), target, self.config.temperature)
            total = loss
            if rates is not None and self.budget is not None:
                rate = rates.rate
                total = loss + self.budget.factor * rate
                self.budget.update(float(rate.detach()))
            torch.autograd.backward(total)
            return loss.detach()

        return run


@repeatable
def train(
    ann: nn.Module,
    train: Any,
    timesteps: int = 4,
    *,
    validation: Any = None,
    teacher: nn.Module | None = None,
    config: TrainConfig | None = None,
    spikes: str = "binary",
    delay: Delay = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    log: str | Path | None = None,
    progress: bool = False,
    on_epoch: Report | None = None,
) -> tuple[SpikingNetwork, Result]:
    """Train a network as a spiking one from its first step, through time or, in stages, by its levels.

    It may be untrained, or a source network that goes on learning with its levels and batch-norm in place. Batch-norm
    trains with the statistics of the whole batch over all steps (so the batch runs in one piece, in one process) and
    keeps running ones for evaluation; at the end it is folded. Dropout does not act. `config.keep` says which epoch
    counts, by default that of the lowest held-out loss.

    Args:
        ann: the network, in any mode; it is left as it is.
        train: a dataset, a loader, tensors or batches; with labels, unless the objective is the teacher's logits alone.
        timesteps: T.
        validation: held-out data; without it `config.holdout` of the training data is kept for that.
        teacher: maps the inputs to logits, for the objectives "kl" and "mse"; a `SpikingNetwork` is read analog.
        config: the settings.
        spikes: "binary", "ternary" or "graded:N".
        delay: steps of look-ahead, or "full".
        folder: where the state is kept after every epoch.
        resume: go on from the state in `folder`, with the same untrained network; gives the result of an
            uninterrupted run.
        log: folder for `epochs.csv`, `steps.csv` and, where it is installed, TensorBoard events.
        progress: show progress.
        on_epoch: called with every new row of the history.

    Raises:
        ConversionError: the network cannot be converted.
        TrainingError: NaN, infinity or a loss that runs away, nothing to resume, or a folder that cannot be written to.
        ArtifactError: another run is writing into `folder` or `log` now.
        InputError: no labels or no teacher where the objective needs them, more classes than outputs, or several
            processes.
    """
    config = config or TrainConfig()
    check_names(config)
    if (config.objective == "labels") is not (teacher is None):
        raise InputError(
            f"train: expected a teacher beside the objectives 'kl' and 'mse' and none beside 'labels', got "
            f"{config.objective!r} and {'none' if teacher is None else 'one'}"
        )
    begin = time.monotonic()
    data, held = (as_dataset(train), as_dataset(validation)) if validation is not None else hold_out(
        train, config.holdout, config.seed
    )  # fmt: skip
    snn = _start(ann, data, timesteps, config, spikes=spikes, delay=delay)
    frozen = snn if teacher is None else teacher_of(snn, teacher, config)
    with evaluating(frozen):
        trainer = _Whole(snn, frozen, data, held, config, progress, budget=budget_of(config, None))
        if trainer.engine.world > 1:
            raise InputError("train: expected one process: batch-norm takes its statistics over whole batches")
        state, layers = run_all(
            trainer, folder=folder, resume=resume, log=log, on_epoch=on_epoch, make_optimizer=_optimizer
        )
    snn = folded(snn)
    record(snn, config, state)
    return snn, result_of(state, config, layers, time.monotonic() - begin)


def _start(ann: nn.Module, data: Any, timesteps: int, config: TrainConfig, **options: Any) -> SpikingNetwork:
    """The network on spikes, its thresholds those of the first training images, and its statistics if it has none."""
    images = gather(data, range(min(config.calibration, len(data)))).inputs
    device = next((p.device for p in ann.parameters()), torch.device("cpu"))
    ready = with_statistics(ann, [x.to(device) for x in images])
    return to_spiking(ready, [tuple(images)] if len(images) > 1 else images[0], timesteps, fold_bn=False, **options)


def _optimizer(
    groups: dict[str, dict[str, nn.Parameter]], config: Config, factor: float
) -> torch.optim.Optimizer:
    adam = optimizer(groups, config, factor)
    if not isinstance(config, TrainConfig) or config.optimizer == "adamw":
        return adam
    kept = [{k: group[k] for k in ("params", "lr", "peak", "weight_decay")} for group in adam.param_groups]
    return torch.optim.SGD(kept, momentum=0.9)
