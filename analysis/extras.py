"""What a report can hold beside the noise: a sweep over T, sensitivity by layer, the cost of an inference."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from speedysnn.analysis.energy import CostReport
from speedysnn.analysis.report_data import SensitivityTables
from speedysnn.analysis.strict import plain

BEST = 10  # changes that the page lists


@dataclass(frozen=True)
class Extras:
    """Further measurements of the same network on the same data; None where they were not made."""

    sweep: pd.DataFrame | None = None
    sensitivity: SensitivityTables | None = None
    cost: CostReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Their data by name, without those that were not made."""
        out: dict[str, Any] = {}
        if self.sweep is not None:
            out["sweep"] = [{str(k): plain(v) for k, v in row.items()} for row in self.sweep.to_dict("records")]
        if self.sensitivity is not None:
            out["sensitivity"] = self.sensitivity.to_dict()
        if self.cost is not None:
            out["cost"] = self.cost.to_json()
        return out

    def tables(self) -> dict[str, pd.DataFrame]:
        """CSV files by name."""
        out: dict[str, pd.DataFrame] = {}
        if self.sweep is not None:
            out["sweep.csv"] = self.sweep
        if self.sensitivity is not None:
            out["sensitivity.csv"] = self.sensitivity.table
            out["gains.csv"] = self.sensitivity.gains
        if self.cost is not None:
            out["cost.csv"] = self.cost.layers
        return out

    def context(self) -> dict[str, Any]:
        """What the page and its Markdown twin print of them."""
        found, cost = self.sensitivity, self.cost
        gains = found.gains.head(BEST).to_dict("records") if found is not None else []
        return {
            "sensitivity": None if found is None else {"verdict": found.verdict, "advice": found.advice, "gains": gains,
                                                       "images": found.outputs["images"],
                                                       "memory": "" if found.memory is None
                                                       else found.memory.sentence()},
            "cost": None if cost is None else {"total": cost.total, "energy": cost.energy.to_dict("records"),
                                               "bits": cost.bits, "images": cost.images,
                                               "uncounted": cost.uncounted},
        }  # fmt: skip
