"""Static images as T steps of input events: encoders by name, one batch at a time or a whole dataset.

The codes themselves, and what the mean of each over T is, are in `speedysnn.encoders`.

Codes: a static image as T steps of input events whose mean over T is the image, or stands for it.

Every encoder maps x (B, ...) to events e (T, B, ...) in x's unit, which `snn(e)` takes as they are. One amplitude A an
image, its largest magnitude unless given, makes each image's events independent of the batch it comes in.

| encoder | e[t], t = 1..T | mean over T | variance of that mean |
|---|---|---|---|
| constant | x | x | 0 |
| poisson | sign(x) A b[t], b[t] ~ Bernoulli(abs(x) / A), independent | x in expectation | abs(x) (A - abs(x)) / T |
| latency | sign(x) A n at t = T + 1 - n, else 0; n = floor(T abs(x) / A + 1/2) | sign(x) A n / T | 0, error <= A / 2T |
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from speedysnn.data.batches import steps_of
from speedysnn.errors import DataError, InputError


class Encoder(Protocol):
    """(x (B, ...), T, generator or None) -> events (T, B, ...)."""

    def __call__(self, x: Tensor, timesteps: int, generator: torch.Generator | None, /) -> Tensor:
        """The events of a batch of images."""


def constant(x: Tensor, timesteps: int, generator: torch.Generator | None = None, /) -> Tensor:
    """The image as a current in every step, e[t] = x: what `snn(x)` does with a static input.

    Args:
        x: images (B, ...).
        timesteps: T.
        generator: not used, nothing is random.

    Returns:
        (T, B, ...), a view without memory of its own, in x's unit.

    Example:
        >>> import torch
        >>> constant(torch.tensor([[0.5, 1.0]]), 3).shape
        torch.Size([3, 1, 2])
    """
    return x.expand(timesteps, *x.shape)


def poisson(
    x: Tensor, timesteps: int, generator: torch.Generator | None = None, /, *, scale: float | None = None
) -> Tensor:
    """Independent signed spikes, e[t] = sign(x) A b[t] with b[t] ~ Bernoulli(abs(x) / A): unbiased for x of any sign.

    The mean over T has expectation x and variance abs(x) (A - abs(x)) / T, so it converges as 1/sqrt(T); this is the
    discrete-time form of a Poisson train, at most one spike a step. Normalised images have pixels below zero, which
    send spikes of amplitude -A.

    Args:
        x: images (B, ...).
        timesteps: T.
        generator: of the random numbers; None for torch's global one.
        scale: A in x's unit, at least max abs(x); None for each image's own largest magnitude.

    Returns:
        (T, B, ...), each value -A, 0 or A, in x's unit.

    Raises:
        InputError: a scale that is not positive, or below a pixel's magnitude.

    Example:
        >>> import torch
        >>> events = poisson(torch.tensor([[0.0, 1.0]]), 4, torch.Generator().manual_seed(0))
        >>> events[:, 0].tolist()
        [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    """
    amplitude = _amplitude(x, scale)
    device = x.device if generator is None else generator.device
    draws = torch.rand((timesteps, *x.shape), generator=generator, device=device, dtype=torch.float32).to(x.device)
    fired = draws < (x.abs() / amplitude).to(torch.float32)
    return torch.where(fired, x.sign() * amplitude, torch.zeros_like(x))


def latency(
    x: Tensor, timesteps: int, generator: torch.Generator | None = None, /, *, scale: float | None = None
) -> Tensor:
    """At most one spike a pixel, the earlier the brighter: n = floor(T abs(x)/A + 1/2), at step t = T + 1 - n.

    A spike at step t weighs A (T + 1 - t), a gain that the step alone decides, so that the wire carries bare spikes.
    The network's mean input is sign(x) A n / T: the image rounded to T levels a sign, off by at most A / (2 T). A
    pixel with abs(x) < A / (2 T) sends nothing.

    Args:
        x: images (B, ...).
        timesteps: T.
        generator: not used, nothing is random.
        scale: A in x's unit, at least max abs(x); None for each image's own largest magnitude.

    Returns:
        (T, B, ...), in x's unit.

    Raises:
        InputError: a scale that is not positive, or below a pixel's magnitude.

    Example:
        >>> import torch
        >>> latency(torch.tensor([[0.25, 1.0]]), 4)[:, 0].tolist()
        [[0.0, 4.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    """
    amplitude = _amplitude(x, scale)
    level = torch.floor(timesteps * x.abs() / amplitude + 0.5).clamp_(0, timesteps)
    steps = torch.arange(1, timesteps + 1, device=x.device, dtype=x.dtype).view(-1, *[1] * x.ndim)
    return torch.where(steps == timesteps + 1 - level, x.sign() * amplitude * level, torch.zeros_like(x))


def _amplitude(x: Tensor, scale: float | None) -> Tensor:
    """A, (B, 1, ...); an image of zeros takes 1."""
    largest = x.abs().amax(tuple(range(1, x.ndim)), keepdim=True) if x.ndim > 1 else x.abs()
    if scale is None:
        return torch.where(largest > 0, largest, torch.ones_like(largest))
    if not scale > 0:
        raise InputError(f"scale: expected a positive number, got {scale!r}")
    if x.numel() and float(largest.max()) > scale:
        raise InputError(
            f"scale: expected at least the largest magnitude {float(largest.max()):g} of the images, got {scale!r}; "
            "below it the mean of the events would not be the image"
        )
    return torch.full_like(largest, scale)


__all__ = ["ENCODERS", "EncodedImages", "Encoder", "constant", "encode", "encoder_of", "latency", "poisson"]

_WORD, _LOW = 2**64 - 1, 2**32 - 1


# Name -> encoder; add one, or replace one, by an entry of your own.
ENCODERS: dict[str, Encoder] = {"constant": constant, "poisson": poisson, "latency": latency}


def encoder_of(encoder: str | Encoder) -> Encoder:
    """Look an encoder up by its name in `ENCODERS`; a function is one already.

    Returns:
        The encoder.

    Raises:
        InputError: an unknown name.

    Example:
        >>> encoder_of("latency") is latency
        True
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

    Args:
        x: images (B, ...) of floats, normalised as the network expects them.
        timesteps: T.
        encoder: a name in `ENCODERS`, or a function like those there.
        seed: a number or a generator, for encoders that draw random numbers; None for torch's global generator.

    Returns:
        Events (T, B, ...), in x's unit.

    Raises:
        InputError: an unknown encoder, x without a batch or of whole numbers, T below 1, or events of another shape.
        DataError: NaN or infinity in x.

    Example:
        >>> import torch
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

    Example:
        >>> from speedysnn import data
        >>> events = EncodedImages(data.load("digits", "test", limit=10), timesteps=4, encoder="latency")
        >>> len(events), tuple(events[0][0].shape)
        (10, (4, 1, 8, 8))
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
