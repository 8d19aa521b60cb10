"""Neurons by name: those that never fire, and those that fire all they can."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
MOST_NAMES = 100


@dataclass(frozen=True)
class Unit:
    """One neuron.

    Attributes:
        layer: the neuron layer's name.
        index: its place in one image, (channel, row, column) or whatever dimensions the layer has.
        value: a dead neuron's largest |source activation| on any image, a saturated one's share of saturated images.
    """

    layer: str
    index: tuple[int, ...]
    value: float

    def __str__(self) -> str:
        """Layer path and index, as one would write it."""
        return f"{self.layer}[{', '.join(map(str, self.index))}]"


@dataclass(frozen=True)
class Units:
    """What a layer's neurons did over all images.

    Attributes:
        count: neurons of one image.
        read: of these, how many the other figures are about; fewer where they are a sample.
        dead: that never fired.
        lost: of these, those whose source was active.
        saturated: that fired all they can on at least half of the images.
        first_dead: the dead ones, those with the largest source activation first; MOST_NAMES at most.
        worst_saturated: those saturated on any image, the most often first; MOST_NAMES at most.
    """

    count: int
    read: int
    dead: int
    lost: int
    saturated: int
    first_dead: tuple[Unit, ...]
    worst_saturated: tuple[Unit, ...]


def summary(
    layer: str, shape: tuple[int, ...], images: int, fires: Tensor, full: Tensor, peak: Tensor,
    places: Tensor | None = None,
) -> Units:
    """Count and name a layer's dead and saturated neurons; ties stand in the order of the index.

    Args:
        layer: the layer's name.
        shape: of the layer for one image.
        images: images measured.
        fires: images in which each neuron fired, (units,).
        full: images in which each neuron fired all it can, (units,).
        peak: largest |source activation| of each neuron, (units,).
        places: the neurons' places among all of them where they are a sample, (units,).

    Returns:
        The counts and the names.
    """
    spiking, crowding, peaks = (x.cpu().numpy() for x in (fires, full, peak))
    dead, crowded = np.flatnonzero(spiking == 0), np.flatnonzero(crowding)
    where = None if places is None else places.cpu().numpy()
    return Units(
        math.prod(shape),
        len(spiking),
        len(dead),
        int((peaks[dead] > 0).sum()),
        int((2 * crowding >= images).sum()),
        _named(layer, shape, where, dead, peaks[dead]),
        _named(layer, shape, where, crowded, crowding[crowded] / max(1, images)),
    )


def _named(layer: str, shape: tuple[int, ...], where: Array | None, units: Array, values: Array) -> tuple[Unit, ...]:
    """Those with the largest values first, MOST_NAMES at most; `where` each lies in the layer, if not at itself."""
    if len(values) > MOST_NAMES:
        least = np.partition(values, -MOST_NAMES)[-MOST_NAMES]
        above, level = np.flatnonzero(values > least), np.flatnonzero(values == least)
        kept = np.sort(np.concatenate([above, level[: MOST_NAMES - len(above)]]))
        units, values = units[kept], values[kept]
    order = np.argsort(-values, kind="stable")
    units = units[order] if where is None else where[units[order]]
    rows = zip(*(axis.tolist() for axis in np.unravel_index(units, shape)), strict=True) if shape else [()] * len(units)
    return tuple(Unit(layer, row, value) for row, value in zip(rows, values[order].tolist(), strict=True))
