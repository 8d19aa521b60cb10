"""The stages of a run, done one after the other from wherever its state stands; each ends in its best epoch's state."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from speedysnn.calibration.rules import CLIP
from speedysnn.data.batches import drawn
from speedysnn.errors import InputError, TrainingError
from speedysnn.finetune import checkpoint
from speedysnn.finetune.blocks.layerwise import fit_closed_form
from speedysnn.finetune.checkpoint import RunState
from speedysnn.finetune.config import Config, Stage
from speedysnn.finetune.loop import Place, Trainer
from speedysnn.finetune.objectives import outputs_and_layers
from speedysnn.finetune.optimization import Average, optimizer, trainable
from speedysnn.network import SpikingNetwork

Report = Callable[[dict[str, Any]], None]
Groups = dict[str, dict[str, torch.nn.Parameter]]
_CLOSED_FORM_IMAGES = 256
_TABLE_IMAGES = 64
_EXCESS_WEIGHT = 100.0  # so that a state within the budget is better than any above it
_TIE_WEIGHT = 1e-6  # of the loss, which decides between states of equal agreement or accuracy


def score(monitor: str, held_out: Mapping[str, float | None], epoch: int, excess: float) -> float:
    """Score a state, higher being better: minus the held-out loss, the agreement, the accuracy, or the epoch.

    100 times the excess over the budget is subtracted, so that a state within the budget beats any above it.

    Args:
        monitor: one of MONITORS.
        held_out: held_out_loss, held_out_agreement and held_out_accuracy.
        epoch: its number.
        excess: share by which the spikes exceed their budget.

    Returns:
        The figure that decides which state is kept.

    Raises:
        InputError: accuracy without labels in the held-out part, agreement without a teacher.

    Example:
        >>> from speedysnn.finetune.run import score
        >>> held_out = {"held_out_loss": 0.5, "held_out_agreement": 0.9, "held_out_accuracy": None}
        >>> score("loss", held_out, epoch=3, excess=0.0), score("last", held_out, epoch=3, excess=0.0)
        (-0.5, 3.0)
        >>> score("loss", held_out, epoch=3, excess=0.1)
        -10.5
    """
    loss = held_out["held_out_loss"]
    assert loss is not None
    figure: float | None
    if monitor == "loss":
        figure = -loss
    elif monitor == "last":
        figure = float(epoch)
    else:
        figure = held_out[f"held_out_{monitor}"]
        if figure is None:
            lack = (
                "the held-out images have no labels" if monitor == "accuracy" else "the objective is labels, no teacher"
            )
            raise InputError(f"monitor: expected 'loss' or 'last', got {monitor!r}: {lack}")
        figure -= _TIE_WEIGHT * loss
    return figure - _EXCESS_WEIGHT * excess


@dataclass
class Run:
    """A run, which does the stages of its settings one after the other.

    Attributes:
        trainer: network, teacher, data, settings.
        state: where it stands.
        save_state: writes the state to its folder, or None.
        on_epoch: called with every new row.
        make_optimizer: from the parameter groups and a factor on all rates.
    """

    trainer: Trainer
    state: RunState
    save_state: Callable[[], None] | None = None
    on_epoch: Report | None = None
    make_optimizer: Callable[[Groups, Config, float], torch.optim.Optimizer] = optimizer

    def go(self) -> None:
        """Do the stages that are left; the network ends in the last one's best state, at its own T.

        Raises:
            TrainingError: the loss or a gradient goes wrong; the network then has the stage's best state.
        """
        snn, plan = self.trainer.snn, self.trainer.config.plan
        own = snn.timesteps
        for index in range(self.state.stage, len(plan)):
            before = own if index == 0 else plan[index - 1].timesteps or own
            with stage_settings(snn, plan[index]), threshold_gradient(snn, self.trainer.config.threshold_gradient):
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
        self._save_state()

    def _enter(self, stage: Stage, index: int, before: int) -> None:
        """Bring the thetas to the stage's T and judge the state it begins with; a blockwise stage's closed form too."""
        trainer = self.trainer
        carry_thresholds(trainer.snn, before, trainer.snn.timesteps)
        self._score(stage, index, 0, None)
        if stage.kind == "blockwise":
            inputs = trainer.batch(drawn(len(trainer.train), _CLOSED_FORM_IMAGES), _fixed_generator())[1]  # type: ignore[arg-type]
            with torch.no_grad():
                fit_closed_form(trainer.snn, inputs, outputs_and_layers(trainer.matched(), inputs, "analog")[1])
            trainer.engine.same(trainer.snn)
            self._score(stage, index, 0, None)
        self._save_state()

    def _epoch(self, stage: Stage, index: int, steps: torch.optim.Optimizer) -> None:
        """Train for one epoch and judge the state after it."""
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
            self._save_state()

    def _patience_is_over(self) -> bool:
        patience = self.trainer.config.patience
        return patience is not None and self.state.epoch - self.state.best_epoch >= patience

    def _score(self, stage: Stage, index: int, epoch: int, loss: float | None, seconds: float = 0.0) -> None:
        """Judge the network on held-out images, add a row to the history, keep the state if it is the best so far."""
        trainer, state = self.trainer, self.state
        begin = time.monotonic()
        with trainer.average.applied(trainer.snn):
            scores = trainer.evaluate(stage.reading)
            took = time.monotonic() - begin
            excess = 0.0 if trainer.budget is None else trainer.budget.excess(scores["budget_rate"] or 0.0)
            found = score(trainer.config.monitor, scores, epoch, excess)
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

    def _save_state(self) -> None:
        """Write the run's state, in the first process of several."""
        if self.save_state is not None and self.trainer.engine.main:
            self.save_state()


