"""Write a noise report: a table, JSON, figures, and one self-contained page."""

import base64
import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from speedysnn._replace import replace_set
from speedysnn.analysis import cost_figures, figures, sensitivity_figures, sketch
from speedysnn.analysis.extras import Extras
from speedysnn.analysis.report_data import NoiseTables
from speedysnn.analysis.schema import OUTPUTS, format_of
from speedysnn.analysis.style import png
from speedysnn.errors import InputError

WORST = 5
NAMED = 12  # neurons a layer page lists
CAPTIONS = {
    "sqnr": "Distance to the dashed floor is what clipping, earlier layers and timing cost; distance between the two "
    "solid lines is timing alone.",
    "causes": "clip: raise theta. round: lower theta or take more steps. propagated: look at earlier layers. "
    "temporal: look ahead, or train through time. A share below zero cancels part of another.",
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


def shown(name: str, value: Any) -> str:
    """A figure as the page prints it; a dash for what was not measured or is undefined."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if format_of(name) == "percent":
        return f"{100 * value:.1f} %"
    if name == "count" or (name == "nj" and value >= 1000):
        return f"{value:,.0f}"
    if isinstance(value, float):
        text = f"{value:.1f}" if format_of(name) == "decibels" else f"{value:.3g}"
        return text.replace("-", "−", 1) if text.startswith("-") else text
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def fragment(report: NoiseTables) -> str:
    """Verdict, outputs and tables without figures, as HTML to put into another page."""
    return _template("body.html").render(**_context(report, Extras()), pictures=[], pages=[])


def page(report: NoiseTables, pictures: dict[str, bytes], extras: Extras = Extras()) -> str:  # noqa: B008 - frozen
    """The whole page, figures and style in it; it loads nothing, and its scripts only sort and open."""
    context = _context(report, extras)
    return _template("report.html").render(**context, pictures=_captioned(pictures), pages=_pages(report))


def markdown(report: NoiseTables, pictures: dict[str, bytes], extras: Extras = Extras()) -> str:  # noqa: B008 - frozen
    """The same in Markdown, beside the figures' files."""
    return _template("report.md").render(**_context(report, extras), pictures=_captioned(pictures))


def _captioned(pictures: dict[str, bytes]) -> list[dict[str, str]]:
    return [
        {"name": name, "title": _TITLES[name], "caption": CAPTIONS[name],
         "data": base64.b64encode(data).decode("ascii")}
        for name, data in pictures.items()
    ]  # fmt: skip


def _pages(report: NoiseTables) -> list[dict[str, Any]]:
    """One entry a layer with details, drawn small."""
    rows = report.layers.set_index("layer", drop=False).to_dict("index")
    return [
        {
            "row": rows[name],
            "dead": [unit for unit in detail.units.first_dead if unit.value > 0][:NAMED],
            "saturated": detail.units.worst_saturated[:NAMED],
            "drawings": [sketch.rounding(detail), sketch.whole(detail), sketch.per_step(detail.spikes_per_step)],
        }
        for name, detail in report.details.items()
    ]


def _drawn(report: NoiseTables, extras: Extras) -> dict[str, Figure]:
    drawn = figures.all_figures(report.layers, extras.sweep)
    if extras.sensitivity is not None:
        drawn.update(sensitivity_figures.all_figures(extras.sensitivity))
    if extras.cost is not None:
        drawn["cost"] = cost_figures.cost(extras.cost)
    return drawn


def write(report: NoiseTables, folder: Path, extras: Extras) -> Path:
    """See `NoiseReport.save`.

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
    loader = PackageLoader("speedysnn.analysis", ".")
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
