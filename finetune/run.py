"""The stages of a run, one after the other, from wherever its state stands."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speedysnn.errors import TrainingError
from speedysnn.finetune import checkpoint
from speedysnn.finetune.average import Average
from speedysnn.finetune.blockwise import settle
from speedysnn.finetune.checkpoint import RunState
from speedysnn.finetune.config import Config
from speedysnn.finetune.keeping import score
from speedysnn.finetune.loop import Place, Trainer
from speedysnn.finetune.matching import outputs_and_layers
from speedysnn.finetune.parameters import optimizer, trainable
from speedysnn.finetune.stages import Stage, carry_thresholds, setting
from speedysnn.network import SpikingNetwork

Report = Callable[[dict[str, Any]], None]
Groups = dict[str, dict[str, torch.nn.Parameter]]
_SETTLE_IMAGES = 256


@dataclass
class Run:
    """A run under way.

    Attributes:
        trainer: network, teacher, data, settings.
        state: where it stands.
        keep: writes the state, or None.
        on_epoch: called with every new row.
        make_optimizer: from the parameter groups and a factor on all rates.
    """

    trainer: Trainer
    state: RunState
    keep: Callable[[], None] | None = None
    on_epoch: Report | None = None
    make_optimizer: Callable[[Groups, Config, float], torch.optim.Optimizer] = optimizer

    def go(self) -> None:
        """Do the stages that are left; the network ends in the last one's best state, at its own T."""
        snn, plan = self.trainer.snn, self.trainer.config.plan
        own = snn.timesteps
        for index in range(self.state.stage, len(plan)):
            before = own if index == 0 else plan[index - 1].timesteps or own
            with setting(snn, plan[index]), threshold_rule(snn, self.trainer.config.threshold_rule):
                self._stage(index, before)
        carry_thresholds(snn, plan[-1].timesteps or own, own)

    def _stage(self, index: int, before: int) -> None:
        """Run one stage, and leave the network in its best state."""
        trainer, state = self.trainer, self.state
        stage, config = trainer.config.plan[index], trainer.config
        try:
            with torch.enable_grad(), trainable(trainer.snn, config) as groups:
                steps = self.make_optimizer(groups, config, stage.rate)
                trainer.average = state.average
                if state.epoch == 0 and not state.best:
                    self._enter(stage, index, before)
                else:
                    checkpoint.restore_optimizer(steps, state.optimizer)
                while state.epoch < stage.epochs and not self._patience_is_over():
                    self._epoch(stage, index, steps)
        except (TrainingError, KeyboardInterrupt):
            if state.best:
                trainer.snn.load_state_dict(state.best)
            raise
        trainer.snn.load_state_dict(state.best)
        state.stage, state.epoch, state.optimizer, state.average = index + 1, 0, {}, Average()
        if index + 1 < len(config.plan):
            state.best, state.best_score, state.best_epoch = {}, float("-inf"), 0
        self._keep()

    def _enter(self, stage: Stage, index: int, before: int) -> None:
        """Bring the thetas to the stage's T, judge the state it begins with, settle a blockwise stage."""
        trainer = self.trainer
        carry_thresholds(trainer.snn, before, trainer.snn.timesteps)
        self._score(stage, index, 0, None)
        if stage.kind == "blockwise":
            inputs = trainer.batch(range(min(_SETTLE_IMAGES, len(trainer.train))), _fixed())[1]  # type: ignore[arg-type]
            with torch.no_grad():
                settle(trainer.snn, inputs, outputs_and_layers(trainer.matched(), inputs, "analog")[1])
            trainer.engine.same(trainer.snn)
            self._score(stage, index, 0, None)
        self._keep()

    def _epoch(self, stage: Stage, index: int, steps: torch.optim.Optimizer) -> None:
        trainer, state = self.trainer, self.state
        rows = [row for row in state.history if row["stage_index"] == index]
        if trainer.budget is not None:
            trainer.budget.begin([row["budget_rate"] for row in rows])
        trainer.engine.same(trainer.snn)
        place = Place(stage, index, state.epoch, len(state.history), next((row["train_loss"] for row in rows
                      if row["epoch"] == 1), None))  # fmt: skip
        begin = time.monotonic()
        loss = trainer.epoch(place, steps)
        seconds = time.monotonic() - begin
        self._score(stage, index, state.epoch + 1, loss, seconds)
        state.epoch, state.optimizer = state.epoch + 1, checkpoint.optimizer_tensors(steps)
        if state.epoch < stage.epochs:
            self._keep()

    def _patience_is_over(self) -> bool:
        patience = self.trainer.config.patience
        return patience is not None and self.state.epoch - self.state.best_epoch >= patience

    def _score(self, stage: Stage, index: int, epoch: int, loss: float | None, seconds: float = 0.0) -> None:
        """Evaluate on the held-out part, add the row, keep the state if it is the best so far."""
        trainer, state = self.trainer, self.state
        begin = time.monotonic()
        with trainer.average.applied(trainer.snn):
            scores = trainer.evaluate(stage.reading)
            took = time.monotonic() - begin
            over = 0.0 if trainer.budget is None else trainer.budget.excess(scores["budget_rate"] or 0.0)
            found = score(trainer.config.keep, scores, epoch, over)
            if found > state.best_score:
                state.best, state.best_score, state.best_epoch = checkpoint.snapshot(trainer.snn), found, epoch
        row: dict[str, Any] = {
            "stage": stage.kind, "stage_index": index, "timesteps": trainer.snn.timesteps, "epoch": epoch,
            "train_loss": loss, **scores, "train_seconds": seconds, "eval_seconds": took,
            "best": state.best_epoch == epoch,
        }  # fmt: skip
        state.history.append(row)
        if not trainer.engine.main:
            return
        if trainer.log is not None:
            trainer.log.epoch(state.history)
        if self.on_epoch is not None:
            self.on_epoch(row)

    def _keep(self) -> None:
        if self.keep is not None and self.trainer.engine.main:
            self.keep()


