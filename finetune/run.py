"""The stages of a run, done one after the other from wherever its state stands; each ends in its best epoch's state."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from speedysnn.calibration.rules import CLIP
from speedysnn.data.batches import drawn
from speedysnn.finetune import checkpoint
from speedysnn.finetune.augment import gather
from speedysnn.finetune.batch_norm import fold_into, run_training, set_statistics, unfolded
from speedysnn.finetune.blocks import ReconstructConfig
from speedysnn.finetune.blocks.layerwise import fit_closed_form
from speedysnn.finetune.blocks.reconstruct import reconstruct
from speedysnn.finetune.checkpoint import RunState
from speedysnn.finetune.config import Config, Stage
from speedysnn.finetune.loop import Place, Trainer
from speedysnn.finetune.objectives import outputs_and_layers
from speedysnn.finetune.optimization import Average, Groups, optimizer, scales_of, trainable
from speedysnn.finetune.result import score as score
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Reading

Report = Callable[[dict[str, Any]], None]
Rates = Callable[[Groups, Config, float, Mapping[str, float]], torch.optim.Optimizer]
_CLOSED_FORM_IMAGES, _RECONSTRUCT_IMAGES = 256, 512
_FEWEST_IMAGES, _PASS_VALUES = 16, 2**26  # images, and values of the widest layer, of one pass that gives statistics


@dataclass
class Run:
    """A run, which does the stages of its settings one after the other.

    Attributes:
        trainer: network, teacher, data, settings.
        state: where it stands.
        original: the network's tensors before the run.
        save_state: writes the state to its folder, or None.
        on_epoch: called with every new row.
        make_optimizer: from the parameter groups, the settings, a factor on all rates, and the parameters' scales.
    """

    trainer: Trainer
    state: RunState
    original: Mapping[str, Tensor]
    save_state: Callable[[], None] | None = None
    on_epoch: Report | None = None
    make_optimizer: Rates = optimizer

    def go(self) -> None:
        """Do the stages that are left; the network ends in the last one's best state, at its own T.

        A run of several stages ends in the network that it began with where that is better at the last stage's
        settings.

        Raises:
            TrainingError: the loss or a gradient goes wrong; the network then has the stage's best state.
        """
        trainer, plan = self.trainer, self.trainer.config.plan
        snn = trainer.folded or trainer.snn
        own, last = snn.timesteps, plan[-1].timesteps or snn.timesteps
        if len(plan) > 1 and not self.state.history:
            with stage_settings(snn, plan[-1]):
                carry_thresholds(snn, own, last)
                self.state.first_score = self._found(plan[-1].reading, 0)[0]
            checkpoint.restore(snn, self.original)
        for index in range(self.state.stage, len(plan)):
            before = own if index == 0 else plan[index - 1].timesteps or own
            with stage_settings(snn, plan[index]), threshold_gradient(snn, trainer.config.threshold_gradient):
                self._stage(index, before)
        first = self.state.first_score
        if first is not None and trainer.config.monitor != "last" and first > self.state.best_score:
            checkpoint.restore(snn, self.original)
            self.state.best_score, self.state.best_epoch = first, 0
        else:
            carry_thresholds(snn, last, own)

    def _stage(self, index: int, before: int) -> None:
        """Run one stage, and leave the network in its best state."""
        trainer, state, stage = self.trainer, self.state, self.trainer.config.plan[index]
        fresh = state.epoch == 0 and not state.best
        if fresh:
            carry_thresholds(trainer.snn, before, trainer.snn.timesteps)
            state.start = checkpoint.snapshot(trainer.snn)
        try:
            with batch_norm_in_place(trainer, stage):
                try:
                    self._train(stage, index, fresh)
                finally:
                    if state.best:
                        checkpoint.restore(trainer.snn, state.best)
        finally:
            if state.best_epoch == 0 and state.start:
                checkpoint.restore(trainer.snn, state.start)
            trainer.average = Average()
        done = index + 1 == len(trainer.config.plan)
        state.stage, state.epoch, state.optimizer, state.average = index + 1, 0, {}, Average()
        state.scales, state.start = {}, {}
        if done:
            state.best = checkpoint.snapshot(trainer.snn)
        else:
            state.best, state.best_score, state.best_epoch = {}, float("-inf"), 0
        self._save_state()

    def _train(self, stage: Stage, index: int, fresh: bool) -> None:
        """Judge the state that a stage begins with, then train; the network is left in the last state."""
        trainer, state, config = self.trainer, self.state, self.trainer.config
        if stage.kind == "reconstruct":
            if fresh:
                self._score(stage, index, 0, None)
                first = state.best_score
                self._reconstruct(stage, index)
                state.start = {} if state.best_score > first else state.start
            return
        if fresh:
            self._enter(stage, index)
        with torch.enable_grad(), trainable(trainer.snn, config) as groups:
            state.scales = scales_of(groups, config) if fresh else state.scales
            steps = self.make_optimizer(groups, config, stage.rate, state.scales)
            trainer.average = state.average
            checkpoint.restore_optimizer(steps, state.optimizer)
            if fresh:
                self._save_state()
            while state.epoch < stage.epochs and not self._patience_is_over():
                self._epoch(stage, index, steps)

    def _enter(self, stage: Stage, index: int) -> None:
        """Judge the state that a stage begins with, and better ones that are at hand without training."""
        trainer, state = self.trainer, self.state
        if trainer.folded is not None:
            set_statistics(trainer.snn, self._first_images(stage), "analog" if index == 0 else stage.reading)
        self._score(stage, index, 0, None)
        first = state.best_score
        if stage.kind == "blockwise":
            inputs = self._first_images(stage)
            with torch.no_grad():
                fit_closed_form(trainer.snn, inputs, outputs_and_layers(trainer.matched(), inputs, "analog")[1])
            trainer.engine.same(trainer.snn)
            self._score(stage, index, 0, None)
        elif trainer.folded is not None and index == 0:
            self._normalise(stage)
            self._score(stage, index, 0, None, only_better=True)
            if state.best and state.best_score <= first:
                checkpoint.restore(trainer.snn, state.best)
                set_statistics(trainer.snn, self._first_images(stage), stage.reading)
        if state.best_score > first:
            state.start = {}

    def _reconstruct(self, stage: Stage, index: int) -> None:
        """Reconstruct the network block by block from the training images, and judge it."""
        trainer, config = self.trainer, self.trainer.config
        begin = time.monotonic()
        copies = 1 if config.augment == "none" else 2
        settings = ReconstructConfig(stage.epochs, 0, config.train, augment=config.augment, copies=copies,
                                     seed=config.seed, correct="none" if index else "moments")  # fmt: skip
        some = Subset(trainer.train, drawn(len(trainer.train), _RECONSTRUCT_IMAGES))  # type: ignore[arg-type]
        reconstruct(trainer.snn, some, settings, validation=trainer.held_out, teacher=trainer.matched(),
                    progress=trainer.progress, on_memory=trainer.on_memory)  # fmt: skip
        self._score(stage, index, stage.epochs, None, time.monotonic() - begin)

    def _first_images(self, stage: Stage) -> list[Tensor]:
        """Training images as they are, as many as one pass over a large network can hold."""
        trainer = self.trainer
        steps = trainer.snn.timesteps if stage.reading == "spiking" else 1
        fits = max(_FEWEST_IMAGES, _PASS_VALUES // (steps * trainer.snn.width))
        count = min(_CLOSED_FORM_IMAGES, len(trainer.train), fits)  # type: ignore[arg-type]
        return [x.to(trainer.device) for x in gather(trainer.train, drawn(len(trainer.train), count)).inputs]  # type: ignore[arg-type]

    def _normalise(self, stage: Stage) -> None:
        """Give batch-norm the statistics of training images as they are: neither mixed nor changed, in one pass."""
        trainer = self.trainer
        with torch.no_grad(), trainer.rounding.seen(trainer.snn, trainer.folded):
            run_training(trainer.snn, self._first_images(stage), stage.reading, momentum=1.0)

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

    def _found(self, reading: Reading, epoch: int) -> tuple[float, dict[str, float | None]]:
        """The score of the present state, and the figures it comes from."""
        trainer = self.trainer
        scores = trainer.evaluate(reading)
        excess = 0.0 if trainer.budget is None else trainer.budget.excess(scores["budget_rate"] or 0.0)
        return score(trainer.config.monitor, scores, epoch, excess), scores

    def _score(
        self, stage: Stage, index: int, epoch: int, loss: float | None, seconds: float = 0.0, only_better: bool = False
    ) -> None:
        """Judge the network on held-out images, add a row to the history, keep the state if it is the best so far.

        With `only_better` nothing is done with a state that is not.
        """
        trainer, state = self.trainer, self.state
        begin = time.monotonic()
        with trainer.average.applied(trainer.snn):
            if trainer.folded is not None and epoch:
                self._normalise(stage)
            found, scores = self._found(stage.reading, epoch)
            took = time.monotonic() - begin
            if only_better and found <= state.best_score:
                return
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


def put_batch_norm(trainer: Trainer, stage: Stage) -> bool:
    """Exchange a trainer's network for one with batch-norm in place, where this stage can train so.

    Args:
        trainer: its `folded` is then the network as it was; otherwise its `how` says why not.
        stage: the stage.

    Returns:
        Whether it was exchanged.
    """
    config = trainer.config
    if trainer.whole or stage.kind not in ("quantized", "spiking"):
        trainer.how = ""
        return False
    why = ""
    if config.batch_norm is False:
        why = "batch_norm is off"
    elif trainer.engine.world > 1:
        why = "several processes share a batch"
    elif min(config.batch_size, len(trainer.train)) < 2:  # type: ignore[arg-type]
        why = "a batch of one image has no statistics"
    elif not {"weights", "biases"} <= set(config.train):
        why = "weights or biases do not train"
    else:
        inputs = [x.to(trainer.device) for x in gather(trainer.train, [0]).inputs]
        normed = unfolded(trainer.snn, inputs)
        if normed is not None:
            trainer.snn, trainer.folded, trainer.whole = normed, trainer.snn, True
            return True
        why = "no weight layer with a bias leads to a neuron"
    trainer.how = f"batch-norm is not in place: {why}"
    return False


@contextmanager
def batch_norm_in_place(trainer: Trainer, stage: Stage) -> Iterator[None]:
    """Put batch-norm in place for a stage that can have it, and fold it into the same network afterwards.

    Args:
        trainer: its `snn` is the network with batch-norm inside the block, if it is not so before (a resumed run).
        stage: the stage.
    """
    if trainer.folded is None and not put_batch_norm(trainer, stage):
        yield
        return
    normed, own = trainer.snn, trainer.folded
    assert own is not None
    normed.timesteps = own.timesteps
    try:
        yield
    finally:
        fold_into(normed, own)
        trainer.snn, trainer.folded, trainer.whole = own, None, False


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
