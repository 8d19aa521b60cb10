"""Codes: a static image as T steps of input events whose mean over T is the image, or stands for it.

Every encoder maps x (B, ...) to events e (T, B, ...) in x's unit, which `snn(e)` takes as they are. One amplitude A an
image, its largest magnitude unless given, makes each image's events independent of the batch it comes in.

| encoder | e[t], t = 1..T | mean over T | variance of that mean |
|---|---|---|---|
| constant | x | x | 0 |
| poisson | sign(x) A b[t], b[t] ~ Bernoulli(abs(x) / A), independent | x in expectation | abs(x) (A - abs(x)) / T |
| latency | sign(x) A n at t = T + 1 - n, else 0; n = floor(T abs(x) / A + 1/2) | sign(x) A n / T | 0, error <= A / 2T |
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from speedysnn.errors import InputError


class Encoder(Protocol):
    """(x (B, ...), T, generator or None) -> events (T, B, ...)."""

    def __call__(self, x: Tensor, timesteps: int, generator: torch.Generator | None, /) -> Tensor:
        """The events of a batch of images."""


def constant(x: Tensor, timesteps: int, generator: torch.Generator | None = None, /) -> Tensor:
    """The image as a current in every step, e[t] = x: what `snn(x)` does with a static input.

    Shapes: x (B, ...), result (T, B, ...), a view without memory of its own; in x's unit.
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
