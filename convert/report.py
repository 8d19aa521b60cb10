"""The compatibility report: every operator of a network, how it is treated, and why."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

Treatment = Literal["exact", "approximate", "unsupported"]


@dataclass(frozen=True)
class Row:
    """One call in the source network.

    Attributes:
        path: layer path.
        operator: what is called.
        treatment: "exact" (its mean over time is the source's), "approximate" (a neuron), or "unsupported".
        why: the reason, in words.
        advice: what to change, "" if nothing.
        source: file:line of the call.
    """

    path: str
    operator: str
    treatment: Treatment
    why: str
    advice: str = ""
    source: str = ""


@dataclass(frozen=True)
class Report:
    """Every operator of a network, and its activations found, replaced and never called.

    Attributes:
        network: class name of the source network.
        rows: one a call, in execution order.
        activations_found: activation modules in the source.
        neurons: neuron layers placed; one a call, so a module called twice gives two.
        never_called: paths of leaf modules that the forward pass does not reach.
    """

    network: str
    rows: tuple[Row, ...]
    activations_found: int
    neurons: int
    never_called: tuple[str, ...]

    @property
    def supported(self) -> bool:
        """Whether everything can be converted."""
        return not self.problems

    @property
    def problems(self) -> tuple[Row, ...]:
        """The rows that cannot be converted."""
        return tuple(row for row in self.rows if row.treatment == "unsupported")

    @property
    def frame(self) -> pd.DataFrame:
        """One row a call."""
        return pd.DataFrame([asdict(row) for row in self.rows], columns=list(Row.__dataclass_fields__))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "schema": "speedysnn-inspect/1",
            "network": self.network,
            "supported": self.supported,
            "activations_found": self.activations_found,
            "neurons": self.neurons,
            "never_called": list(self.never_called),
            "operators": [asdict(row) for row in self.rows],
        }

    def complaint(self) -> str:
        """All problems at once, one a line."""
        lines = [
            f"  {row.path} ({row.operator}{', ' + row.source if row.source else ''}): {row.why}"
            + (f"; {row.advice}" if row.advice else "")
            for row in self.problems
        ]
        head = f"{self.network} cannot be converted: {len(lines)} of {len(self.rows)} operators are unsupported"
        return "\n".join([head, *lines])
