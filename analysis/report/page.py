"""Write a noise report as files: a table, JSON, figures, a Markdown page and one self-contained HTML page.

`write` does all of it and replaces an earlier report in one step. `Extras` are further measurements that a report can
hold: a sweep over T, sensitivity by layer, the cost of an inference. The functions at the end draw the small vector
graphics of the layers' pages, which need no script and no file.
"""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure

from speedysnn.analysis.cost import CostReport
from speedysnn.analysis.noise.moments import Floats
from speedysnn.analysis.noise.schema import format_of
from speedysnn.analysis.output_metrics import OUTPUTS
from speedysnn.analysis.report import LayerDetail, NoiseTables, SensitivityTables, figures, neurons
from speedysnn.analysis.report.style import COLOURS, STYLE, png
from speedysnn.display import plain
from speedysnn.errors import InputError
from speedysnn.files.atomic import replace_set

BEST = 10  # changes that the page lists
WORST = 5
NAMED = 12  # neurons a layer page lists
CAPTIONS = {
    "sqnr": "Distance to the dashed floor is what clipping, earlier layers and timing cost; distance between the two "
    "solid lines is timing alone.",
    "causes": "clip: raise theta. round: lower theta or take more steps. propagated: look at earlier layers; its "
    "hatched part is gain and offset that an affine correction of each channel restores. temporal: look ahead, or "
    "train through time. weights: more bits, or reconstruct. A share below zero cancels part of another.",
    "gain": "Least-squares quantizers shrink, and what they shrink by multiplies with depth. Measured below expected: "
    "noise flattens a ReLU's answer further. Measured above: a drive that has shrunk is clipped less.",
    "rmse": "At the dashed line the error is that of rounding alone; silent elements are exact, so a sparse layer may "
    "lie below it.",
    "activity": "Many saturated elements: theta is too low. Nothing saturated and large rounding: theta is too high.",
    "sensitivity": "Isolated noises add up to the quantized reading; where spikes lie below both, timing is the cause "
    "and no swap of one layer shows it.",
    "sensitivity_layers": "Local: the layer alone on the source's own input. Cumulative: with all that came before.",
    "gains": "Each change was made alone and measured; the bar is one standard error, images being a sample.",
    "cost": "Compare within one group. Memory accesses, in the last group alone, can turn the verdict.",
    "sweep": "Dotted: what the same thresholds would reach without timing error.",
}
_TITLES = {
    "sqnr": "SQNR a layer",
    "causes": "Causes of the error",
    "gain": "Gain lost with depth",
    "rmse": "Error in steps",
    "activity": "Activity",
    "sensitivity": "What each layer costs at the output",
    "sensitivity_layers": "Each layer alone, and with all before it",
    "gains": "What one change of one layer gains",
    "cost": "Cost of an inference",
    "sweep": "More or fewer steps",
}
OWN = frozenset({f"{name}.png" for name in _TITLES} | {
    "layers.csv", "noise.json", "report.md", "report.html", "sweep.csv", "sensitivity.csv", "gains.csv", "cost.csv"
})  # fmt: skip
_WIDTH, _HEIGHT, _BASE = 300, 96, 78
_TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Extras:
    """Further measurements of the same network on the same data; None where they were not made."""

    sweep: pd.DataFrame | None = None
    sensitivity: SensitivityTables | None = None
    cost: CostReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the measurements that were made as JSON data.

        Returns:
            "sweep", "sensitivity" and "cost", where they were made.
        """
        out: dict[str, Any] = {}
        if self.sweep is not None:
            out["sweep"] = [{str(k): plain(v) for k, v in row.items()} for row in self.sweep.to_dict("records")]
        if self.sensitivity is not None:
            out["sensitivity"] = self.sensitivity.to_dict()
        if self.cost is not None:
            out["cost"] = self.cost.to_json()
        return out

    def tables(self) -> dict[str, pd.DataFrame]:
        """Give the tables of the measurements that were made, by the names of their CSV files."""
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
        """Give what the HTML and the Markdown page print of the measurements."""
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


def shown(name: str, value: Any) -> str:
    """Write a value as the page prints it.

    Args:
        name: the column's or field's name, which decides the format.
        value: the value.

    Returns:
        The text; a dash for what was not measured or is undefined.

    Example:
        >>> from speedysnn.analysis.report.page import shown
        >>> shown("accuracy", 0.987), shown("sqnr_db", 12.345), shown("accuracy", None)
        ('98.7 %', '12.3', '–')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if format_of(name) == "percent":
        return f"{100 * value:.1f} %".replace("-", "−", 1)
    if name == "count" or (isinstance(value, float) and abs(value) >= 1000):
        return f"{value:,.0f}".replace("-", "−", 1)
    if isinstance(value, float):
        text = f"{value:.1f}" if format_of(name) == "decibels" else f"{value:.3g}"
        return text.replace("-", "−", 1) if text.startswith("-") else text
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def fragment(report: NoiseTables) -> str:
    """Make HTML of the advice, outputs and tables, without figures, to put into another page."""
    return _template("body.html").render(**_context(report, Extras()), pictures=[], pages=[])


