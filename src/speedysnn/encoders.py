"""Static images as T steps of input events: encoders by name, one batch at a time or a whole dataset.

The codes themselves, and what the mean of each over T is, are in `speedysnn.spike_codes`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from speedysnn._batches import steps_of
from speedysnn.errors import DataError, InputError
from speedysnn.spike_codes import Encoder as Encoder
from speedysnn.spike_codes import constant as constant
from speedysnn.spike_codes import latency as latency
from speedysnn.spike_codes import poisson as poisson

__all__ = ["ENCODERS", "EncodedImages", "Encoder", "constant", "encode", "encoder_of", "latency", "poisson"]

_WORD, _LOW = 2**64 - 1, 2**32 - 1


# Name -> encoder; add one, or replace one, by an entry of your own.
ENCODERS: dict[str, Encoder] = {"constant": constant, "poisson": poisson, "latency": latency}


def encoder_of(encoder: str | Encoder) -> Encoder:
    """The encoder of a name in `ENCODERS`; a function is one already.

    Raises:
        InputError: an unknown name.
    """
    if not isinstance(encoder, str):
        return encoder
    if encoder not in ENCODERS:
        raise InputError(f"unknown encoder {encoder!r}: expected one of {', '.join(sorted(ENCODERS))}")
    return ENCODERS[encoder]


def encode(
    x: Tensor, timesteps: int, encoder: str | Encoder = "constant", *, seed: int | torch.Generator | None = None
) -> Tensor:
    """Events for `snn(events)` out of static images.

    Shapes: x (B, ...) of floats, result (T, B, ...) in x's unit.

    Args:
        x: images, normalised as the network expects them.
        timesteps: T.
        encoder: a name in `ENCODERS`, or a function like those there.
        seed: a number or a generator, for encoders that draw random numbers; None for torch's global generator.

    Raises:
        InputError: an unknown encoder, x without a batch or of whole numbers, T below 1, or events of another shape.
        DataError: NaN or infinity in x.

    Example:
        >>> encode(torch.tensor([[1.0, 0.5, 0.0]]), 2, "latency")[:, 0].tolist()
        [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or not x.is_floating_point():
        came = f"{x.dtype}, {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"encode: expected images (B, ...) of floats, got {came}")
    if not bool(x.isfinite().all()):
        raise DataError(
            f"encode: {int((~x.isfinite()).sum())} of {x.numel()} values are NaN or infinity; repair the images"
        )
    _check_steps(timesteps)
    generator = seed if isinstance(seed, torch.Generator) or seed is None else torch.Generator().manual_seed(seed)
    events = encoder_of(encoder)(x, timesteps, generator)
    if events.shape != (timesteps, *x.shape):
        raise InputError(
            f"encode: expected events of shape {(timesteps, *x.shape)} from {_name(encoder)}, got {tuple(events.shape)}"
        )
    return events


class EncodedImages(Dataset[Any]):
    """A dataset's images as events (T, ...), each encoded with random numbers of its own.

    The events of image i depend on (seed, i) alone, hence on no batch size, order of reading or number of workers.
    `iter_batches` and everything built on it knows by `timesteps` that the samples have a time axis.

    Args:
        images: a map-style dataset of images or (image, label) pairs, the images of floats.
        timesteps: T.
        encoder: a name in `ENCODERS`, or a function like those there.
        seed: of all random numbers.

    Raises:
        InputError: an unknown encoder, a T below 1, no length, or samples that have a time axis already.
    """

    def __init__(self, images: Dataset[Any], timesteps: int, encoder: str | Encoder, seed: int = 0) -> None:
        if not hasattr(images, "__len__"):
            raise InputError(f"encode: expected a dataset with a length, got a {type(images).__name__}")
        if steps_of(images):
            raise InputError("encode: the data are events already; use them as they are")
        _check_steps(timesteps)
        self.images, self.timesteps, self.encoder, self.seed = images, timesteps, encoder_of(encoder), seed
        self.name, self.classes = getattr(images, "name", "images"), getattr(images, "classes", 0)
        self.labelled = getattr(images, "labelled", None)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        """One sample, its image as events (T, ...)."""
        sample = self.images[index]
        image, *rest = sample if isinstance(sample, (tuple, list)) else (sample,)
        if not isinstance(image, Tensor):
            raise DataError(f"encode: expected tensors as images, got a {type(image).__name__}")
        generator = torch.Generator().manual_seed(_mixed(self.seed, index % len(self)))
        events = encode(image[None], self.timesteps, self.encoder, seed=generator)[:, 0]
        return (events, *rest) if isinstance(sample, (tuple, list)) else events


def _check_steps(timesteps: int) -> None:
    if not isinstance(timesteps, int) or isinstance(timesteps, bool) or timesteps < 1:
        raise InputError(f"encode: expected a whole number of steps of at least 1, got {timesteps!r}")


def _mixed(seed: int, index: int) -> int:
    """A generator's seed of 32 bits, all that torch's CPU generator uses, out of two numbers (splitmix64's mixer)."""
    word = (seed * 0x9E3779B97F4A7C15 + index + 1) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ word >> 29) * 0x94D049BB133111EB & _WORD
    return (word ^ word >> 31) >> 16 & _LOW


def _name(encoder: str | Encoder) -> str:
    return repr(encoder) if isinstance(encoder, str) else getattr(encoder, "__name__", type(encoder).__name__)
