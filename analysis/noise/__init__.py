"""What an entry of the schema holds: `Sum` is one sum over all images, `Column` one figure of a layer's row.

The folder measures every layer's noise against the source's activations, and its causes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from speedysnn.analysis.noise.layer_totals import LayerTotals

Format = Literal["number", "percent", "decibels"]
Kind = Literal["channel", "total", "count", "histogram", "unit", "step"]
Scope = Literal["element", "train", "image", "rounded"]


@dataclass(frozen=True)
class Sum:
    """One sum over all images.

    Attributes:
        kind: "channel" for one number a channel, "total" for one float64 number, "count" for one whole number,
            "histogram", "unit" for one number a neuron of an image, "step" for one whole number a time step.
        unit: of the summed quantity.
        meaning: one phrase.
        reference: its definition: the values that are added up, from a `sums_reference.Block`, or from
            `sums_reference.Images` where `scope` is "image".
        scope: what the reference needs: "element" and "train" a block, of which "train" looks at the steps too;
            "image" whole images; "rounded" a block, and a network whose weights were rounded.

    Example:
        >>> from speedysnn import analysis
        >>> analysis.SUMS["absolute"] = analysis.Sum("total", "activation", "Absolute error.", lambda b: b.e.abs())
        >>> analysis.SUMS.pop("absolute").unit
        'activation'
    """

    kind: Kind
    unit: str
    meaning: str
    reference: Callable[[Any], Tensor]
    scope: Scope = "element"


@dataclass(frozen=True)
class Column:
    """One figure of a layer, or of the whole network.

    Attributes:
        unit: of its values; fractions lie in 0..1.
        meaning: one sentence.
        higher_is_better: None where neither direction is.
        ideal: the value it would have without noise, in words.
        value: the figure of a layer; a number, a string, or None where it was not measured.
        format: how a page shows it: "number" with three digits, "percent" of a fraction, "decibels" with one digit.
        title: heading in a page; by default the name with spaces.
        missing: why a value may be undefined or not measured; noise.json gives it as the reason for a null.
        summary: whether the short tables of the page and of report.md show it too.
        after: name of the column it stands behind; by default columns stand in the order of `COLUMNS`.

    Example:
        >>> from speedysnn.analysis import Column
        >>> column = Column("activation", "Mean error.", ideal="0", value=lambda layer: layer.total["e"] / layer.n)
        >>> column.heading("mean_error")
        'mean error'
    """

    unit: str
    meaning: str
    higher_is_better: bool | None = None
    ideal: str = ""
    value: Callable[[LayerTotals], Any] | None = None
    format: Format = "number"
    title: str = ""
    missing: str = "its function found no number"
    summary: bool = False
    after: str = ""

    def heading(self, name: str) -> str:
        """Give the heading of a table.

        Args:
            name: of the column.

        Returns:
            The title, or the column's name with spaces.
        """
        return self.title or name.replace("_", " ")

    def to_json(self) -> dict[str, Any]:
        """Describe the column for noise.json.

        Returns:
            Unit, meaning, direction and ideal.
        """
        return {
            "unit": self.unit, "meaning": self.meaning, "higher_is_better": self.higher_is_better, "ideal": self.ideal
        }  # fmt: skip