def page(report: NoiseTables, pictures: dict[str, bytes], extras: Extras = Extras()) -> str:
    """Make the HTML page with its figures and style in it; it loads nothing, and its script only sorts and opens."""
    context = _context(report, extras)
    return _template("report.html").render(**context, pictures=_captioned(pictures), pages=_pages(report))


def markdown(report: NoiseTables, pictures: dict[str, bytes], extras: Extras = Extras()) -> str:
    """Make the Markdown page, which shows the figures' files beside it."""
    return _template("report.md").render(**_context(report, extras), pictures=_captioned(pictures))


def _captioned(pictures: dict[str, bytes]) -> list[dict[str, Any]]:
    """Give each picture its words, and the width at which its text has the size of the page's; wide ones scroll."""
    return [
        {
            "name": name,
            "title": _TITLES[name],
            "caption": CAPTIONS[name],
            "data": base64.b64encode(data).decode("ascii"),
            "width": int.from_bytes(data[16:20], "big") * 96 // STYLE["savefig.dpi"] or "auto",
        }
        for name, data in pictures.items()
    ]


def _pages(report: NoiseTables) -> list[dict[str, Any]]:
    """Make one entry for each layer with details, with its small drawings."""
    rows = report.layers.set_index("layer", drop=False).to_dict("index")
    return [
        {
            "row": rows[name],
            "dead": [unit for unit in detail.units.first_dead if unit.value > 0][:NAMED],
            "saturated": detail.units.worst_saturated[:NAMED],
            "drawings": [rounding(detail), whole_error(detail), per_step(detail.spikes_per_step)],
        }
        for name, detail in report.details.items()
    ]


def _drawn(report: NoiseTables, extras: Extras) -> dict[str, Figure]:
    drawn = figures.all_figures(report.layers, extras.sweep)
    if extras.sensitivity is not None:
        drawn.update(neurons.all_figures(extras.sensitivity))
    if extras.cost is not None:
        drawn["cost"] = figures.cost(extras.cost)
    return drawn


