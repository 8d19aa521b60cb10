"""What a training run did: its history as tables and log files, what changed in every layer, and its provenance."""

import csv
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from speedysnn.display import block
from speedysnn.errors import InputError, TrainingError
from speedysnn.files.atomic import replace_file
from speedysnn.finetune.checkpoint import RunState
from speedysnn.finetune.config import Config
from speedysnn.network import SpikingNetwork

EPOCHS, STEPS = "epochs.csv", "steps.csv"
_EXCESS_WEIGHT = 100.0  # so that a state within the budget is better than any above it
_TIE_WEIGHT = 1e-6  # of the loss, which decides between states of equal agreement or accuracy
_STEP_COLUMNS = ("stage", "epoch", "step", "loss", "learning_rate")


@dataclass(frozen=True)
class Result:
    """What a training run did.

    Attributes:
        history: one row an epoch; epoch 0 of a stage is the state before it.
        best_epoch: epoch of the last stage whose state was kept, 0 if none was better than the start.
        best_score: its held-out figure, by `Config.monitor` (far less where it exceeds the budget); higher is better.
        seconds: wall time of this call.
        config: the settings.
        layers: one row a layer: mean ratios of theta and of the amplitude after to before, v_init and spikes a neuron
            before and after (on up to 64 held-out images).

    Example:
        >>> import torch
        >>> from speedysnn import convert, finetune
        >>> seed, x = torch.manual_seed(0), torch.rand(40, 8)
        >>> ann = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> snn = convert.to_spiking(ann, x, timesteps=2)
        >>> result = finetune.fit(snn, x, config=finetune.Config(epochs_quantized=2, epochs_spiking=0))
        >>> list(result.history[["stage", "epoch"]].itertuples(index=False, name=None))
        [('quantized', 0), ('quantized', 1), ('quantized', 2)]
        >>> list(result.layers.columns)[:3]
        ['layer', 'theta_ratio', 'v_init_before']
        >>> snn.provenance["finetuned"][0]["config"] == result.config.to_json()
        True
    """

    history: pd.DataFrame
    best_epoch: int
    best_score: float
    seconds: float
    config: Config
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __repr__(self) -> str:
        return f"Result(epochs={len(self.history)}, best_epoch={self.best_epoch}, best_score={self.best_score:.4g})"

    def _repr_html_(self) -> str:
        """Show the history and what changed in every layer in a notebook."""
        return block(repr(self), (), self.history) + block("Layers", (), self.layers)


def changes(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Tabulate what changed in every layer.

    Args:
        before: log_theta, v_init and spikes_per_neuron by layer before the run, and log_amplitude where spikes do not
            stand for theta.
        after: the same after it.

    Returns:
        One row a layer: theta's and the amplitude's ratio, v_init and spikes a neuron before and after; NaN where
        nothing was known.

    Example:
        >>> from speedysnn.finetune.result import changes
        >>> before = {"relu": {"log_theta": 0.0, "v_init": 0.5, "spikes_per_neuron": 1.0}}
        >>> after = {"relu": {"log_theta": 0.5, "v_init": 0.4, "spikes_per_neuron": 0.8}}
        >>> float(changes(before, after).theta_ratio[0].round(3))
        1.649
    """
    rows = []
    for name, new in after.items():
        old = before.get(name, {})
        rows.append(
            {
                "layer": name,
                "theta_ratio": math.exp(new["log_theta"] - old.get("log_theta", math.nan)),
                "v_init_before": old.get("v_init", math.nan),
                "v_init_after": new["v_init"],
                "spikes_per_neuron_before": old.get("spikes_per_neuron", math.nan),
                "spikes_per_neuron_after": new["spikes_per_neuron"],
                "amplitude_ratio": math.exp(_log_amplitude(new) - _log_amplitude(old)),
            }
        )
    return pd.DataFrame(rows)


def _log_amplitude(layer: Mapping[str, float]) -> float:
    return layer.get("log_amplitude", layer.get("log_theta", math.nan))


def record(snn: SpikingNetwork, config: Config, state: RunState) -> None:
    """Add the run to the network's provenance, with which it is saved.

    Args:
        snn: the network after training.
        config: the settings.
        state: the run's state.
    """
    timing = ("eval_seconds", "train_seconds")
    rows = [{key: value for key, value in row.items() if key not in timing} for row in state.history]
    entry = {"config": config.to_json(), "timesteps": snn.timesteps, "history": rows, "torch": torch.__version__}
    snn.provenance = {**snn.provenance, "finetuned": [*snn.provenance.get("finetuned", []), entry]}


def result_of(state: RunState, config: Config, layers: pd.DataFrame, seconds: float) -> Result:
    """Make the result of a run from its state.

    Args:
        state: the run's state.
        config: the settings.
        layers: what changed in every layer.
        seconds: wall time.

    Returns:
        What the caller of `fit` or `train` gets.
    """
    return Result(pd.DataFrame(state.history), state.best_epoch, state.best_score, seconds, config, layers)


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
        >>> from speedysnn.finetune.result import score
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


class Log:
    """Writes `epochs.csv` (one row an epoch) and `steps.csv` (one row a step), and TensorBoard events beside them.

    Both files are replaced whole after every epoch, so a run that was killed leaves whole files.

    Args:
        folder: where the files are kept.
        epochs_done: rows of the history that a resumed run has already; later steps in the log are dropped.

    Raises:
        TrainingError: the folder cannot be written.
    """

    def __init__(self, folder: Path, epochs_done: int = 0) -> None:
        self.folder, self.steps = folder, list[dict[str, Any]]()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if epochs_done and (folder / STEPS).is_file():
                with (folder / STEPS).open(newline="", encoding="utf-8") as file:
                    self.steps = [row for row in csv.DictReader(file) if int(row["run_epoch"]) < epochs_done]
        except (OSError, KeyError, ValueError) as err:
            raise TrainingError(f"{folder}: the log cannot be written or read ({err}); choose another folder") from None
        self._board: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder), purge_step=epochs_done or None)

    def step(self, run_epoch: int, values: Mapping[str, Any]) -> None:
        """Take in one optimizer step.

        Args:
            run_epoch: rows of the history before its epoch.
            values: stage, epoch, step, loss and learning_rate.
        """
        self.steps.append({"run_epoch": run_epoch, **{key: values[key] for key in _STEP_COLUMNS}})

    def epoch(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the files after an epoch.

        Args:
            history: the rows so far; the last one is new.
        """
        _replace(self.folder / EPOCHS, pd.DataFrame(list(history)))
        _replace(self.folder / STEPS, pd.DataFrame(self.steps, columns=["run_epoch", *_STEP_COLUMNS]))
        if self._board is None:
            return
        for key, value in history[-1].items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._board.add_scalar(f"{history[-1]['stage']}/{key}", value, len(history) - 1)
        self._board.flush()

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._board is not None:
            self._board.close()


def _replace(path: Path, frame: pd.DataFrame) -> None:
    try:
        replace_file(path, frame.to_csv(index=False).encode())
    except OSError as err:
        raise TrainingError(f"{path}: the log cannot be written ({err.strerror or err})") from None
