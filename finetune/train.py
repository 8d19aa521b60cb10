"""`train` trains a network as a spiking one from its first step, by labels or a teacher, with batch-norm in place."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from speedysnn.convert.spiking import to_spiking
from speedysnn.data.batches import drawn, inputs_of
from speedysnn.errors import InputError
from speedysnn.finetune.augment import as_dataset, gather, hold_out
from speedysnn.finetune.batch_norm import fold_batch_norms, with_statistics
from speedysnn.finetune.config import Config, with_old_names
from speedysnn.finetune.fit import budget_of, check_names, run_all, teacher_of
from speedysnn.finetune.loop import Trainer
from speedysnn.finetune.optimization import Groups, optimizer
from speedysnn.finetune.result import Result, record, result_of
from speedysnn.finetune.run import Report
from speedysnn.finetune.step import print_need
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Delay
from speedysnn.settings import repeatable
from speedysnn.torch_utils import evaluating

OPTIMIZERS = ("adamw", "sgd")
RATES: Mapping[str, float] = {"thresholds": 1e-2, "v_init": 1e-3, "biases": 1e-3, "weights": 1e-3}


@with_old_names
@dataclass(frozen=True)
class TrainConfig(Config):
    """Settings of `finetune.train`: those of `Config`, towards labels; towards a teacher as well where one is given.

    Stages are spiking (through time) or quantized (the same levels in one pass, T times cheaper; timing is not seen).

    Attributes:
        optimizer: "adamw", or "sgd" with momentum 0.9.
        calibration: first training images that choose the starting thresholds.

    Example:
        >>> from speedysnn import finetune
        >>> config = finetune.TrainConfig(epochs_spiking=3, optimizer="sgd")
        >>> config.objective, [str(stage) for stage in config.plan]
        ('labels', ['spiking:3'])
    """

    epochs_quantized: int = 0
    epochs_spiking: int = 30
    objective: str = "labels"
    spiking_rate: float = 1.0
    temperature: float = 1.0
    layer_match_weight: float = 0.0
    batch_size: int = 50
    augment: str = "none"
    mixup: float = 0.0
    average: float = 0.0
    optimizer: str = "adamw"
    calibration: int = 256
    default_rates: ClassVar[Mapping[str, float]] = RATES

    def __post_init__(self) -> None:
        """Refuse what could not train."""
        super().__post_init__()
        others = any(stage.kind not in ("quantized", "spiking") for stage in self.plan)
        if others or self.layer_match_weight or self.membrane or self.budget_of != "spikes" or self.weight_bits:
            raise InputError(
                "train: expected quantized or spiking stages and neither layer_match_weight, membrane, weight_bits nor "
                "a budget of synops; for those convert a trained network and use finetune.fit"
            )
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.calibration < 2:
            raise InputError(f"calibration: expected at least 2 images, got {self.calibration}")


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
    keeps running ones for evaluation; at the end it is folded. Dropout does not act. `config.monitor` says which epoch
    counts, by default that of the lowest held-out loss. The same call gives the same bits again.

    Args:
        ann: the network, in any mode; it is left as it is.
        train: a dataset, a loader, tensors or batches; with labels, unless the objective is the teacher's logits alone.
        timesteps: T.
        validation: held-out data; without it `config.holdout` of the training data is kept for that.
        teacher: maps the inputs to logits, for the objectives "kl" and "mse"; a `SpikingNetwork` is read analog.
        config: the settings.
        spikes: "binary", "ternary", "graded:N" or "power2:N" (signed powers of two); see `IFNeuron`.
        delay: steps of look-ahead, or "full".
        folder: where the state is kept after every epoch.
        resume: go on from the state in `folder`, with the same untrained network; gives the result of an
            uninterrupted run.
        log: folder for `epochs.csv`, `steps.csv` and, where it is installed, TensorBoard events.
        progress: show progress, and before each stage the memory that its steps need.
        on_epoch: called with every new row of the history.

    Raises:
        ConversionError: the network cannot be converted.
        TrainingError: NaN, infinity or a loss that runs away, nothing to resume, or a folder that cannot be written to.
        ArtifactError: another run is writing into `folder` or `log` now.
        InputError: no labels or no teacher where the objective needs them, more classes than outputs, or several
            processes.

    Returns:
        The spiking network, batch-norm folded, and what its training did.

    Example:
        >>> import torch
        >>> from speedysnn import finetune
        >>> seed, x = torch.manual_seed(0), torch.randn(128, 8)
        >>> ann = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> config = finetune.TrainConfig(epochs_spiking=3, learning_rates={"weights": 0.01})
        >>> snn, result = finetune.train(ann, (x, (x[:, 0] > 0).long()), timesteps=2, config=config)
        >>> snn.timesteps, len(result.history)
        (2, 4)
        >>> bool(result.history.held_out_loss.min() < result.history.held_out_loss.iloc[0])
        True
    """
    config = config or TrainConfig()
    check_names(config)
    if (config.objective == "labels") is not (teacher is None):
        raise InputError(
            f"train: expected a teacher beside the objectives 'kl' and 'mse' and none beside 'labels', got "
            f"{config.objective!r} and {'none' if teacher is None else 'one'}"
        )
    begin = time.monotonic()
    taken = inputs_of(ann)
    data, held = (as_dataset(train, taken), as_dataset(validation, taken)) if validation is not None else hold_out(
        train, config.holdout, config.seed, taken
    )  # fmt: skip
    snn = _start(ann, data, timesteps, config, spikes=spikes, delay=delay)
    frozen = snn if teacher is None else teacher_of(snn, teacher, config)
    with evaluating(frozen):
        told = print_need if progress else None
        trainer = Trainer(snn, frozen, data, held, config, progress, told, budget=budget_of(config, None), whole=True)
        if trainer.engine.world > 1:
            raise InputError("train: expected one process: batch-norm takes its statistics over whole batches")
        state, layers = run_all(
            trainer, folder=folder, resume=resume, log=log, on_epoch=on_epoch, make_optimizer=_optimizer
        )
    snn = fold_batch_norms(snn)
    record(snn, config, state)
    return snn, result_of(state, config, layers, time.monotonic() - begin)


def _start(ann: nn.Module, data: Any, timesteps: int, config: TrainConfig, **options: Any) -> SpikingNetwork:
    """Convert the network without folding, with thresholds, and statistics it lacks, from some training images."""
    images = gather(data, drawn(len(data), config.calibration)).inputs
    device = next((p.device for p in ann.parameters()), torch.device("cpu"))
    ready = with_statistics(ann, [x.to(device) for x in images])
    return to_spiking(ready, [tuple(images)] if len(images) > 1 else images[0], timesteps, fold_bn=False, **options)


def _optimizer(groups: Groups, config: Config, factor: float, scales: Mapping[str, float]) -> torch.optim.Optimizer:
    """Make the optimizer that the settings name, with the same groups and rates."""
    adam = optimizer(groups, config, factor, scales)
    if not isinstance(config, TrainConfig) or config.optimizer == "adamw":
        return adam
    kept = [{k: group[k] for k in ("params", "lr", "initial_lr", "weight_decay")} for group in adam.param_groups]
    return torch.optim.SGD(kept, momentum=0.9)
