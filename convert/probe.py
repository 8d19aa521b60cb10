"""The proof that a module is a clip or a staircase: what it makes of a ramp of values."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MOST_LEVELS = 1024
_SHAPES = ((2, 64, 16, 8), (128, 128))  # of the probe, images first, then rows
_TOLERANCE, _TIE = 1e-5, 1e-2  # of the clip; of a step


@dataclass(frozen=True)
class Clip:
    """A clipped activation of the source network.

    Attributes:
        value: the clip, QCFS's lambda, PACT's alpha, LSQ's s Qp; the full scale N theta of the neurons.
        levels: L, steps of the staircase from 0 to the clip; None for a plain clip.
        shift: phi, 1/2 for a quantizer that rounds, 0 for one that floors.
    """

    value: float
    levels: int | None = None
    shift: float = 0.5

    def __call__(self, z: Tensor) -> Tensor:
        """value/L clip(floor(L z/value + shift), 0, L), or z cut to 0..value; any shape, in the input's unit."""
        if self.levels is None:
            return z.clamp(0, self.value)
        level = torch.floor(z * (self.levels / self.value) + self.shift).clamp(0, self.levels)
        return level * (self.value / self.levels)


def fit(module: nn.Module, value: float, levels: int | None = None) -> Clip | None:
    """The clip that a module equals on a probe from -clip/2 to 7/4 clip, None if it is none.

    A copy is probed in evaluation mode, in two orders, so that a module which looks across its input is refused; within
    a hundredth of a step of a tie nothing is compared.
    """
    ramp = torch.linspace(-0.5, 1.75, math.prod(_SHAPES[0]), dtype=torch.float64) * value
    forward, backward = _probe(module, ramp), _probe(module, ramp.flip(0))
    if forward is None or backward is None or not bool(forward.isfinite().all()):
        return None
    if not _close(forward, backward.flip(0), value):
        return None
    distinct = int(torch.unique(torch.round(forward / value * 2**16)).numel()) - 1
    steps = levels or (distinct if 1 <= distinct <= MOST_LEVELS else None)
    for clip in (Clip(value, steps), Clip(value, steps, 0.0)):
        compared = torch.ones_like(ramp, dtype=torch.bool)
        if steps is not None:
            position = ramp * (steps / value) + clip.shift
            compared = (position - position.round()).abs() > _TIE
        if _close(forward[compared], clip(ramp)[compared], value):
            return clip
    return None


def _close(a: Tensor, b: Tensor, value: float) -> bool:
    return bool(((a - b).abs() <= _TOLERANCE * value).all())


def _probe(module: nn.Module, ramp: Tensor) -> Tensor | None:
    """What a copy of the module makes of the values, None where it fails or changes their number."""
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    for shape in _SHAPES:
        try:
            with torch.no_grad():
                out = copy.deepcopy(module).eval()(ramp.view(shape).to(device, torch.float32))
        except Exception:  # the user's code on values it was not made for: whatever it raises, it is no proven clip
            continue
        if isinstance(out, Tensor) and out.shape == shape:
            return out.detach().to("cpu", torch.float64).reshape(-1)
    return None
