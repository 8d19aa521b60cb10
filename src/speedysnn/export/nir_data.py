"""Spike trains in NIR's own format for data, NIRData, beside the one of `speedysnn.spike_trains`."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speedysnn.errors import DataError, InputError
from speedysnn.export.nir_folding import plain
from speedysnn.files import reason
from speedysnn.files.atomic import scratch_beside
from speedysnn.spike_trains import SpikeTrain

OBSERVABLE = "spikes"


def save_nir_data(trains: Mapping[str, SpikeTrain], path: str | Path, *, dt: float = 1.0) -> Path:
    """Write spike trains as NIRData, under the names that `to_nir` gives the layers; an earlier file is replaced.

    Each layer is an observable "spikes": a regular grid of images, steps and neurons, of truth values where spikes are
    0 or 1, else of small whole numbers. NIRData has no word for a layer's shape, so that its neurons stand in one row.

    Args:
        trains: as `spike_trains.record` gives them.
        path: the file to write.
        dt: what a step lasts, in seconds where the readers of the file have a clock.

    Returns:
        The path.

    Raises:
        InputError: the package nir is missing, or too old to have NIRData.
        DataError: the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from speedysnn import export, spike_trains
        >>> trains = {"relu1": spike_trains.SpikeTrain.of(torch.tensor([[[1, 0]], [[0, 1]]]))}  # T = 2, one image
        >>> file = export.save_nir_data(trains, Path(tempfile.mkdtemp()) / "trains.h5")
        >>> export.load_nir_data(file)["relu1"].counts.tolist()
        [[[1, 0]], [[0, 1]]]
    """
    nir, target = _nir(), Path(path)
    nodes = {plain(name): nir.NIRNodeData({OBSERVABLE: _grid(nir, train, dt)}) for name, train in trains.items()}
    try:
        with scratch_beside(target.absolute()) as scratch:
            nir.write_data(str(scratch / target.name), nir.NIRGraphData(nodes))
            (scratch / target.name).replace(target)
    except OSError as err:
        raise DataError(f"spike trains: {target} cannot be written: {err.strerror or err}") from err
    return target


def load_nir_data(path: str | Path) -> dict[str, SpikeTrain]:
    """Read the spikes of a NIRData file, whoever wrote it, as trains (T, B, neurons).

    Args:
        path: the file; its spikes on a regular grid.

    Returns:
        Name of each node -> its train.

    Raises:
        InputError: the package nir is missing, or too old to have NIRData.
        DataError: no such file, one of another kind, or more than 127 spikes in a step.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from speedysnn import export, spike_trains
        >>> trains = {"fc": spike_trains.SpikeTrain.of(torch.ones(4, 2, 3))}  # T = 4, two images
        >>> export.load_nir_data(export.save_nir_data(trains, Path(tempfile.mkdtemp()) / "trains.h5"))["fc"].shape
        (4, 2, 3)
    """
    nir = _nir()
    try:
        nodes = nir.read_data(str(path)).nodes
        grids = {name: node.observables[OBSERVABLE] for name, node in nodes.items() if OBSERVABLE in node.observables}
        return {name: _train(grid) for name, grid in grids.items()}
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as err:
        raise DataError(f"spike trains: expected a file of NIRData, got {path}: {reason(err)}") from err


def _nir() -> Any:
    try:
        nir = importlib.import_module("nir")
    except ImportError as err:
        raise InputError(f'NIRData needs the package nir ({err}): pip install "speedysnn[nir]"') from None
    if not hasattr(nir, "write_data"):
        raise InputError("this version of nir has no NIRData; pip install --upgrade nir")
    return nir


def _grid(nir: Any, train: SpikeTrain, dt: float) -> Any:
    counts = train.counts.flatten(2) if train.counts.ndim > 2 else train.counts[..., None]
    kind = bool if bool(((counts == 0) | (counts == 1)).all()) else np.int8
    return nir.TimeGriddedData(np.ascontiguousarray(counts.transpose(0, 1).numpy().astype(kind)), dt)


def _train(grid: Any) -> SpikeTrain:
    if not hasattr(grid, "data"):
        raise ValueError("its spikes are events with times; write them with to_time_gridded(dt)")
    counts = np.asarray(grid.data)
    if not np.array_equal(counts, np.round(counts.astype(np.float64))):
        raise ValueError("its spikes are no whole numbers")
    return SpikeTrain.of(torch.from_numpy(counts.astype(np.int64)).transpose(0, 1))
