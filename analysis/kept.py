"""The images that measure_sensitivity reads several times: all of them, or as large a sample as its memory allows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from speedysnn.analysis.images import batch_dims, passes
from speedysnn.analysis.sensitivity_memory import SensitivityMemory, planned_sensitivity
from speedysnn.data import Batch
from speedysnn.errors import DataError
from speedysnn.network import SpikingNetwork


def kept_images(
    snn: SpikingNetwork, data: Any, modes: Sequence[str], kinds: Sequence[str], limit_mib: float, seed: int,
    limit: int | None,
) -> tuple[SensitivityMemory, list[Batch]]:  # fmt: skip
    """The images in passes, and what is held; a sample that any batching of the same images draws alike.

    Raises:
        InputError: the limit is too small for LEAST images.
        DataError: as of `passes`.
    """
    images = iter(passes(snn, data, 1, limit=limit))
    first = next(images)
    memory = planned_sensitivity(snn, first, modes, kinds, limit_mib, seed)
    pieces, there = _sample(snn, chain((first,), images), memory)
    return replace(memory, kept=min(there, memory.room), there=there), pieces


def images_again(snn: SpikingNetwork, data: Any, memory: SensitivityMemory) -> tuple[SensitivityMemory, list[Batch]]:
    """Other images, in the place of the first ones."""
    pieces, there = _sample(snn, iter(passes(snn, data, 1)), memory)
    return replace(memory, again=(min(there, memory.room), there)), pieces


def _sample(snn: SpikingNetwork, images: Iterator[Batch], memory: SensitivityMemory) -> tuple[list[Batch], int]:
    """Passes of the first images until the room is full, then each further one in the place of one drawn at random.

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
    """Single images as a pass that owns its memory."""
    dims = enumerate(batch_dims(snn, images[0].inputs))
    try:
        inputs = tuple(torch.cat([image.inputs[place] for image in images], dim) for place, dim in dims)
    except RuntimeError as err:
        raise DataError(f"data: batches hold images of different shapes ({err})") from None
    labels = [image.labels for image in images if image.labels is not None]
    return Batch(inputs, torch.cat(labels) if labels else None)


def _put(snn: SpikingNetwork, piece: Batch, row: int, image: Batch) -> None:
    """Write an image over another one."""
    for held, x, dim in zip(piece.inputs, image.inputs, batch_dims(snn, image.inputs), strict=True):
        held.narrow(dim, row, 1).copy_(x)
    if piece.labels is not None and image.labels is not None:
        piece.labels[row] = image.labels[0]
