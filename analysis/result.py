"""NoiseReport: what measure_noise found, as a table, as JSON, and as files."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from speedysnn.analysis.columns import COLUMNS, OUTPUTS
from speedysnn.analysis.commands import Advice, rendered
from speedysnn.analysis.details import LayerDetail
from speedysnn.analysis.energy import CostReport
from speedysnn.analysis.memory import Memory
from speedysnn.analysis.report_data import SensitivityTables
from speedysnn.analysis.strict import plain

SCHEMA = "speedysnn-noise/1"
_CONSTANT = "the error is the same throughout"
_WHOLE = 'a look-ahead of "full", which is read without its steps'
_REASONS = {
    "share_clip": "the layer has no error",
    "share_round": "the layer has no error",
    "share_propagated": "the layer has no error",
    "share_temporal": "the layer has no error",
    "bias_share": "the layer has no error",
    "remaining_share": "the layer has no error",
    "bias_gain_db": "the layer has no error",
    "noise_skew": _CONSTANT,
    "noise_kurtosis": _CONSTANT,
    **dict.fromkeys(("round_mean", "round_variance", "round_ks"), "no value lies inside the range"),
    **dict.fromkeys(("round_skew", "round_kurtosis"), "fewer than two different values inside the range"),
    "signal_correlation": "the source activation or the error is the same throughout",
    "channel_correlation": 'not measured: detail="full" does; or fewer than two channels have an error',
    "channels_compared": 'not measured: detail="full" does',
    "step_correlation": 'not measured: detail="full" does; or a single step, no value inside the range, or ' + _WHOLE,
    "first_spike": "no neuron fired, or " + _WHOLE,
    "never_fired": _WHOLE,
    "start_up": "no neuron fired, or " + _WHOLE,
    "lateness": "a single step, no neuron fired, or " + _WHOLE,
    "membrane_outside": "only binary spikes without look-ahead have it",
    "gap_db": "floor and SQNR are both infinite, or one is undefined",
    "cosine": "the source activation or the spiking output is zero throughout",
}
_SILENT = "the source activation is zero throughout"
_NOT_MEASURED = "not measured: no labels, or an output that is not (B, classes)"


@dataclass(frozen=True, eq=False, repr=False)
class NoiseReport:
    """The noise of a spiking network, layer by layer and at its output.

    Attributes:
        layers: one row a neuron layer in execution order; columns, units and ideals in `speedysnn.analysis.COLUMNS`.
        outputs: the whole network's figures; names, units and ideals in `speedysnn.analysis.OUTPUTS`.
        advice: how far off, which layer, which cause, what to do: text, Python call and command of each as data.
        details: by layer, what its row has no room for: histograms, neurons by name, steps and channels.
        memory: what the measurement held, and which layers' neurons are a sample; None where not measured.
    """

    layers: pd.DataFrame
    outputs: Mapping[str, Any]
    advice: tuple[Advice, ...]
    details: Mapping[str, LayerDetail] = field(default_factory=dict)
    memory: Memory | None = None

    @property
    def verdict(self) -> tuple[str, ...]:
        """The advice as plain sentences."""
        return rendered(self.advice)

    def __repr__(self) -> str:
        """Size and headline."""
        return (
            f"NoiseReport({len(self.layers)} layers, {self.outputs['images']} images, T={self.outputs['timesteps']}, "
            f"output SQNR {self.outputs['sqnr_db']:.1f} dB, twin {self.outputs['twin_sqnr_db']:.1f} dB)"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as strict JSON data: "inf" for infinities, null for what is undefined or not measured.

        Every null has its reason under "reasons", by its path.
        """
        rows = [{name: plain(value) for name, value in row.items()} for row in self.layers.to_dict("records")]
        return {
            "schema": SCHEMA,
            "verdict": list(self.verdict),
            "advice": [one.to_json() for one in self.advice],
            "outputs": {name: plain(value) for name, value in self.outputs.items()},
            "layers": rows,
            "memory": None if self.memory is None else self.memory.to_json(),
            "details": {name: detail.to_json() for name, detail in self.details.items()},
            "reasons": self._reasons(),
            "columns": {name: asdict(column) for name, column in COLUMNS.items()},
            "output_fields": {name: asdict(OUTPUTS[name]) for name in self.outputs},
        }

    def _reasons(self) -> dict[str, str]:
        out = {} if self.memory is not None else {"memory": "no images were read"}
        for name, value in self.outputs.items():
            if value is None:
                out[f"outputs.{name}"] = _NOT_MEASURED
            elif isinstance(value, float) and math.isnan(value):
                out[f"outputs.{name}"] = "the reference output is zero throughout"
        for index, row in enumerate(self.layers.to_dict("records")):
            for column, figure in row.items():
                if figure is None or (isinstance(figure, float) and math.isnan(figure)):
                    out[f"layers[{index}].{column}"] = _REASONS.get(str(column), _SILENT)
        return out

    def save(
        self,
        folder: str | Path,
        *,
        sweep: pd.DataFrame | None = None,
        sensitivity: SensitivityTables | None = None,
        cost: CostReport | None = None,
    ) -> Path:
        """Write layers.csv, noise.json, the figures as PNG, report.md and a self-contained report.html into a folder.

        Each file is written whole or not at all; files of an earlier report are replaced.

        Args:
            folder: made if it is not there.
            sweep: the table of `analysis.sweep`, written as sweep.csv and drawn in the report.
            sensitivity: of `analysis.measure_sensitivity`; adds sensitivity.csv, gains.csv and their figures.
            cost: of `analysis.measure_cost`; adds cost.csv and its figure.

        Raises:
            InputError: a file is in the way, or the folder cannot be written.
        """
        from speedysnn.analysis.extras import Extras
        from speedysnn.analysis.report import write

        return write(self, Path(folder), Extras(sweep, sensitivity, cost))

    def _repr_html_(self) -> str:
        """Verdict, outputs and table, for notebooks."""
        from speedysnn.analysis.report import fragment

        return fragment(self)
