"""How much memory measure_noise will take, known before it runs, and what it leaves out to stay below a limit.

A measurement holds the running sums of every layer and the values of the passes under way. `planned` predicts both from
the layers' shapes. Where the limit is too small for everything, fewer passes run at once, then each takes fewer images,
and at last only a sample of the largest layers' neurons is looked at one by one; the sums over elements stay whole.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.analysis.noise.moments import BINS, MOST_CHANNELS
from speedysnn.analysis.noise.schema import CHANNELS, COUNTS, HISTOGRAMS, TOTALS
from speedysnn.analysis.noise.sums_reference import user_sums
from speedysnn.errors import InputError
from speedysnn.neurons.layer import IFNeuron

MIB = 2**20
UNIT = 12  # bytes a neuron: images with spikes, with all it can fire (int32), largest source activation (float32)
PLACE = 4  # bytes a sampled neuron's place takes
DEFAULT_MIB = 1024.0  # the default limit, but for large networks
SENSIBLE_IMAGES = 8  # images a pass, by default, however large the network is, where the machine has the memory
SHARE_OF_MACHINE = 0.25  # of the machine's memory: the most that is taken by default
LEAST = 64  # neurons of a layer that a sample must have
UNDER_WAY = 5  # trains of the widest layer that a spiking pass holds: input, output, and what is under way
BY_REFERENCE = 12  # float32 values for each element of the widest layer that a user's sums need beside its trains
_BOUNDLESS_MIB = 2.0**30
_GROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
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
        user_numbers: numbers of the sums that a user declared (`speedysnn.analysis.SUMS`).
    """

    shape: Shape
    channels: int
    read: int
    compared: int
    steps: int
    seed: tuple[int, int]
    user_numbers: int = 0

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
        numbers = len(CHANNELS) * self.channels + single + self.steps + self.user_numbers
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
    """Draw a sample of a layer's neurons without replacement; the same for the same seed.

    Args:
        neurons: of the layer, in one image.
        read: how many to draw.
        seed: the measurement's and the layer's place.

    Returns:
        The neurons' places in rising order, (read,) int32.
    """
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
            by five trains of the widest layer (`UNDER_WAY`), and more where a user declared sums.
        tight: whether the limit cut anything; what is freed is then handed back layer by layer.
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
        """Say what was predicted, and what was sampled.

        Returns:
            One or two sentences.
        """
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
        """Give the prediction as JSON data.

        Returns:
            Sizes in MiB, bytes by layer, and under "sampled" the layers whose neurons are a sample.
        """
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


def planned(
    shapes: Mapping[str, Shape],
    neurons: Mapping[str, IFNeuron],
    *,
    full: bool,
    limit_mib: float | None,
    seed: int,
    images: int,
    at_once: int,
    width: int,
    item: int = 4,
) -> Memory:
    """Plan passes and samples that stay below the limit; which neurons are sampled depends on no number of threads.

    Where not everything fits, first fewer passes run at once and with fewer images, then neurons are sampled: as many
    in every layer that has more, so that all but the largest layers are read whole.

    Args:
        shapes: of every layer for one image.
        neurons: the layers.
        full: whether channels are compared.
        limit_mib: the limit; None for DEFAULT_MIB, or what passes of SENSIBLE_IMAGES take where that is more, up to a
            share of the machine's memory. What happens to be free does not matter, so that the same call gives the
            same bits.
        seed: of the samples.
        images: that a pass takes where memory allows.
        at_once: passes beside one another where memory allows.
        width: values of the widest layer or input, for one picture.
        item: bytes of a value.

    Returns:
        The plan; the sums that a user declared are in it.

    Raises:
        InputError: the limit is too small for one image and LEAST neurons a layer, with the least that would do.
    """
    if limit_mib is None:
        by_default = partial(planned, shapes, neurons, full=full, seed=seed, at_once=at_once, width=width, item=item)
        return _planned_by_default(by_default, images)
    image_bytes = _image_bytes(shapes, neurons, width, item)
    asked = _Asked(shapes, neurons, full, limit_mib, seed, images, max(1, at_once), image_bytes)
    return asked.all_neurons() or asked.a_sample()


def _image_bytes(shapes: Mapping[str, Shape], neurons: Mapping[str, IFNeuron], width: int, item: int) -> int:
    """Bytes that one image of a pass takes."""
    steps = next(iter(neurons.values())).timesteps
    trains = UNDER_WAY * steps + (steps + BY_REFERENCE) * bool(user_sums())
    return item * (2 * sum(math.prod(shape) for shape in shapes.values()) + trains * width)


