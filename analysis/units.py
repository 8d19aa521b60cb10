"""Neurons by name: those that never fire, and those that fire all they can."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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


def counted(fired: Tensor, a: Tensor, most: int) -> dict[str, Tensor]:
    """Per unit: images with spikes, images with all it can fire, largest |a|; from (B, ...) counts and activations."""
    return {
        "fires": (fired != 0).sum(0).to(torch.int32).reshape(-1),
        "full": (fired.abs() == most).sum(0).to(torch.int32).reshape(-1),
        "peak": a.abs().amax(0).to(torch.float32).reshape(-1),
    }


def summary(
    layer: str, shape: tuple[int, ...], images: int, fires: Tensor, full: Tensor, peak: Tensor,
    places: Tensor | None = None,
) -> Units:
    """Counts and names of a layer's neurons; ties in the order of the index.

    Shapes: fires, full, peak (units,), and their places among all neurons where they are a sample.
    """
    fires, full, peak = fires.cpu(), full.cpu(), peak.cpu()
    dead = (fires == 0).nonzero().reshape(-1)
    crowded = (full > 0).nonzero().reshape(-1)
    where = torch.arange(len(fires)) if places is None else places
    return Units(
        math.prod(shape),
        len(fires),
        len(dead),
        int((peak[dead] > 0).sum()),
        int((2 * full >= images).sum()),
        _named(layer, shape, where, dead, peak.to(torch.float64)),
        _named(layer, shape, where, crowded, full.to(torch.float64) / max(1, images)),
    )


def _named(
    layer: str, shape: tuple[int, ...], where: Tensor, places: Tensor, values: Tensor
) -> tuple[Unit, ...]:
    """Of the units `places` those with the largest values first, MOST_NAMES at most; `where` each lies in the layer."""
    own = values[places]
    if len(own) > MOST_NAMES:
        least = own.topk(MOST_NAMES).values[-1]
        above = (own > least).nonzero().reshape(-1)
        level = (own == least).nonzero().reshape(-1)[: MOST_NAMES - len(above)]
        places = places[torch.cat([above, level]).sort().values]
    places = places[torch.sort(values[places], descending=True, stable=True).indices]
    index = torch.unravel_index(where[places], shape) if shape else ()
    rows = torch.stack(index, 1).tolist() if index else [[]] * len(places)
    return tuple(Unit(layer, tuple(row), value) for row, value in zip(rows, values[places].tolist(), strict=True))
