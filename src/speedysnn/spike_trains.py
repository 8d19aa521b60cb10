"""Spike trains of a network as small files: one bit a neuron and step where spikes are binary, else one byte."""

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
from speedysnn.files.atomic import replace_file
from speedysnn.network import SpikingNetwork

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