@dataclass(frozen=True)
class _Asked:
    """What a measurement would hold if memory allowed, and the plans that fit its limit; see `planned`."""

    shapes: Mapping[str, Shape]
    neurons: Mapping[str, IFNeuron]
    full: bool
    limit_mib: float
    seed: int
    images: int
    at_once: int
    image_bytes: int

    @property
    def limit(self) -> int:
        """Bytes."""
        return int(self.limit_mib * MIB)

    @property
    def steps(self) -> int:
        """T."""
        return next(iter(self.neurons.values())).timesteps

    @property
    def whole(self) -> dict[str, int]:
        """All neurons of every layer."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    def plan(self, read: Mapping[str, int], compared: int, images: int, at_once: int) -> Memory:
        """The plan that looks at `read` neurons a layer and compares at most `compared` channels."""
        own = [row.kind == "channel" for row in user_sums().values()]
        unrolled = not all(neuron.synchronous for neuron in self.neurons.values())
        layers = {
            name: LayerMemory(
                shape, channels := _channels(shape, self.neurons[name]), read[name],
                min(channels, compared) if self.full else 0, self.steps * unrolled, (self.seed, place),
                sum(channels if by_channel else 1 for by_channel in own),
            )
            for place, (name, shape) in enumerate(self.shapes.items())
        }  # fmt: skip
        tight = images < self.images or at_once < self.at_once or any(layer.sampled for layer in layers.values())
        return Memory(self.limit_mib, self.seed, layers, images, at_once, self.image_bytes, tight)

    def all_neurons(self) -> Memory | None:
        """The plan that looks at every neuron, with as many passes at once as fit; None where not one image does."""
        for at_once in range(self.at_once, 0, -1):
            room = self.limit - self.plan(self.whole, MOST_CHANNELS, 0, at_once).sums_bytes
            fit = min(self.images, room // (at_once * self.image_bytes))
            if fit >= 1:
                return self.plan(self.whole, MOST_CHANNELS, fit, at_once)
        return None

    def a_sample(self) -> Memory:
        """The plan of one image at a time that looks at a sample of the largest layers' neurons."""
        least, compared = {name: min(count, LEAST) for name, count in self.whole.items()}, MOST_CHANNELS
        while self._short_of_room(least, compared):
            compared //= 2
        smallest = self.plan(least, compared, 1, 1)
        if smallest.predicted_mib > self.limit_mib:
            raise InputError(
                f"memory_mib: expected at least {math.ceil(smallest.predicted_mib)} MiB for one image of this network "
                f"at T = {self.steps} ({smallest.passes_bytes / MIB:.1f} MiB) and its sums with {LEAST} neurons a "
                f"layer ({smallest.sums_bytes / MIB:.1f} MiB), got {self.limit_mib:g}; give more, fewer steps or "
                "smaller images"
            )
        none = self.plan(dict.fromkeys(self.whole, 0), compared, 1, 1)
        return self.plan(_levelled(self.whole, self.limit - none.passes_bytes - none.sums_bytes), compared, 1, 1)

    def _short_of_room(self, least: Mapping[str, int], compared: int) -> bool:
        """Whether fewer channels are to be compared, so that a third of what sums may take is left to neurons."""
        room = 2 * (self.limit - self.image_bytes)
        return self.full and compared > 2 and room < 3 * self.plan(least, compared, 0, 1).sums_bytes


def _planned_by_default(plan: Callable[..., Memory], images: int) -> Memory:
    """The plan within DEFAULT_MIB, or within more where that would make small passes."""
    wanted = min(images, SENSIBLE_IMAGES)
    limit = default_limit(plan(limit_mib=_BOUNDLESS_MIB, images=wanted).predicted_mib)
    return plan(limit_mib=limit, images=images if limit == DEFAULT_MIB else wanted)


def default_limit(needed_mib: float) -> float:
    """Choose the limit where the user gave none.

    Args:
        needed_mib: what passes of SENSIBLE_IMAGES need, MiB.

    Returns:
        DEFAULT_MIB, or what is needed where that is more, up to SHARE_OF_MACHINE of the machine's memory, MiB.
    """
    most = max(DEFAULT_MIB, SHARE_OF_MACHINE * machine_bytes() / MIB)
    return DEFAULT_MIB if needed_mib <= DEFAULT_MIB else min(needed_mib, most)


def machine_bytes() -> int:
    """Find the memory that this process may use at most.

    Returns:
        Bytes of the machine or of this process's control group, the smaller; the same on every call.
    """
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    for file in _GROUP_LIMITS:
        text = file.read_text(encoding="ascii").strip() if file.is_file() else ""
        sizes += [int(text)] if text.isdecimal() else []
    return min(sizes, default=0)


def _levelled(whole: Mapping[str, int], room: int) -> dict[str, int]:
    """Neurons a layer for `room` bytes of two sets of sums: all, or as many as every other layer with too many."""

    def read(share: int) -> dict[str, int]:
        return {name: n if 2 * UNIT * n <= share else share // (2 * UNIT + PLACE) for name, n in whole.items()}

    def used(counts: Mapping[str, int]) -> int:
        return sum(2 * UNIT * n + PLACE * n * (n < whole[name]) for name, n in counts.items())

    low, high = 0, room + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if used(read(middle)) <= room else (low, middle)
    return read(low)


def _channels(shape: Shape, neuron: IFNeuron) -> int:
    """With sums of their own; one where the layer has none."""
    return (1, *shape)[neuron.channel_dim] if shape else 1


def check(memory_mib: float | None, seed: int) -> None:
    """Refuse what is no limit or no seed.

    Args:
        memory_mib: the limit in MiB; None for the default.
        seed: of the samples.

    Raises:
        InputError: one of them is not.
    """
    number = isinstance(memory_mib, int | float) and not isinstance(memory_mib, bool)
    if memory_mib is not None and not (number and 0 < memory_mib < math.inf):
        raise InputError(
            f"memory_mib: expected a number of MiB above 0, got {memory_mib!r}; leave it out for "
            f"{DEFAULT_MIB:g}, or more for a large network"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: expected a whole number of at least 0, got {seed!r}")
