"""Logs of a run: CSV files, and TensorBoard where it is installed; a resumed run goes on in the same files."""

import csv
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from speedysnn._replace import replace_file
from speedysnn.errors import TrainingError

EPOCHS, STEPS = "epochs.csv", "steps.csv"
_STEP_COLUMNS = ("stage", "epoch", "step", "loss", "learning_rate")


class Log:
    """Writes `epochs.csv` (one row an epoch) and `steps.csv` (one row a step), and TensorBoard events beside them.

    Both files are replaced whole after every epoch, so a run that was killed leaves whole files.

    Raises:
        TrainingError: the folder cannot be written.
    """

    def __init__(self, folder: Path, keep: int = 0) -> None:
        self.folder, self.steps = folder, list[dict[str, Any]]()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if keep and (folder / STEPS).is_file():
                with (folder / STEPS).open(newline="", encoding="utf-8") as file:
                    self.steps = [row for row in csv.DictReader(file) if int(row["run_epoch"]) < keep]
        except (OSError, KeyError, ValueError) as err:
            raise TrainingError(f"{folder}: the log cannot be written or read ({err}); choose another folder") from None
        self._board: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder), purge_step=keep or None)

    def step(self, run_epoch: int, values: Mapping[str, Any]) -> None:
        """One optimizer step of the run's epoch number `run_epoch`."""
        self.steps.append({"run_epoch": run_epoch, **{key: values[key] for key in _STEP_COLUMNS}})

    def epoch(self, history: Sequence[Mapping[str, Any]]) -> None:
        """The rows so far; the last one is new."""
        _replace(self.folder / EPOCHS, pd.DataFrame(list(history)))
        _replace(self.folder / STEPS, pd.DataFrame(self.steps, columns=["run_epoch", *_STEP_COLUMNS]))
        if self._board is None:
            return
        for key, value in history[-1].items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._board.add_scalar(f"{history[-1]['stage']}/{key}", value, len(history) - 1)
        self._board.flush()

    def close(self) -> None:
        """Let go of the files."""
        if self._board is not None:
            self._board.close()


def _replace(path: Path, frame: pd.DataFrame) -> None:
    try:
        replace_file(path, frame.to_csv(index=False).encode())
    except OSError as err:
        raise TrainingError(f"{path}: the log cannot be written ({err.strerror or err})") from None
