"""Sensitivity: what measure_sensitivity found, as advice, as tables, as JSON and as files; it carries changes out too.

The advice speaks of timing first, since no change of a single layer removes its error, then of the layers that cost
most, then of the best change.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from speedysnn.analysis.report import Advice, CommandNames, command_words, filled, rendered
from speedysnn.analysis.sensitivity.branches import Key
from speedysnn.analysis.sensitivity.changes import CHANGES, Change
from speedysnn.analysis.sensitivity.memory import SensitivityMemory
from speedysnn.analysis.theory.quantization import decibels
from speedysnn.display import plain
from speedysnn.errors import InputError
from speedysnn.files.atomic import scratch_beside
from speedysnn.network import SpikingNetwork

_GAP_DB = 1.0  # a smaller temporal gap is not worth a step of latency
_SURE = 2.0  # standard errors above which a gain is more than chance
_WORTH_DB = 0.1


def advise_on_layers(table: pd.DataFrame, gains: pd.DataFrame, outputs: Mapping[str, Any]) -> tuple[Advice, ...]:
    """Say what was found, most important first; what was not measured is left out.

    Args:
        table: `Sensitivity.table`.
        gains: `Sensitivity.gains`.
        outputs: `Sensitivity.outputs`.

    Returns:
        The advice, with `NET` and `DATA` for names in its commands.
    """
    return (*_timing(outputs), *_worst(table, outputs), *_best(gains, outputs))


def _timing(outputs: Mapping[str, Any]) -> list[Advice]:
    """Advice on the temporal gap, which no swap of a single layer shows."""
    gap, twin = outputs["temporal_gap_db"], outputs["twin_sqnr_db"]
    cost = f"T = {outputs['timesteps']}, look-ahead {outputs['delay']}, latency {outputs['latency']} steps"
    if outputs["spikes_per_neuron"] is not None:
        cost += f", {outputs['spikes_per_neuron']:.2f} spikes per neuron"
    if not math.isfinite(gap):
        return [Advice(f"On {outputs['images']} images ({cost}) the temporal gap is undefined.")]
    head = Advice(
        f"On {outputs['images']} images ({cost}) the output SQNR is {outputs['sqnr_db']:.1f} dB in spikes and "
        f"{twin:.1f} dB in the quantized reading: a temporal gap of {gap:.1f} dB."
    )
    if gap < _GAP_DB:
        return [head]
    return [
        head,
        Advice(
            "Spike timing comes before any layer: the isolated figures and quantized gains do not see it. One more "
            "step of look-ahead may help; it was not measured here, so compare.",
            f"snn.set_delay({outputs['delay'] + 1})",
            command_words("evaluate", "--delay", f"{outputs['delay']},{outputs['delay'] + 1}"),
        ),
        Advice(
            "Or train through time, which was not measured either.",
            "finetune.fit(snn, train, config=finetune.Config(epochs_quantized=0, epochs_spiking=4))",
            command_words("finetune", "--stage", "spiking:4", "-o", "tuned.snn"),
        ),
    ]


def _worst(table: pd.DataFrame, outputs: Mapping[str, Any]) -> list[Advice]:
    """Advice on the layer that helps most when left analog, and on the one that costs most alone."""
    out = []
    spared = _finite(table, "leave_one_out")
    if len(spared) and math.isfinite(outputs["sqnr_db"]):
        row = spared.nlargest(1, "sqnr_db").iloc[0]
        gain = row["sqnr_db"] - outputs["sqnr_db"]
        text = (
            f"Left analog alone, {row['layer']} would give {gain:.1f} dB back at the output, the most of all layers "
            "(leave_one_out)."
        )
        out.append(Advice(text if gain > 0 else "No layer left analog alone would help the output (leave_one_out)."))
    alone = _finite(table, "isolated")
    if len(alone):
        row = alone.nsmallest(1, "sqnr_db").iloc[0]
        text = f"Spiking alone, {row['layer']} costs most: {row['sqnr_db']:.1f} dB at the output (isolated)."
        out.append(Advice(text))
    return out


def _best(gains: pd.DataFrame, outputs: Mapping[str, Any]) -> list[Advice]:
    """Advice on the best change, and whether its gain is more than chance."""
    if gains.empty or not math.isfinite(gains["gain_db"].iloc[0]):
        return []
    row = gains.iloc[0]
    if row["gain_db"] < _WORTH_DB:
        return [Advice("No change of a single layer that was measured would gain 0.1 dB at the output.")]
    error, expected = row["gain_se_db"], row["expected_db"]
    unsure = not row["gain_db"] > _SURE * error
    others = f", {expected:.2f} dB to be expected on other images" if math.isfinite(expected) else ""
    chance = " That may be chance: measure on more images." if unsure else ""
    return [
        Advice(
            f"Best change: {row['change']} in {row['layer']}, {row['gain_db']:.2f} ± {error:.2f} dB at the output"
            f"{others}.{chance}",
            str(row["call"]),
        ),
        Advice(
            "The command line makes such a change in all layers at once.",
            argv=_for_all_layers(row["change"], outputs),
        ),
    ]


def _for_all_layers(change: str, outputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Write the command that makes such a change in every layer."""
    if change == "look-ahead":
        return command_words("evaluate", "--delay", str(outputs["delay"] + 1))
    if change in ("threshold", "bias"):
        trained = {"threshold": "thresholds", "bias": "biases,v_init"}[change]
        return command_words("finetune", "--train", trained, "-o", "tuned.snn")
    return command_words("evaluate", "-T", str(2 * outputs["timesteps"] + 1), "--recalibrate")


