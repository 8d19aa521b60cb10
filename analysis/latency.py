"""When spikes come: first spikes of neurons and of images, the mean step of all spikes, correlation of adjacent steps.

These are the definitions in plain torch; the kernels compute the same compiled.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from speedysnn.neurons import IFNeuron


def first_steps(outs: Sequence[Tensor]) -> Tensor:
    """Find every element's first spike.

    Returns:
        The first step with a spike, 1 to T, and 0 where none came; int64, shape of one step.
    """
    when = torch.zeros_like(outs[0], dtype=torch.int64)
    for t, out in enumerate(outs, 1):
        when = torch.where((when == 0) & (out != 0), t, when)
    return when


def starts(when: Tensor) -> Tensor:
    """Count the images with a spike in the layer, and add up the steps of their first spikes.

    Args:
        when: first steps, (B, ...), as `first_steps` gives them.

    Returns:
        Both numbers, (2,).
    """
    never = torch.iinfo(when.dtype).max
    rows = torch.where(when == 0, never, when).reshape(len(when), -1)
    begun = rows.min(1).values if rows.shape[1] else rows.new_full((len(rows),), never)
    return torch.stack([(begun != never).sum(), torch.where(begun == never, 0, begun).sum()])


def lag_errors(
    drive: Tensor, covered: int, outs: Sequence[Tensor], theta: Tensor, neuron: IFNeuron
) -> tuple[Tensor, Tensor]:
    """Compare each step's spike with the mean drive: d[t] = s[t] - mean drive / theta.

    Args:
        drive: the sum over `covered` steps, (M, C).
        covered: steps in that sum.
        outs: the neuron's output of every step, (M, C) each.
        theta: () or (C,).
        neuron: the layer.

    Returns:
        Whether the mean drive lies inside the range of a step and is not 0, (M, C) bool; and d where it does, else 0,
        (T, M, C) float64.
    """
    mean = drive.to(torch.float64) / theta.to(torch.float64) / covered
    low = -float(neuron.levels_per_step) if neuron.signed else 0.0
    inside = (mean > low) & (mean < neuron.levels_per_step) & (mean != 0)
    trains = torch.stack([out.to(torch.float64) / theta.to(torch.float64) for out in outs])
    return inside, torch.where(inside, trains - mean, 0)


def lag_one(square: float, next_to: float, steps: int) -> float | None:
    """Autocorrelation of the train's error one step apart: [sum d[t] d[t+1] / (T - 1)] / [sum d[t]^2 / T].

    Returns:
        About -1 to 1; None for a single step, NaN where no train has an error.
    """
    if steps < 2:
        return None
    return next_to / square * steps / (steps - 1) if square > 0 else math.nan


def lateness(pulses: Sequence[int]) -> float | None:
    """Mean step of all spikes minus (T + 1)/2, the mean of evenly spread ones.

    Returns:
        Steps; None for a single step, NaN without spikes.
    """
    if len(pulses) < 2:
        return None
    total = sum(pulses)
    mean = sum(t * count for t, count in enumerate(pulses, 1)) / total if total else math.nan
    return mean - (len(pulses) + 1) / 2