def write(report: NoiseTables, folder: Path, extras: Extras) -> Path:
    """Write all files of a report; see `NoiseReport.save`.

    In a new folder, or one with nothing but an earlier report, the report takes the old one's place in one step: at
    every moment there is a whole one, old or new. Among other files its own are replaced one by one, each whole.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder for the report, but a file is there; give another name")
    pictures = {name: png(figure) for name, figure in _drawn(report, extras).items()}
    files: dict[str, bytes] = {f"{name}.png": data for name, data in pictures.items()}
    files["layers.csv"] = report.layers.to_csv(index=False).encode()
    data = {**report.to_json(), **extras.to_json()}
    files["noise.json"] = (json.dumps(data, allow_nan=False) + "\n").encode()
    files.update({name: table.to_csv(index=False).encode() for name, table in extras.tables().items()})
    files["report.md"] = markdown(report, pictures, extras).encode()
    files["report.html"] = page(report, pictures, extras).encode()
    try:
        replace_set(folder, files, OWN)
    except OSError as err:
        raise InputError(f"{folder}: the report cannot be written ({err.strerror or err})") from None
    return folder


def _template(name: str) -> Template:
    loader = PackageLoader("speedysnn.analysis.report", "templates")
    return Environment(loader=loader, autoescape=not name.endswith(".md"), undefined=StrictUndefined, trim_blocks=True,
                       lstrip_blocks=True).get_template(name)  # fmt: skip


def _context(report: NoiseTables, extras: Extras) -> dict[str, Any]:
    rows = report.layers.to_dict("records")
    finite = report.layers[report.layers["sqnr_db"].notna()]
    worst = finite.nsmallest(WORST, "sqnr_db").to_dict("records") if len(rows) > 1 else []
    return {
        "verdict": report.verdict,
        "advice": report.advice,
        "memory": "" if report.memory is None else report.memory.sentence(),
        "outputs": report.outputs,
        "output_fields": OUTPUTS,
        "columns": report.columns,
        "summary": {name: column for name, column in report.columns.items() if column.summary},
        "rows": rows,
        "worst": worst,
        "shown": shown,
        **extras.context(),
    }


def rounding(detail: LayerDetail) -> Markup:
    """Draw Q(z) - z inside the range over bins of [-1, 1) steps, the uniform law dashed; "" where there is none."""
    return _bars(detail.rounding, detail.expected, "round", "rounding error (steps θ/T), dashed: ideal")


def whole_error(detail: LayerDetail) -> Markup:
    """Draw the error r - a where it is not exactly 0, the law of rounding alone dashed; "" where there is none."""
    return _bars(detail.noise, detail.expected, "spiking", "whole error (steps θ/T), dashed: rounding alone")


def per_step(counts: Sequence[int] | None) -> Markup:
    """Draw the events of every step over the mean of all steps, 1 dashed; "" where no trains were unrolled."""
    if not counts or not sum(counts):
        return Markup("")
    mean = sum(counts) / len(counts)
    top = max(1.0, *(count / mean for count in counts)) * 1.05
    width = _WIDTH / len(counts)
    bars = "".join(
        _rect(i * width + 1, width - 2, count / mean / top, COLOURS["spiking"]) for i, count in enumerate(counts)
    )
    level = _BASE - _BASE / top
    ideal = f'<path d="M0 {level:.1f}H{_WIDTH}" class="ideal"/>'
    shown = range(0, len(counts), -(-len(counts) // 8))
    marks = "".join(_text((i + 0.5) * width, str(i + 1)) for i in shown)
    return _drawing(bars + ideal + marks, "events a step over their mean, dashed: even")


def _bars(counts: Floats, expected: Floats, colour: str, label: str) -> Markup:
    """Draw the densities of the inner bins; the table's columns say what lies outside [-1, 1)."""
    total = float(sum(counts))
    if not total:
        return Markup("")
    shares = [float(count) / total for count in counts[1:-1]]
    ideal = [float(share) for share in expected[1:-1]]
    top = max(*shares, *ideal, 1e-12) * 1.05
    width = _WIDTH / len(shares)
    bars = "".join(_rect(i * width, width, share / top, COLOURS[colour]) for i, share in enumerate(shares) if share > 0)
    path = f"M0 {_BASE - _BASE * ideal[0] / top:.1f}"
    for i, share in enumerate(ideal):
        path += f"V{_BASE - _BASE * share / top:.1f}H{(i + 1) * width:.1f}"
    marks = "".join(_text(_WIDTH * (tick + 1) / 2, f"{tick:g}".replace("-", "−")) for tick in _TICKS)
    return _drawing(f'{bars}<path d="{path}" class="ideal"/>{marks}', label)


def _rect(x: float, width: float, share: float, colour: str) -> str:
    height = _BASE * share
    return f'<rect x="{x:.1f}" y="{_BASE - height:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _text(x: float, text: str) -> str:
    anchor = "start" if x < 6 else "end" if x > _WIDTH - 6 else "middle"
    return f'<text x="{x:.1f}" y="{_HEIGHT - 5}" text-anchor="{anchor}">{text}</text>'


def _drawing(inside: str, label: str) -> Markup:
    """Make an SVG drawing; it holds numbers and fixed words only, so nothing in it needs escaping."""
    axis = f'<path d="M0 {_BASE}H{_WIDTH}" class="axis"/>'
    return Markup(
        f'<svg class="sketch" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{inside}{axis}</svg>'
        f'<span class="sketched">{label}</span>'
    )