def _finite(table: pd.DataFrame, mode: str) -> pd.DataFrame:
    rows = table[table["mode"] == mode]
    return rows[rows["sqnr_db"].map(math.isfinite)]


SCHEMA = "speedysnn-sensitivity/1"
MODES = {
    "local": "the layer alone spikes, on the source's own input; compared at the layer; sees no timing error",
    "cumulative": "all layers spike; compared at the layer",
    "isolated": "only this layer spikes, all others are analog; compared at the output; sees no timing error",
    "prefix": "this layer and all before it spike, those after it are analog; compared at the output",
    "leave_one_out": "all layers spike but this one, which is analog; compared at the output",
}


@dataclass(frozen=True, eq=False, repr=False)
class Sensitivity:
    """What each layer costs at the output, and what changing it alone would gain there.

    Attributes:
        table: one row a layer and mode (`speedysnn.analysis.sensitivity.MODES`); sqnr_db in dB against the analog
            reading, "at" the output or the layer; agreement and accuracy as fractions, NaN where not measured.
        gains: one row a layer and change (`speedysnn.analysis.sensitivity.changes.CHANGES`), best first. gain_db: what
            the output's SQNR gains in spikes, measured by making the change on these images, all else as it is;
            gain_se_db: its standard error, images being a sample; expected_db: what the change of that rank gains on
            images that did not rank it, by cross-validation, since the best of many measured gains is too high;
            twin_gain_db: the gain in the quantized reading, where "bit" is T -> 2 T + 1 steps; sqnr_db, agreement,
            accuracy: of the spiking output with the change; images: that a row was measured on; screened_db: gain_db on
            the images of the first measurement, which another one replaces where `confirm` was given; call: what
            carries it out.
        outputs: the whole network's figures (`speedysnn.analysis.OUTPUTS`); twin_sqnr_db is the quantized reading's.
        changes: (layer, change) -> the change itself.
        names: what the commands of the advice are filled with.
        memory: what the measurement held, and whether its images are a sample; None where not measured.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> found = analysis.measure_sensitivity(convert.to_spiking(net, images, timesteps=4), images)
        >>> sorted(found.gains["change"].unique())
        ['bias', 'bit', 'bit+threshold', 'look-ahead', 'threshold']
        >>> found.advice[1].python
        'snn.set_delay(1)'
    """

    table: pd.DataFrame
    gains: pd.DataFrame
    outputs: Mapping[str, Any]
    changes: Mapping[Key, Change]
    names: CommandNames = field(default_factory=CommandNames)
    memory: SensitivityMemory | None = None

    @property
    def temporal_gap_db(self) -> float:
        """SQNR(twin) - SQNR(spiking) at the output, dB: what timing costs, which no one-layer swap sees."""
        return float(self.outputs["temporal_gap_db"])

    @property
    def isolated_sum_db(self) -> float:
        """Output SQNR if the layers' isolated noises just added up, dB; near the twin's. NaN where not measured."""
        alone = self.table.loc[self.table["mode"] == "isolated", "sqnr_db"]
        return decibels(1.0, sum(10 ** (-value / 10) for value in alone)) if len(alone) else math.nan

    @property
    def advice(self) -> tuple[Advice, ...]:
        """The temporal gap, the layers that cost most, and the best change with its call and command."""
        return filled(advise_on_layers(self.table, self.gains, self.outputs), self.names)

    @property
    def verdict(self) -> tuple[str, ...]:
        """The advice as plain sentences."""
        return rendered(self.advice)

    def __repr__(self) -> str:
        """Give the numbers of layers and images, T and the temporal gap."""
        return (
            f"Sensitivity({self.table['layer'].nunique()} layers, {self.outputs['images']} images, "
            f"T={self.outputs['timesteps']}, temporal gap {self.temporal_gap_db:.1f} dB)"
        )

    def apply(self, snn: SpikingNetwork, layer: str | None = None, change: str | None = None) -> SpikingNetwork:
        """Carry out one change in place, the best ranked one where none is named.

        Args:
            snn: the network that was measured, or one with layers of the same names and sizes.
            layer: whose change; the best of all layers where left out.
            change: a key of `CHANGES`; the best one where left out.

        Returns:
            The network itself.

        Raises:
            InputError: no such change was measured, or the network has no such layer of that size.
        """
        if layer is None or change is None:
            rows = self.gains if layer is None else self.gains[self.gains["layer"] == layer]
            rows = rows if change is None else rows[rows["change"] == change]
            if rows.empty:
                raise InputError(f"apply: no change of {layer or 'any layer'} was measured; measure with gains=True")
            layer, change = str(rows["layer"].iloc[0]), str(rows["change"].iloc[0])
        if (layer, change) not in self.changes:
            raise InputError(f"apply: expected a change that stands in `gains`, got {change!r} of {layer!r}")
        self.changes[layer, change].apply(snn)
        return snn

    def to_dict(self) -> dict[str, Any]:
        """Give everything as strict JSON data.

        Returns:
            Data by name: "inf" for infinities, None for what is undefined or was not measured.
        """
        return {
            "schema": SCHEMA,
            "temporal_gap_db": plain(self.temporal_gap_db),
            "isolated_sum_db": plain(self.isolated_sum_db),
            "verdict": list(self.verdict),
            "advice": [one.to_json() for one in self.advice],
            "outputs": {name: plain(value) for name, value in self.outputs.items()},
            "memory": None if self.memory is None else self.memory.to_json(),
            "table": _plain(self.table),
            "gains": [
                {**row, "settings": self.changes[row["layer"], row["change"]].settings()} for row in _plain(self.gains)
            ],
            "modes": {mode: MODES[mode] for mode in self.table["mode"].unique()},
            "changes": dict(CHANGES) if len(self.gains) else {},
        }

    def save(self, folder: str | Path) -> Path:
        """Write sensitivity.csv, gains.csv, sensitivity.json and the figures; each file whole or not at all.

        Returns:
            The folder.

        Raises:
            InputError: a file is in the way, or the folder cannot be written.
        """
        from speedysnn.analysis.report import neurons
        from speedysnn.analysis.report.style import png

        drawn = neurons.all_figures(self)
        files = {f"{name}.png": png(figure) for name, figure in drawn.items()}
        files["sensitivity.csv"] = self.table.to_csv(index=False).encode()
        files["sensitivity.json"] = (json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode()
        if len(self.gains):
            files["gains.csv"] = self.gains.to_csv(index=False).encode()
        return _put(Path(folder), files)


def _put(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder, each under another name first."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder for the figures and tables, but a file is there")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_beside(folder.absolute() / "sensitivity") as scratch:
            for name, data in files.items():
                (scratch / name).write_bytes(data)
            for name in files:
                (scratch / name).replace(folder / name)
    except OSError as err:
        raise InputError(f"{folder}: cannot be written ({err.strerror or err})") from None
    return folder


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): plain(value) for name, value in row.items()} for row in table.to_dict("records")]
