"""Write a noise report: a table, JSON, figures, and one self-contained page."""

import base64
import io
import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from speedysnn.analysis import figures
from speedysnn.analysis.columns import COLUMNS, OUTPUTS
from speedysnn.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from speedysnn.analysis.result import NoiseReport

WORST = 5
CAPTIONS = {
    "sqnr": "Distance to the dashed floor is what clipping, earlier layers and timing cost; distance between the two "
    "solid lines is timing alone.",
    "causes": "clip: raise theta. round: lower theta or take more steps. propagated: look at earlier layers. "
    "temporal: look ahead, or train through time. A share below zero cancels part of another.",
    "rmse": "At the dashed line the error is that of rounding alone; silent elements are exact, so a sparse layer may "
    "lie below it.",
    "activity": "Many saturated elements: theta is too low. Nothing saturated and large rounding: theta is too high.",
    "sweep": "Dotted: what the same thresholds would reach without timing error.",
}
_TITLES = {
    "sqnr": "SQNR a layer",
    "causes": "Causes of the error",
    "rmse": "Error in steps",
    "activity": "Activity",
    "sweep": "More or fewer steps",
}
_PERCENT = frozenset({"saturated", "silent", "source_silent", "bias_share", "accuracy", "twin_accuracy",
                      "analog_accuracy", "agreement", "twin_agreement"})  # fmt: skip


def shown(name: str, value: Any) -> str:
    """A figure as the page prints it; a dash for what was not measured or is undefined."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if name in _PERCENT or name.startswith("share_"):
        return f"{100 * value:.1f} %"
    if isinstance(value, float):
        text = f"{value:.1f}" if name.endswith("_db") or name == "spikes_per_inference" else f"{value:.3g}"
        return text.replace("-", "−", 1) if text.startswith("-") else text
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def fragment(report: "NoiseReport") -> str:
    """Verdict, outputs and tables without figures, as HTML to put into another page."""
    return _template("body.html").render(**_context(report), pictures=[])


def page(report: "NoiseReport", pictures: dict[str, bytes]) -> str:
    """The whole page, figures and style in it; it loads nothing."""
    embedded = [
        {"title": _TITLES[name], "caption": CAPTIONS[name], "data": base64.b64encode(png).decode("ascii")}
        for name, png in pictures.items()
    ]
    return _template("report.html").render(**_context(report), pictures=embedded)


def write(report: "NoiseReport", folder: Path, sweep: pd.DataFrame | None = None) -> Path:
    """See `NoiseReport.save`."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder for the report, but a file is there; give another name")
    drawn = figures.all_figures(report.layers, sweep)
    pictures = {name: png(figure) for name, figure in drawn.items()}
    files: dict[str, bytes] = {f"{name}.png": data for name, data in pictures.items()}
    files["layers.csv"] = report.layers.to_csv(index=False).encode()
    files["noise.json"] = (json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n").encode()
    if sweep is not None:
        files["sweep.csv"] = sweep.to_csv(index=False).encode()
    files["report.html"] = page(report, pictures).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            _replace(folder / name, data)
    except OSError as err:
        raise InputError(f"{folder}: the report cannot be written ({err.strerror or err})") from None
    return folder


def png(figure: "Figure") -> bytes:
    """A figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figures.STYLE["savefig.dpi"], metadata={"Software": None})
    return buffer.getvalue()


def _replace(path: Path, data: bytes) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(scratch).chmod(0o644)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _template(name: str) -> Template:
    loader = PackageLoader("speedysnn.analysis", ".")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                       lstrip_blocks=True).get_template(name)  # fmt: skip


def _context(report: "NoiseReport") -> dict[str, Any]:
    rows = report.layers.to_dict("records")
    finite = report.layers[report.layers["sqnr_db"].notna()]
    worst = finite.nsmallest(WORST, "sqnr_db").to_dict("records") if len(rows) > 1 else []
    return {
        "verdict": report.verdict,
        "outputs": report.outputs,
        "output_fields": OUTPUTS,
        "columns": COLUMNS,
        "rows": rows,
        "worst": worst,
        "shown": shown,
    }