@contextmanager
def threshold_rule(snn: SpikingNetwork, rule: str) -> Iterator[None]:
    """Every neuron with this gradient of theta; its own comes back afterwards."""
    before = {name: neuron.threshold_rule for name, neuron in snn.neurons.items()}
    try:
        for neuron in snn.neurons.values():
            neuron.threshold_rule = rule
        yield
    finally:
        for name, neuron in snn.neurons.items():
            neuron.threshold_rule = before[name]


def layer_table(trainer: Trainer) -> dict[str, dict[str, float]]:
    """Every layer's mean log theta, mean v_init and spikes a neuron on up to 64 held-out images, by name."""
    count = min(64, len(trainer.held_out))  # type: ignore[arg-type]
    rates: dict[str, float] = {}

    def count_spikes(tap: Any) -> None:
        fired = tap.neuron.counts(tap.drive) if tap.static_output else _whole(tap)
        steps = 1 if tap.static_output else tap.neuron.timesteps
        rates[tap.name] = float(fired.abs().sum()) * steps / max(1, fired.numel())

    with torch.no_grad(), trainer.snn.reading("spiking"):
        batch = trainer.batch(range(count), None)
        if batch[2]:
            trainer.snn(*batch[1], observer=count_spikes)
    return {
        name: {"log_theta": float(neuron.log_threshold.detach().mean()), "v_init": float(neuron.v_init.detach().mean()),
               "spikes_per_neuron": rates.get(name, float("nan"))}
        for name, neuron in trainer.snn.neurons.items()
    }  # fmt: skip


def _whole(tap: Any) -> Tensor:
    out: Tensor = tap.output / tap.neuron.per_channel(tap.neuron.threshold, tap.output.ndim)
    return out


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)
