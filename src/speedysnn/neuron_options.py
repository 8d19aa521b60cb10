"""What a neuron can be told, and what it refuses: theta, its clip, T and the look-ahead."""

from typing import Literal, get_args

import torch
from torch import Tensor

from speedysnn.errors import InputError

Reading = Literal["analog", "quantized", "spiking"]
READINGS: tuple[Reading, ...] = get_args(Reading)
Delay = int | Literal["full"]
THRESHOLD_GRADIENTS = ("surrogate", "step", "mixed")


def log_threshold(threshold: float | Tensor) -> Tensor:
    """Ln theta, which makes theta positive by construction; shape () for a layer or (C,) for channels."""
    value = torch.as_tensor(threshold, dtype=torch.float32).detach().clone()
    if value.ndim > 1:
        raise InputError(f"threshold: expected a number or one value a channel, got shape {tuple(value.shape)}")
    if not bool((value.isfinite() & (value > 0)).all()):
        raise InputError(f"threshold: expected positive finite values, got a minimum of {value.min().item():g}")
    return value.log()


def check_range(floor: float | None, ceiling: float | None, steps: int | None) -> None:
    """The clip of the source activation, and the number of its steps."""
    if floor is not None and floor > 0:
        raise InputError(f"floor: expected 0 or below, or None, got {floor!r}")
    if ceiling is not None and ceiling <= (floor or 0):
        raise InputError(f"ceiling: expected a value above the floor and above 0, got {ceiling!r}")
    if steps is not None and (steps < 1 or ceiling is None or floor != 0):
        raise InputError(
            f"steps: expected None, or at least 1 with floor 0 and a ceiling, got {steps!r}, {floor!r}, {ceiling!r}"
        )


def check_steps(timesteps: int, delay: Delay) -> None:
    """T and the look-ahead."""
    if timesteps < 1:
        raise InputError(f"timesteps: expected at least 1, got {timesteps}")
    if delay != "full" and (not isinstance(delay, int) or isinstance(delay, bool) or delay < 0):
        raise InputError(f'delay: expected a whole number of steps of at least 0, or "full", got {delay!r}')
