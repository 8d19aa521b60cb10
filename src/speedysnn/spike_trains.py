"""Spike trains of a network as small files: a bit a neuron and step where spikes are binary, else a byte; NIRData."""

import importlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from speedysnn.errors import DataError, InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.files import reason
from speedysnn.files.atomic import replace_file, scratch_beside
from speedysnn.network import SpikingNetwork

OBSERVABLE = "spikes"  # its name in NIRData
_KEY = "speedysnn-trains"


@dataclass(frozen=True, eq=False)
class SpikeTrain:
    """The spikes of one layer.

    Attributes:
        data: uint8 bits, eight steps or neurons a byte, the first in the highest bit; or int8 counts (T, B, ...).
        shape: (T, B, ...).
    """

    data: Tensor
    shape: tuple[int, ...]

    @staticmethod
    def of(counts: Tensor) -> "SpikeTrain":
        """Packs whole numbers (T, B, ...): as bits where all are 0 or 1, else as bytes.

        Raises:
            InputError: more than 127 spikes in a step.
        """
        if counts.numel() and int(counts.abs().max()) > 127:
            raise InputError(f"spike trains: at most 127 spikes a step fit a byte, got {int(counts.abs().max())}")
        small = counts.detach().to("cpu", torch.int8).contiguous()
        if counts.numel() and bool(((small == 0) | (small == 1)).all()):
            bits = torch.from_numpy(np.packbits(small.numpy().astype(bool).reshape(-1)))
            return SpikeTrain(bits, tuple(counts.shape))
        return SpikeTrain(small, tuple(counts.shape))

    @property
    def counts(self) -> Tensor:
        """Spikes of every neuron in every step, int8 (T, B, ...); negative ones count below zero."""
        if self.data.dtype == torch.int8:
            return self.data
        flat = np.unpackbits(self.data.numpy(), count=math.prod(self.shape))
        return torch.from_numpy(flat.astype(np.int8)).view(self.shape)


def record(snn: SpikingNetwork, *inputs: Tensor, layers: Collection[str] | None = None) -> dict[str, SpikeTrain]:
    """The spikes of a batch, n[t] = output[t] / amplitude, for each layer.

    Args:
        snn: the network; it is left as it is.
        inputs: as in a call of the network, (B, ...) or (T, B, ...).
        layers: names of neurons; all by default.

    Raises:
        InputError: a name that no neuron has.
    """
    odd = sorted(set(layers or ()) - set(snn.neurons))
    if odd:
        raise InputError(f"no neuron is called {odd[0]!r}; there are {', '.join(snn.neurons)}")
    found: dict[str, SpikeTrain] = {}

    def take(tap: LayerRecord) -> None:
        if layers is None or tap.name in layers:
            found[tap.name] = SpikeTrain.of(tap.counts())

    with torch.no_grad():
        snn.read("spiking", *inputs, per_step=True, observer=take)
    return found


def save(trains: Mapping[str, SpikeTrain], path: str | Path) -> None:
    """Write trains to one safetensors file; an earlier file stays whole until the new one is.

    Raises:
        DataError: the file cannot be written.
    """
    shapes = json.dumps({name: train.shape for name, train in trains.items()})
    data = to_bytes({name: train.data.contiguous() for name, train in trains.items()}, {_KEY: shapes})
    try:
        replace_file(Path(path), data)
    except OSError as err:
        raise DataError(f"spike trains: {path} cannot be written: {err.strerror or err}") from err


def load(path: str | Path) -> dict[str, SpikeTrain]:
    """Read what `save` wrote.

    Raises:
        DataError: no such file, or one of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = json.loads((file.metadata() or {})[_KEY])
            return {name: _checked(file.get_tensor(name), shapes[name]) for name in shapes}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as err:
        raise DataError(
            f"spike trains: expected a file written by speedysnn.spike_trains.save, got {path}: {err}"
        ) from err


def _checked(data: Tensor, shape: Any) -> SpikeTrain:
    sizes = tuple(int(size) for size in shape)
    expected = (-(-math.prod(sizes) // 8),) if data.dtype == torch.uint8 else sizes
    if data.dtype not in (torch.uint8, torch.int8) or tuple(data.shape) != expected or min(sizes, default=0) < 0:
        raise ValueError(f"{tuple(data.shape)} {data.dtype} does not hold {sizes} spikes")
    return SpikeTrain(data, sizes)


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


def plain(name: str) -> str:
    """A node name without dots and slashes, which readers of NIR forbid."""
    return name.replace(".", "_").replace("/", "_")
