"""What measure_sensitivity holds in memory, known before the run, and the images that it therefore keeps.

`planned_sensitivity` gives passes their memory first, then as many images as fit, for they are read several times.
`kept_images` keeps all of them, or as large a random sample as fits.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from speedysnn.analysis.memory import DEFAULT_MIB, MIB, SENSIBLE_IMAGES, UNDER_WAY, default_limit
from speedysnn.analysis.reference import batch_dims, device_of, passes
from speedysnn.analysis.sensitivity import Fork, MixedRun, checked, piece_size
from speedysnn.analysis.sensitivity.changes import fitting
from speedysnn.calibration.histogram import BINS
from speedysnn.data.batches import Batch
from speedysnn.errors import DataError, InputError
from speedysnn.network import SpikingNetwork

MIN_IMAGES = 8  # that a sample must have
NOISE_BYTES = 40  # of one image's noise in one score: a Python float and two places that name it


@dataclass(frozen=True)
class SensitivityMemory:
    """What a sensitivity measurement holds beside the weights.

    Attributes:
        limit_mib: what it was given.
        seed: of the samples.
        pass_images: images that one pass takes.
        at_once: passes beside one another.
        fixed_bytes: histograms of the layers' activations, where the calibration's do not serve.
        pass_bytes: that one image of a pass takes: the values that a pass and the branch that leaves it keep, estimated
            by the live values of the analog reading times T and by five trains of the widest layer.
        image_bytes: that one kept image takes.
        score_bytes: that the scores of one image take.
        kept: images that were measured.
        there: images that there were.
        short: whether passes take fewer images, or fewer run at once, than where memory allows.
        again: images of `confirm` that were kept, and how many there were; None without.
    """

    limit_mib: float
    seed: int
    pass_images: int
    at_once: int
    fixed_bytes: int
    pass_bytes: int
    image_bytes: int
    score_bytes: int
    kept: int = 0
    there: int = 0
    short: bool = False
    again: tuple[int, int] | None = None

    @property
    def passes_bytes(self) -> int:
        """Bytes that the passes under way take."""
        return self.at_once * self.pass_images * self.pass_bytes

    @property
    def room(self) -> int:
        """Number of images that fit beside the passes."""
        left = int(self.limit_mib * MIB) - self.fixed_bytes - self.passes_bytes
        return max(0, left // (self.image_bytes + self.score_bytes))

    @property
    def predicted_mib(self) -> float:
        """MiB of images, scores, histograms and passes together; never above the limit."""
        held = max(self.kept, 0 if self.again is None else self.again[0])
        kept = held * self.image_bytes + self.kept * self.score_bytes
        return (self.fixed_bytes + self.passes_bytes + kept) / MIB

    @property
    def sampled(self) -> bool:
        """Whether images were left out."""
        return self.kept < self.there or (self.again is not None and self.again[0] < self.again[1])

    @property
    def tight(self) -> bool:
        """Whether the limit cut anything; what is freed is then handed back layer by layer (`handing_back`)."""
        return self.short or self.sampled

    def sentence(self) -> str:
        """Say in whole sentences what was held, and whether images were left out.

        Returns:
            One or two sentences.
        """
        total = (
            f"Memory of the sensitivity: {self.predicted_mib:,.1f} of {self.limit_mib:,.6g} MiB predicted, of which "
            f"passes of {self.pass_images} images {self.passes_bytes / MIB:,.1f} MiB."
        )
        if not self.sampled:
            return f"{total} All images were measured."
        again = "" if self.again is None else f", then {self.again[0]:,} of {self.again[1]:,} others"
        return f"{total} The images are a sample (seed {self.seed}): {self.kept:,} of {self.there:,}{again}."

    def to_json(self) -> dict[str, Any]:
        """Give the figures as JSON data.

        Returns:
            Data by name, MiB and numbers of images.
        """
        return {
            "limit_mib": self.limit_mib,
            "predicted_mib": round(self.predicted_mib, 3),
            "passes_mib": round(self.passes_bytes / MIB, 3),
            "images_a_pass": self.pass_images,
            "passes_at_once": self.at_once,
            "seed": self.seed,
            "images": {"measured": self.kept, "there": self.there},
            "confirm": None if self.again is None else {"measured": self.again[0], "there": self.again[1]},
        }


def planned_sensitivity(
    snn: SpikingNetwork, one: Batch, modes: Sequence[str], kinds: Sequence[str], limit_mib: float | None,
    seed: int,
) -> SensitivityMemory:
    """Plan passes as large as usual, or so small that half of the limit is left to images and scores.

    Raises:
        InputError: it does not hold MIN_IMAGES images, with the least that would do.
    """
    item = max((p.element_size() for p in snn.parameters()), default=4)
    live, all_layers = _live(snn, one)
    values = snn.timesteps * (2 * live + UNDER_WAY * snn.width) + all_layers * ("cumulative" in modes)
    scores = 3 + len(snn.neurons) * (len(modes) + 2 * len(kinds))
    at_once = usual = torch.get_num_threads() if device_of(snn).type == "cpu" else 1
    histograms = 8 * BINS * _rows(snn) * bool({"threshold", "bit+threshold"} & set(kinds))
    memory = SensitivityMemory(
        limit_mib or DEFAULT_MIB, seed, piece_size(snn), at_once, histograms * (1 + at_once), item * values,
        sum(x.nbytes for x in one.inputs) + 8 * (one.labels is not None), NOISE_BYTES * scores,
    )  # fmt: skip
    if limit_mib is None:
        memory = _by_default(memory)
    limit_mib = memory.limit_mib
    half = int(limit_mib * MIB - memory.fixed_bytes) // 2
    while memory.passes_bytes > half and memory.at_once > 1:
        memory = replace(memory, at_once=memory.at_once - 1, fixed_bytes=histograms * memory.at_once)
    fit = max(1, min(memory.pass_images, half // (memory.at_once * memory.pass_bytes)))
    short = fit < memory.pass_images or memory.at_once < usual
    memory = replace(memory, pass_images=fit, short=short)
    if memory.room < MIN_IMAGES:
        least = memory.fixed_bytes + memory.passes_bytes + MIN_IMAGES * (memory.image_bytes + memory.score_bytes)
        raise InputError(
            f"memory_mib: expected at least {math.ceil(least / MIB)} MiB for passes of one image of this network at "
            f"T = {snn.timesteps} ({memory.passes_bytes / MIB:.1f} MiB), histograms of its layers "
            f"({memory.fixed_bytes / MIB:.1f} MiB) and {MIN_IMAGES} images, got {limit_mib:g}; give more, fewer "
            "steps or smaller images"
        )
    return memory


def _by_default(memory: SensitivityMemory) -> SensitivityMemory:
    """The same within more than DEFAULT_MIB where passes of SENSIBLE_IMAGES need more; half of it is for passes."""
    wanted = min(memory.pass_images, SENSIBLE_IMAGES)
    needed = math.ceil(memory.fixed_bytes + 2 * memory.at_once * wanted * memory.pass_bytes) / MIB
    limit = default_limit(needed)
    return memory if limit == DEFAULT_MIB else replace(memory, limit_mib=limit, pass_images=wanted)


def _rows(snn: SpikingNetwork) -> int:
    """Count the rows of the histograms that have to be made."""
    rows = {name: neuron.log_threshold.numel() * (2 if neuron.signed else 1) for name, neuron in snn.neurons.items()}
    return sum(count for name, count in rows.items() if fitting(snn, name, count) is None)


def _live(snn: SpikingNetwork, one: Batch) -> tuple[int, int]:
    """Count the values of one image and step that a pass holds at most after a layer, and those of all layers."""

    def count() -> tuple[int, int]:
        most = total = 0
        run = MixedRun(snn)
        for fork in run.forks(one.inputs, "analog"):
            most, total = max(most, _held(fork)), total + fork.emitted.tensor.numel()
        return most, total

    return checked(count, one.inputs)


def _held(fork: Fork) -> int:
    """Count the values of a fork, each tensor once."""
    tensors = [fork.drive.tensor, fork.emitted.tensor, *(value.tensor for value in fork.values.values())]
    return sum({x.data_ptr(): x.numel() for x in tensors}.values())


def kept_images(
    snn: SpikingNetwork, data: Any, modes: Sequence[str], kinds: Sequence[str], limit_mib: float | None, seed: int,
    limit: int | None,
) -> tuple[SensitivityMemory, list[Batch]]:  # fmt: skip
    """Keep the images in passes; the sample of the same images is the same however they are batched.

    Raises:
        InputError: the limit is too small for MIN_IMAGES images.
        DataError: as of `passes`.
    """
    images = iter(passes(snn, data, 1, limit=limit))
    first = next(images)
    memory = planned_sensitivity(snn, first, modes, kinds, limit_mib, seed)
    pieces, there = _sample(snn, chain((first,), images), memory)
    return replace(memory, kept=min(there, memory.room), there=there), pieces


def images_again(snn: SpikingNetwork, data: Any, memory: SensitivityMemory) -> tuple[SensitivityMemory, list[Batch]]:
    """Keep other images in the place of the first ones."""
    pieces, there = _sample(snn, iter(passes(snn, data, 1)), memory)
    return replace(memory, again=(min(there, memory.room), there)), pieces


def _sample(snn: SpikingNetwork, images: Iterator[Batch], memory: SensitivityMemory) -> tuple[list[Batch], int]:
    """Keep the first images until the room is full, then put some further ones in the place of images drawn at random.

    Image i (from 0) of n is kept with probability room / n, whatever n is (Vitter's algorithm R).
    """
    drawn = np.random.default_rng(memory.seed)
    pieces: list[Batch] = []
    waiting: list[Batch] = []
    there, room, size = 0, memory.room, memory.pass_images
    for there, image in enumerate(images, 1):
        if there <= room:
            waiting.append(image)
        if waiting and (len(waiting) == size or there == room):
            pieces.append(_joined(snn, waiting))
            waiting = []
        if there > room and (place := int(drawn.integers(there))) < room:
            _put(snn, pieces[place // size], place % size, image)
    if waiting:
        pieces.append(_joined(snn, waiting))
    return pieces, there


def _joined(snn: SpikingNetwork, images: Sequence[Batch]) -> Batch:
    """Join single images into a pass that owns its memory."""
    dims = enumerate(batch_dims(snn, images[0].inputs))
    try:
        inputs = tuple(torch.cat([image.inputs[place] for image in images], dim) for place, dim in dims)
    except RuntimeError as err:
        raise DataError(f"data: batches hold images of different shapes ({err})") from None
    labels = [image.labels for image in images if image.labels is not None]
    return Batch(inputs, torch.cat(labels) if labels else None)


def _put(snn: SpikingNetwork, piece: Batch, row: int, image: Batch) -> None:
    """Write an image over another one of a pass."""
    for held, x, dim in zip(piece.inputs, image.inputs, batch_dims(snn, image.inputs), strict=True):
        held.narrow(dim, row, 1).copy_(x)
    if piece.labels is not None and image.labels is not None:
        piece.labels[row] = image.labels[0]
