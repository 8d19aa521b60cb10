"""What measure_noise holds in memory, known before the run; neurons are sampled where all of them would not fit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.analysis.moments import BINS
from speedysnn.analysis.schema import CHANNELS, COUNTS, HISTOGRAMS, TOTALS

MIB = 2**20
UNIT = 12  # bytes a neuron: images with spikes, with all it can fire (int32), largest source activation (float32)
PLACE = 4  # bytes a sampled neuron's place takes
Shape = tuple[int, ...]
Sample = tuple[int, tuple[int, int]]  # how many neurons, and the seed that draws them


@dataclass(frozen=True)
class LayerMemory:
    """What the sums of one layer take.

    Attributes:
        shape: of the layer for one image.
        channels: with sums of their own; never sampled.
        read: neurons with counts of their own, in one image; fewer than there are where they are a sample.
        compared: channels whose errors are compared with one another; 0 without detail="full".
        steps: whose events are counted; 0 where no trains are unrolled.
        seed: of the sample, the measurement's and the layer's place.
    """

    shape: Shape
    channels: int
    read: int
    compared: int
    steps: int
    seed: tuple[int, int]

    @property
    def neurons(self) -> int:
        """Of one image."""
        return math.prod(self.shape)

    @property
    def sampled(self) -> bool:
        """Whether `read` is a sample."""
        return self.read < self.neurons

    @property
    def sums_bytes(self) -> int:
        """Of one set of sums: all but the sample's places."""
        single = len(TOTALS) + len(COUNTS) + len(HISTOGRAMS) * (BINS + 3) + 3
        numbers = len(CHANNELS) * self.channels + single + self.steps
        return 8 * (numbers + self.compared * (self.compared + 1) * (self.compared > 0)) + UNIT * self.read

    @property
    def bytes(self) -> int:
        """Of the sums and of the sample's places."""
        return self.sums_bytes + PLACE * self.read * self.sampled

    @property
    def sample(self) -> Sample | None:
        """What `places` draws the sample from; None for all neurons."""
        return (self.read, self.seed) if self.sampled else None


def places(neurons: int, read: int, seed: tuple[int, int]) -> Tensor:
    """`read` of `neurons` drawn without replacement, in rising order, (read,) int32; the same for the same seed."""
    drawn = np.random.default_rng(seed).choice(neurons, read, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(drawn).astype(np.int32))


@dataclass(frozen=True)
class Memory:
    """What a measurement holds beside weights and the images themselves.

    Attributes:
        limit_mib: what it was given.
        seed: of every sample.
        layers: by name.
        images: that one pass takes.
        at_once: passes beside one another, each with sums of its own until they are added up.
        image_bytes: that one image of a pass takes: two readings of all layers kept for the third, which is estimated
            by five trains of the widest layer (`budget.UNDER_WAY`).
        tight: whether the limit cut anything; what is freed is then handed back layer by layer (`handing_back`).
    """

    limit_mib: float
    seed: int
    layers: Mapping[str, LayerMemory] = field(repr=False)
    images: int
    at_once: int
    image_bytes: int
    tight: bool = False

    @property
    def sums_bytes(self) -> int:
        """The running sums, those of the passes under way, and the samples' places."""
        each = self.layers.values()
        return sum(layer.bytes + self.at_once * layer.sums_bytes for layer in each)

    @property
    def passes_bytes(self) -> int:
        """The readings of the passes under way."""
        return self.at_once * self.images * self.image_bytes

    @property
    def predicted_mib(self) -> float:
        """Sums and passes; never above the limit."""
        return (self.sums_bytes + self.passes_bytes) / MIB

    @property
    def sampled(self) -> dict[str, LayerMemory]:
        """The layers whose neurons are a sample."""
        return {name: layer for name, layer in self.layers.items() if layer.sampled}

    def sentence(self) -> str:
        """The same in words."""
        total = (
            f"Memory: {self.predicted_mib:,.1f} of {self.limit_mib:,.6g} MiB predicted, of which sums "
            f"{self.sums_bytes / MIB:,.1f} MiB and passes of {self.images} images {self.passes_bytes / MIB:,.1f} MiB."
        )
        if not self.sampled:
            return f"{total} All neurons were read."
        parts = sorted(self.sampled.items(), key=lambda item: item[1].read / item[1].neurons)
        named = ", ".join(f"{name} {layer.read:,} of {layer.neurons:,}" for name, layer in parts[:4])
        more = f", and {len(parts) - 4} layers more" if len(parts) > 4 else ""
        return (
            f"{total} Dead and saturated neurons were looked for in a sample (seed {self.seed}) of {len(parts)} of "
            f"{len(self.layers)} layers: {named}{more}. All other figures are over all elements."
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON data; layers whose neurons were all read are left out of "sampled"."""
        return {
            "limit_mib": self.limit_mib,
            "predicted_mib": round(self.predicted_mib, 3),
            "sums_mib": round(self.sums_bytes / MIB, 3),
            "passes_mib": round(self.passes_bytes / MIB, 3),
            "images_a_pass": self.images,
            "passes_at_once": self.at_once,
            "seed": self.seed,
            "sampled": {name: {"read": x.read, "neurons": x.neurons} for name, x in self.sampled.items()},
            "layers": {name: layer.bytes for name, layer in self.layers.items()},
        }
