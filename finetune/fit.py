"""fit: train the thresholds, and whatever else is asked, first in the quantized and then in the spiking reading."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn

from speedysnn.errors import TrainingError
from speedysnn.finetune import checkpoint
from speedysnn.finetune.augment import augmentation
from speedysnn.finetune.checkpoint import RunState
from speedysnn.finetune.config import Config
from speedysnn.finetune.loop import Trainer
from speedysnn.finetune.memory import Need
from speedysnn.finetune.objectives import objective
from speedysnn.finetune.parameters import optimizer, trainable
from speedysnn.finetune.samples import as_dataset, hold_out
from speedysnn.network import SpikingNetwork, weights_tuned
from speedysnn.neurons import Reading

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Result:
    """What a run did.

    Attributes:
        history: one row an epoch; epoch 0 of a stage is the state before it.
        best_epoch: epoch of the last stage whose state was kept, 0 if none was better than the start.
        best_score: minus the held-out loss of that state; higher is better.
        seconds: wall time of this call.
        config: the settings.
    """

    history: pd.DataFrame
    best_epoch: int
    best_score: float
    seconds: float
    config: Config

    def __repr__(self) -> str:
        return f"Result(epochs={len(self.history)}, best_epoch={self.best_epoch}, best_score={self.best_score:.4g})"


class _Teacher(nn.Module):
    """A network's analog reading before tuning, frozen."""

    def __init__(self, snn: SpikingNetwork) -> None:
        super().__init__()
        self.snn = copy.deepcopy(snn).requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Any:
        with self.snn.reading("analog"):
            return self.snn(*inputs)


def fit(
    snn: SpikingNetwork,
    train: Any,
    validation: Any = None,
    teacher: nn.Module | None = None,
    config: Config | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    on_epoch: Report | None = None,
    on_memory: Callable[[str, Need], None] | None = None,
) -> Result:
    """Train a spiking network in place until its noise is gone, and leave it in the best state of the last stage.

    Stage one trains the quantized reading, stage two the spiking reading through time; each keeps the state with the
    lowest held-out loss, its starting state included.

    Args:
        snn: the network; its parameters change, its T, spikes and look-ahead do not.
        train: a dataset, a loader, tensors or batches; labels are used by the objective "labels" only.
        validation: held-out data; without it `config.holdout` of the training data is kept for that.
        teacher: maps the inputs to logits; a `SpikingNetwork` is read analog; by default the network's own analog
            reading before tuning, which a network whose weights were tuned before no longer has.
        config: the settings.
        folder: where the state is kept after every epoch.
        resume: go on from the state in `folder`; gives the result of an uninterrupted run.
        progress: show progress.
        on_epoch: called with every new row of the history.
        on_memory: called with the reading and the memory that its steps need, before the first is done.

    Raises:
        TrainingError: NaN or infinity (the best state is kept), or nothing to resume.
        DataError: no data.
    """
    config = config or Config()
    objective(config.objective), augmentation(config.augment)
    if resume and folder is None:
        raise TrainingError("resume: expected the folder of the run to go on with")
    begin = time.monotonic()
    tune, held = (as_dataset(train), as_dataset(validation)) if validation is not None else hold_out(
        train, config.holdout, config.seed
    )  # fmt: skip
    frozen = _teacher(snn, teacher, config)
    place = None if folder is None else Path(folder)
    run_print = checkpoint.fingerprint(snn, config)
    run = checkpoint.read(place, snn, run_print) if resume and place is not None else RunState()
    modes = {module: module.training for module in frozen.modules()}
    try:
        frozen.eval()
        trainer = Trainer(snn, frozen, tune, held, config, progress, on_memory)
        keep = None if place is None else (lambda: checkpoint.write(place, snn, run, run_print))
        for index in range(run.stage, len(config.stages)):
            _stage(trainer, run, index, keep, on_epoch)
    finally:
        for module, mode in modes.items():
            module.training = mode
    _record(snn, config, run)
    return Result(pd.DataFrame(run.history), run.best_epoch, run.best_score, time.monotonic() - begin, config)


def _teacher(snn: SpikingNetwork, teacher: nn.Module | None, config: Config) -> nn.Module:
    if teacher is not None:
        return _Teacher(teacher) if isinstance(teacher, SpikingNetwork) else teacher
    if weights_tuned(snn) and (config.objective != "labels" or config.match):
        raise TrainingError(
            "the network's weights were tuned before, so its analog reading is not the source network any more; give "
            "the teacher: the network before tuning (teacher=, or --source on the command line)"
        )
    return _Teacher(snn)


def _stage(
    trainer: Trainer, run: RunState, index: int, keep: Callable[[], None] | None, on_epoch: Report | None
) -> None:
    """Run one stage from where `run` stands, and leave the network in the stage's best state."""
    name, epochs = trainer.config.stages[index]
    reading = cast(Reading, name)
    factor = trainer.config.spiking_rate if reading == "spiking" else 1.0
    try:
        with torch.enable_grad(), trainable(trainer.snn, trainer.config) as groups:
            adam = optimizer(groups, trainer.config, factor)
            checkpoint.restore_optimizer(adam, run.optimizer)
            if run.epoch == 0 and not run.best:
                _score(trainer, run, reading, 0, None, on_epoch)
            for epoch in range(run.epoch, epochs):
                loss = trainer.epoch(reading, adam, index, epoch, epochs)
                _score(trainer, run, reading, epoch + 1, loss, on_epoch)
                run.epoch, run.optimizer = epoch + 1, checkpoint.optimizer_tensors(adam)
                if keep is not None and epoch + 1 < epochs:
                    keep()
    except (TrainingError, KeyboardInterrupt):
        if run.best:
            trainer.snn.load_state_dict(run.best)
        raise
    trainer.snn.load_state_dict(run.best)
    run.stage, run.epoch, run.optimizer = index + 1, 0, {}
    if index + 1 < len(trainer.config.stages):
        run.best, run.best_score, run.best_epoch = {}, float("-inf"), 0
    if keep is not None:
        keep()


def _score(
    trainer: Trainer, run: RunState, reading: Reading, epoch: int, loss: float | None, on_epoch: Report | None
) -> None:
    """Evaluate on the held-out part, add the row, keep the state if it is the best so far."""
    begin = time.monotonic()
    scores = trainer.evaluate(reading)
    row = {"stage": reading, "epoch": epoch, "train_loss": loss, **scores, "eval_seconds": time.monotonic() - begin}
    held_out = scores["held_out_loss"]
    assert held_out is not None
    if -held_out > run.best_score:
        run.best, run.best_score, run.best_epoch = checkpoint.snapshot(trainer.snn), -held_out, epoch
    row["best"] = run.best_epoch == epoch
    run.history.append(row)
    if on_epoch is not None:
        on_epoch(row)


def _record(snn: SpikingNetwork, config: Config, run: RunState) -> None:
    """Add the run to the network's provenance, so that it is saved with it."""
    rows = [{key: value for key, value in row.items() if key != "eval_seconds"} for row in run.history]
    entry = {"config": config.to_json(), "timesteps": snn.timesteps, "history": rows, "torch": torch.__version__}
    snn.provenance = {**snn.provenance, "finetuned": [*snn.provenance.get("finetuned", []), entry]}
