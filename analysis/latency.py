"""When spikes come: the first one of every neuron and of every image, how late the trains lie, how steps hang together.

The definitions in plain torch; `speedysnn.analysis.sums` has the same compiled.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from speedysnn.neurons import IFNeuron


def first_steps(outs: Sequence[Tensor]) -> Tensor:
    """The first step with a spike, 1..T, and 0 where none came; int64, shape of one step."""
    when = torch.zeros_like(outs[0], dtype=torch.int64)
    for t, out in enumerate(outs, 1):
        when = torch.where((when == 0) & (out != 0), t, when)
    return when


def starts(when: Tensor) -> Tensor:
    """Images with a spike in the layer, and the sum of their first steps, (2,); `when` (B, ...) as of `first_steps`."""
    never = torch.iinfo(when.dtype).max
    rows = torch.where(when == 0, never, when).reshape(len(when), -1)
    begun = rows.min(1).values if rows.shape[1] else rows.new_full((len(rows),), never)
    return torch.stack([(begun != never).sum(), torch.where(begun == never, 0, begun).sum()])


def lag_sums(
    drive: Tensor, covered: int, outs: Sequence[Tensor], theta: Tensor, neuron: IFNeuron
) -> tuple[int, Tensor]:
    """Elements whose mean drive is in range, and (sum d[t]^2, sum d[t] d[t+1]) of d[t] = s[t] - mean drive / theta.

    Shapes: drive, the sum over `covered` steps, and outs (M, C) each, theta () or (C,). float64.
    """
    mean = drive.to(torch.float64) / theta.to(torch.float64) / covered
    low = -float(neuron.levels_per_step) if neuron.signed else 0.0
    inside = (mean > low) & (mean < neuron.levels_per_step) & (mean != 0)
    trains = torch.stack([out.to(torch.float64) / theta.to(torch.float64) for out in outs])
    error = torch.where(inside, trains - mean, 0)
    return int(inside.sum()), torch.stack([(error * error).sum(), (error[1:] * error[:-1]).sum()])


def lag_one(square: float, next_to: float, steps: int) -> float | None:
    """Autocorrelation of the train's error one step apart, in -1..1 about; None for a single step.

    [sum d[t] d[t+1] / (T - 1)] / [sum d[t]^2 / T]; NaN where no train has an error.
    """
    if steps < 2:
        return None
    return next_to / square * steps / (steps - 1) if square > 0 else math.nan


def lateness(pulses: Sequence[int]) -> float | None:
    """Mean step of all spikes minus (T + 1)/2, where evenly spread ones lie; None for one step, NaN without spikes."""
    if len(pulses) < 2:
        return None
    total = sum(pulses)
    mean = sum(t * count for t, count in enumerate(pulses, 1)) / total if total else math.nan
    return mean - (len(pulses) + 1) / 2
