"""compare: several networks, or one before and after tuning, in two tables and a few figures."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import nn

from speedysnn.analysis.noise.layer import PARTS
from speedysnn.analysis.noise.measure import measure_noise
from speedysnn.analysis.noise.result import NoiseReport
from speedysnn.display import plain
from speedysnn.errors import InputError
from speedysnn.files.atomic import replace_file
from speedysnn.network import SpikingNetwork

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "speedysnn-comparison/1"
REMOVED = ("removed", *(f"removed_{cause}" for cause in PARTS), "removed_affine")


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Networks beside one another; the first is what the others are held against.

    Attributes:
        layers: one row a network and layer: `network`, the columns of `speedysnn.analysis.COLUMNS`, and the fraction of
            the first network's noise in the layer of that name that is gone, `removed`, cut by cause into
            `removed_clip` + `removed_round` + `removed_propagated` + `removed_temporal` + `removed_weights`;
            `removed_affine` is the part of `removed_propagated` that was gain and offset lost with depth. Noise is
            sum e^2 / sum a^2; 1 is ideal, below 0 noise was added, NaN where the first has no such layer or no noise in
            it.
        outputs: one row a network: `network`, the fields of `speedysnn.analysis.OUTPUTS`, and `removed` of the output.
    """

    layers: pd.DataFrame
    outputs: pd.DataFrame

    def __repr__(self) -> str:
        """Give the networks' names and the tables' sizes."""
        names = ", ".join(map(str, self.outputs["network"]))
        return f"Comparison({len(self.outputs)} networks: {names}; {len(self.layers)} rows of layers)"

    def figures(self) -> dict[str, "Figure"]:
        """Draw every figure; each is also a function of `speedysnn.analysis.report.comparisons`.

        Returns:
            File name without its ending -> figure.
        """
        from speedysnn.analysis.report.comparisons import all_figures

        return all_figures(self.layers, self.outputs)

    def to_json(self) -> dict[str, Any]:
        """Give both tables as strict JSON data.

        Returns:
            "outputs" and "layers": "inf" for infinities, None for what is undefined or was not measured.
        """
        return {"schema": SCHEMA, "outputs": _rows(self.outputs), "layers": _rows(self.layers)}

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write layers.csv, outputs.csv, comparison.json and the figures as PNG; each file whole or not at all.

        Args:
            folder: made where it is missing.
            overwrite: replace files of these names.

        Returns:
            The folder.

        Raises:
            InputError: a file of that name is there and overwrite is False, or the folder cannot be written.
        """
        from speedysnn.analysis.report.style import png

        target = Path(folder)
        if target.exists() and not target.is_dir():
            raise InputError(f"{target}: expected a folder for the comparison, but a file is there; give another name")
        files = {f"{name}.png": png(figure) for name, figure in self.figures().items()}
        files["layers.csv"] = self.layers.to_csv(index=False).encode()
        files["outputs.csv"] = self.outputs.to_csv(index=False).encode()
        files["comparison.json"] = (json.dumps(self.to_json(), allow_nan=False) + "\n").encode()
        there = sorted(name for name in files if (target / name).exists())
        if there and not overwrite:
            raise InputError(
                f"{target}: {', '.join(there)} would be overwritten; give another folder or overwrite=True"
            )
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                replace_file(target / name, content)
        except OSError as err:
            raise InputError(f"{target}: the comparison cannot be written ({err.strerror or err})") from None
        return target


def compare(
    networks: Mapping[str, NoiseReport | SpikingNetwork],
    data: Any = None,
    *,
    source: nn.Module | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Comparison:
    """Put any number of networks into one table: before and after tuning, spike kinds, several T.

    Layers are matched by name. The networks should share one source, for all figures are against their own reference.

    Args:
        networks: by name, in the order of the tables; a report is taken as it is, a network is measured.
        data: for the networks, as in `measure_noise`; an iterator is kept in memory where several read it.
        source: for the networks, as in `measure_noise`: the original once weights were tuned.
        limit: stop after this many images.
        progress: show progress.

    Returns:
        The two tables, and what draws their figures.

    Raises:
        InputError: nothing to compare, something else than a report or a network, a network without data, or reports of
            different numbers of images.
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4)
        >>> before = analysis.measure_noise(snn, images)
        >>> snn.set_delay("full")
        >>> after = analysis.measure_noise(snn, images)
        >>> both = analysis.compare({"look-ahead 0": before, "look-ahead full": after})
        >>> both
        Comparison(2 networks: look-ahead 0, look-ahead full; 4 rows of layers)
        >>> bool(both.outputs["removed"][1] > 0)  # a fraction of the output's noise is gone
        True
    """
    _check(networks, data)
    if isinstance(data, Iterator):
        data = list(data)
    reports = {name: one if isinstance(one, NoiseReport)
               else measure_noise(one, data, source=source, limit=limit, progress=progress, try_settings=0)
               for name, one in networks.items()}  # fmt: skip
    counts = {name: report.outputs["images"] for name, report in reports.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise InputError(
            f"compare: expected all networks measured on the same images, got {told} images; measure again"
        )
    return _joined(reports)


def _check(networks: Mapping[str, Any], data: Any) -> None:
    if not isinstance(networks, Mapping) or not networks:
        raise InputError(f"networks: expected a dict name -> NoiseReport or SpikingNetwork, got {networks!r:.80}")
    for name, one in networks.items():
        if not isinstance(name, str) or not name:
            raise InputError(f"networks: expected names that are words, got {name!r}")
        if not isinstance(one, NoiseReport | SpikingNetwork):
            raise InputError(
                f"networks[{name!r}]: expected a NoiseReport or a SpikingNetwork, got {type(one).__name__}"
            )
        if data is None and isinstance(one, SpikingNetwork):
            raise InputError(f"networks[{name!r}]: a network is measured on data; pass data=, or its NoiseReport")


def _joined(reports: Mapping[str, NoiseReport]) -> Comparison:
    first = next(iter(reports.values()))
    before: dict[Any, tuple[float, ...]] = {row["layer"]: _powers(row) for row in first.layers.to_dict("records")}
    layers, outputs = [], []
    for name, report in reports.items():
        for row in report.layers.to_dict("records"):
            cells = {str(column): value for column, value in row.items()}
            layers.append({"network": name, **cells, **_removed(before.get(row["layer"]), _powers(row))})
        gone = _gone(_noise(first.outputs["sqnr_db"]), _noise(report.outputs["sqnr_db"]))
        figures = {field: value for field, value in report.outputs.items() if field != "tried"}
        outputs.append({"network": name, **figures, "removed": gone})
    columns = ["network", *first.layers.columns, *REMOVED]
    return Comparison(pd.DataFrame(layers, columns=columns), pd.DataFrame(outputs))


def _noise(sqnr_db: float) -> float:
    """Compute sum e^2 / sum a^2 from an SQNR in dB; 0 at +inf dB, NaN where undefined."""
    return 10 ** (-sqnr_db / 10)


def _powers(row: Mapping[Any, Any]) -> tuple[float, ...]:
    """Compute a layer's noise, the part of each cause and the affine part, in units of its signal."""
    noise = _noise(row["sqnr_db"])
    shares = [row.get(f"share_{cause}", 0.0) for cause in PARTS] + [row["affine_share"]]
    return noise, *(0.0 if noise == 0 else noise * share for share in shares)


def _gone(before: float, after: float, total: float | None = None) -> float:
    total = before if total is None else total
    return (before - after) / total if total > 0 else math.nan


def _removed(before: tuple[float, ...] | None, after: tuple[float, ...]) -> dict[str, float]:
    """Compute what is gone of each part of `before`, as fractions of its first part, the whole noise."""
    if before is None:
        return dict.fromkeys(REMOVED, math.nan)
    return {name: _gone(old, new, before[0]) for name, old, new in zip(REMOVED, before, after, strict=True)}


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): plain(value) for name, value in row.items()} for row in table.to_dict("records")]