@contextmanager
def stage_settings(snn: SpikingNetwork, stage: Stage) -> Iterator[None]:
    """Give the network a stage's T, look-ahead and spike kind; its own come back afterwards, thetas stay.

    Args:
        snn: the network.
        stage: the stage.
    """
    with snn.preserved("timesteps", "delay", "spikes"):
        if stage.timesteps is not None:
            snn.timesteps = stage.timesteps
        if stage.delay is not None:
            snn.set_delay(stage.delay)
        if stage.spikes is not None:
            snn.set_spikes(stage.spikes)
        yield


def carry_thresholds(snn: SpikingNetwork, before: int, after: int) -> None:
    """Scale every theta, and an amplitude with it, from one T to another, so that what was learnt stays.

    theta <- theta theta_c(after) / theta_c(before), theta_c(T) the threshold that calibration chooses at T. Layers with
    a given threshold or a learned clip keep theirs, and so do networks without histograms.

    Args:
        snn: the network.
        before: T that its thetas were made for.
        after: T that they shall serve.
    """
    if before == after:
        return
    for name, neuron in snn.neurons.items():
        if snn.calibration.rules.get(name) == CLIP:
            continue
        old, new = (snn.calibration.theta(name, neuron, steps) for steps in (before, after))
        if old is None or new is None:
            continue
        ratio = (new / old).to(neuron.threshold)
        if neuron.granularity == "layer":
            ratio = ratio.log().mean().exp()
        neuron.scale(ratio)


@contextmanager
def threshold_gradient(snn: SpikingNetwork, rule: str) -> Iterator[None]:
    """Give every layer this gradient of theta; its own comes back afterwards.

    Args:
        snn: the network.
        rule: "surrogate", "step" or "mixed".
    """
    before = {name: neuron.threshold_gradient for name, neuron in snn.neurons.items()}
    try:
        for neuron in snn.neurons.values():
            neuron.threshold_gradient = rule
        yield
    finally:
        for name, neuron in snn.neurons.items():
            neuron.threshold_gradient = before[name]


def layer_table(trainer: Trainer) -> dict[str, dict[str, float]]:
    """Describe every layer, with its spikes counted on up to 64 held-out images.

    Args:
        trainer: the network and the held-out images.

    Returns:
        By layer: log_theta, log_amplitude, v_init and spikes_per_neuron.
    """
    count = min(_TABLE_IMAGES, len(trainer.held_out))  # type: ignore[arg-type]
    rates: dict[str, float] = {}

    def count_spikes(tap: Any) -> None:
        fired = tap.neuron.counts(tap.drive) if tap.static_output else tap.counts()
        steps = 1 if tap.static_output else tap.neuron.timesteps
        rates[tap.name] = float(fired.abs().sum()) * steps / max(1, fired.numel())

    with torch.no_grad(), trainer.snn.reading("spiking"):
        batch = trainer.batch(range(count), None)
        if batch[2]:
            trainer.snn(*batch[1], observer=count_spikes)
    return {
        name: {"log_theta": float(neuron.log_threshold.detach().mean()),
               "log_amplitude": float(neuron.amplitude.detach().log().mean()),
               "v_init": float(neuron.v_init.detach().mean()), "spikes_per_neuron": rates.get(name, float("nan"))}
        for name, neuron in trainer.snn.neurons.items()
    }  # fmt: skip


def _fixed_generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
