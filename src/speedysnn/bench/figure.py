"""A figure of benchmarks: bars of each contestant's time, lines where something grows."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from speedysnn.bench.growth import FULL, OURS, SOURCE

DPI = 130
_BLUE, _GREY = "#0072b2", "#bbbbbb"
_LINES: Mapping[str, dict[str, Any]] = {
    SOURCE: {"color": "#000000", "linestyle": (0, (5, 2)), "marker": "s"},
    FULL: {"color": "#e69f00", "marker": "o"},
}
_HEAD = "Median times, less is better; in brackets: times faster than the first row"
_IDEALS = {"images": "ideal: flat", "steps T": "ideal: flat; full look-ahead: 1/T"}
Row = Mapping[str, Any]


def draw(cases: Sequence[Mapping[str, Any]], titles: Sequence[str] = ()) -> Figure:
    """Every case of `Case`, as a dictionary, below the one before; titles are their names unless given."""
    heights = [3.2 if grows(case) else 0.75 + 0.24 * len(case["rows"]) for case in cases]
    figure = Figure(figsize=(9, 0.4 + sum(heights)), layout="constrained")
    if not all(map(grows, cases)):
        figure.suptitle(_HEAD, fontsize=9, x=0.01, ha="left")
    parts = figure.subfigures(len(cases), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, case, title in zip(parts, cases, titles or [str(case["name"]) for case in cases], strict=True):
        if not grows(case):
            axes = part.subplots()
            _bars(axes, case["rows"])
            axes.set_title(title, fontsize=9, loc="left")
            continue
        part.suptitle(title, fontsize=9, x=0.01, ha="left")
        alongs = list(dict.fromkeys(row["along"] for row in case["rows"]))
        for axes, along in zip(part.subplots(1, len(alongs), squeeze=False)[0], alongs, strict=True):
            _lines(axes, [row for row in case["rows"] if row["along"] == along], along)
    return figure


def grows(case: Mapping[str, Any]) -> bool:
    """Whether a case shows how times grow along something."""
    return all("along" in row for row in case["rows"])


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    names, times = [row["name"] for row in rows], [1e3 * row["median_s"] for row in rows]
    axes.barh(names, times, color=[_BLUE if name.startswith(OURS) else _GREY for name in names])
    for i, (row, time) in enumerate(zip(rows, times, strict=True)):
        shown = f"{time:,.{0 if time >= 100 else 1 if time >= 1 else 3}f}"
        axes.text(time, i, f" {shown} ms ({row['base_over_this']:.2f}x)", va="center", fontsize=8)
    axes.set_xlim(0, 1.3 * max(times))
    axes.invert_yaxis()
    axes.set_xlabel("ms", fontsize=8, labelpad=1)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(axes: Axes, rows: Sequence[Row], along: str) -> None:
    for name in dict.fromkeys(row["line"] for row in rows):
        own = [row for row in rows if row["line"] == name]
        style = _LINES.get(name, {"color": _BLUE, "marker": "o"})
        axes.plot([row["at"] for row in own], [row["us_per_image_step"] for row in own], label=name, **style)
    places = sorted({row["at"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places], minor=False)
    axes.set_xticks([], minor=True)
    times = [row["us_per_image_step"] for row in rows]
    if max(times) > 10 * min(times):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.15 * max(times))
    axes.set_xlabel(along, fontsize=8)
    axes.set_ylabel("µs per image and step", fontsize=8)
    axes.set_title(_IDEALS.get(along, "ideal: no more than T x ANN"), fontsize=8, loc="left")
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
