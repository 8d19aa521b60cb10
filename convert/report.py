"""The compatibility report: every operator of a network, how it is treated, what it costs, and why."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

Treatment = Literal["spiking", "hybrid", "unsupported"]
Accuracy = Literal["exact", "approximate", ""]


@dataclass(frozen=True)
class Row:
    """One call in the source network.

    Attributes:
        path: layer path.
        operator: what is called.
        treatment: "spiking" (spikes and accumulation only), "hybrid" (needs an analog unit), or "unsupported".
        accuracy: "exact" (its mean over time is the source's) or "approximate" (neurons), "" if unsupported.
        why: the reason, in words.
        advice: what to change, "" if nothing.
        source: file:line of the call.
        neurons: neurons it adds, an image.
        operations: multiplications with weights, and evaluations of analog units, an image and step; where spikes come
            in, a multiplication is one accumulation for each spike.
        state: values kept from step to step, an image.
    """

    path: str
    operator: str
    treatment: Treatment
    accuracy: Accuracy
    why: str
    advice: str = ""
    source: str = ""
    neurons: int = 0
    operations: int = 0
    state: int = 0


@dataclass(frozen=True)
class Report:
    """Every operator of a network, and its activations found, replaced and never called.

    Attributes:
        network: class name of the source network.
        rows: one a call in execution order, then one for each neuron that re-encodes an analog value.
        activations_found: activation modules in the source.
        neurons: neuron layers placed; one a call, so a module called twice gives two.
        never_called: paths of leaf modules that the forward pass does not reach.
        allow_hybrid: whether operators that need an analog unit count as converted.
        tracer: "fx" or "export", which of the two read the network.
    """

    network: str
    rows: tuple[Row, ...]
    activations_found: int
    neurons: int
    never_called: tuple[str, ...]
    allow_hybrid: bool = True
    tracer: str = "fx"

    @property
    def supported(self) -> bool:
        """Whether everything can be converted."""
        return not self.problems

    @property
    def problems(self) -> tuple[Row, ...]:
        """The rows that cannot be converted: unsupported, and hybrid unless allowed."""
        refused = ("unsupported",) if self.allow_hybrid else ("unsupported", "hybrid")
        return tuple(row for row in self.rows if row.treatment in refused)

    @property
    def treatment(self) -> Treatment:
        """The network as a whole: "unsupported" if any operator is, "hybrid" if any is, else "spiking"."""
        found = {row.treatment for row in self.rows}
        return "unsupported" if "unsupported" in found else "hybrid" if "hybrid" in found else "spiking"

    @property
    def frame(self) -> pd.DataFrame:
        """One row a call."""
        return pd.DataFrame([asdict(row) for row in self.rows], columns=list(Row.__dataclass_fields__))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "schema": "speedysnn-inspect/2",
            "network": self.network,
            "supported": self.supported,
            "treatment": self.treatment,
            "allow_hybrid": self.allow_hybrid,
            "tracer": self.tracer,
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
        hybrid = sum(row.treatment == "hybrid" for row in self.problems)
        unsupported = len(lines) - hybrid
        parts = [f"{unsupported} of {len(self.rows)} operators are unsupported"] if unsupported else []
        if hybrid:
            parts.append(
                f"{hybrid} of {len(self.rows)} operators need an analog unit (accept them with allow_hybrid=True, on "
                "the command line --allow-hybrid)"
            )
        return "\n".join([f"{self.network} cannot be converted: {', and '.join(parts)}", *lines])
