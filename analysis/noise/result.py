"""NoiseReport: what measure_noise found, as a table, as JSON, and as files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from speedysnn.analysis.cost import CostReport
from speedysnn.analysis.memory import Memory
from speedysnn.analysis.noise import Column
from speedysnn.analysis.noise.layer import table_columns
from speedysnn.analysis.output_metrics import OUTPUTS
from speedysnn.analysis.report import Advice, LayerDetail, SensitivityTables, rendered
from speedysnn.display import plain

SCHEMA = "speedysnn-noise/1"
_ZERO = "the reference output is zero throughout"
_NOT_MEASURED = "not measured: no labels, or an output that is not (B, classes)"


@dataclass(frozen=True, eq=False, repr=False)
class NoiseReport:
    """The noise of a spiking network, layer by layer and at its output.

    Attributes:
        layers: one row a neuron layer in execution order; columns, units and ideals in `speedysnn.analysis.COLUMNS`.
        outputs: the whole network's figures; names, units and ideals in `speedysnn.analysis.OUTPUTS`. "execution" says
            which settings decided in which order numbers were summed.
        advice: how far off, which layer, which cause, what to do: text, Python call and command of each as data.
        details: by layer, what its row has no room for: histograms, neurons by name, steps and channels.
        memory: what the measurement held, and which layers' neurons are a sample; None where not measured.
        columns: what each column of `layers` means and how it is shown, as declared when the report was made.

    Example:
        >>> from speedysnn import analysis, convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "test", limit=40)
        >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
        >>> noise = analysis.measure_noise(snn, images)
        >>> noise.outputs["images"], noise.outputs["timesteps"]
        (40, 4)
        >>> print(noise.verdict[0][:30])
        On 40 images the spiking netwo
    """

    layers: pd.DataFrame
    outputs: Mapping[str, Any]
    advice: tuple[Advice, ...]
    details: Mapping[str, LayerDetail] = field(default_factory=dict)
    memory: Memory | None = None
    columns: Mapping[str, Column] = field(default_factory=table_columns)

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
        """Give the report as strict JSON data.

        Returns:
            Data by name: "inf" for infinities, None for what is undefined or not measured. Every None has its reason
            under "reasons", by its path.

        Example:
            >>> from speedysnn import analysis, convert, data
            >>> from speedysnn.assets.digits import load_digits_net
            >>> images = data.load("digits", "test", limit=40)
            >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
            >>> found = analysis.measure_noise(snn, images).to_json()
            >>> sorted(found["outputs"]["execution"])
            ['events', 'kernel', 'tiles']
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
            "columns": {name: column.to_json() for name, column in self.columns.items()},
            "output_fields": {name: OUTPUTS[name].to_json() for name in self.outputs},
        }

    def _reasons(self) -> dict[str, str]:
        """Why a value of the report is None, by its path."""
        out = {} if self.memory is not None else {"memory": "no images were read"}
        for name, value in self.outputs.items():
            if value is None:
                out[f"outputs.{name}"] = _NOT_MEASURED
            elif isinstance(value, float) and math.isnan(value):
                out[f"outputs.{name}"] = _ZERO
        for index, row in enumerate(self.outputs.get("tried", ())):
            for name, value in row.items():
                if value is None or plain(value) is None:
                    out[f"outputs.tried[{index}].{name}"] = _NOT_MEASURED if value is None else _ZERO
        for index, row in enumerate(self.layers.to_dict("records")):
            for column, figure in row.items():
                if figure is None or (isinstance(figure, float) and math.isnan(figure)):
                    out[f"layers[{index}].{column}"] = self.columns[str(column)].missing
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

        Returns:
            The folder.

        Raises:
            InputError: a file is in the way, or the folder cannot be written.
        """
        from speedysnn.analysis.report.page import Extras, write

        return write(self, Path(folder), Extras(sweep, sensitivity, cost))

    def _repr_html_(self) -> str:
        """Verdict, outputs and table, for notebooks."""
        from speedysnn.analysis.report.page import fragment

        return fragment(self)
