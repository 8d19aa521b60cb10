"""Learned clips: activations of quantization-trained networks (QCFS, PACT, LSQ), found by layout, proven by probing.

Such modules have no common base and are copied from project to project, so no class is known here. A module is a
candidate when it owns a scalar tensor under one of the usual names; it is taken only if, on a ramp of values that
covers its range, it *is* clip/L floor(L z/clip + phi) cut to 0..clip for some L and phi in {1/2, 0}, or
min(max(z, 0), clip).
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.convert.handler_api import Call, Handler, Key, Ref, Unsupported, neuron_attrs
from speedysnn.errors import InputError

MAX_LEVELS = 1024
_SHAPES = ((2, 64, 16, 8), (128, 128))  # of the probe, images first, then rows
_TOLERANCE, _TIE = 1e-5, 1e-2  # of the clip; of a step

CLIP_NAMES = ("thresh", "threshold", "up", "lam", "lambda_", "lmbda", "alpha", "clip", "clip_val", "clip_value")
STEP_NAMES = ("s", "step", "step_size", "scale", "delta", "alpha")
LEVEL_NAMES = ("Qp", "qp", "q_p", "thd_pos", "qmax", "quant_max", "L", "levels")
BIT_NAMES = ("nbits", "bits", "bit", "n_bits", "num_bits", "bitwidth", "k")
_OWN = 8  # numbers a module may own and still be an activation


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


def as_clip(clip: Callable[[Any], float | Tensor], levels: Callable[[Any], int] | int | None = None) -> Handler:
    """Treat a module as a quantizer or clip with a trained full scale, which becomes N theta.

    `handlers={MyQCFS: convert.as_clip(lambda m: m.thresh)}`; for a learned step `lambda m: m.s * m.Qp`. The number of
    levels L is read off the module's output, unless it is given. The module is probed, and refused if it is another
    function: clip/L clip(floor(L z/clip + phi), 0, L) with phi 1/2 (rounds) or 0 (floors), or min(max(z, 0), clip).

    The neurons' analog reading is then that staircase, so that it equals the source network; phi = 0 becomes a shift of
    -clip/(2 L) before a neuron that rounds, which is the same function.

    Args:
        clip: module -> its clip, in the activation's unit; one value a layer.
        levels: module -> L, or L.

    Returns:
        A handler, for the right side of `handlers={MyQCFS: ...}`.

    Raises:
        ConversionError: on conversion, if a module is not that function.

    Reference: bu2022, choi2018, esser2020

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import convert
        >>> class Staircase(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.full_scale = nn.Parameter(torch.tensor(2.0))
        ...     def forward(self, x):
        ...         return torch.floor(x / self.full_scale * 4 + 0.5).clamp(0, 4) / 4 * self.full_scale
        >>> net = nn.Sequential(nn.Linear(4, 8), Staircase(), nn.Linear(8, 2))
        >>> own = {Staircase: convert.as_clip(lambda module: module.full_scale)}
        >>> snn = convert.to_spiking(net, torch.rand(32, 4), timesteps=4, handlers=own)
        >>> snn.neurons["1"].threshold.max().item()  # theta is the trained full scale
        2.0
    """

    def handle(call: Call) -> Ref:
        if call.module is None:
            raise Unsupported("as_clip serves modules, and this is a function", "put it into a module of its own")
        name = type(call.module).__name__
        try:
            value = _scalar(clip(call.module))
            steps = levels(call.module) if callable(levels) else levels
        except (AttributeError, TypeError, ValueError, RuntimeError) as err:
            raise Unsupported(f"its clip cannot be read: {err}", "correct the function given to as_clip") from None
        found = fit(call.module, value, steps)
        if found is None:
            raise Unsupported(
                f"{name} is no clip or staircase from 0 to {value:g} with {steps or 'any number of'} levels on a probe",
                "give as_clip the function that returns the largest output of the module, or write a handler",
            )
        return emit(call, found)

    return handle


def emit(call: Call, clip: Clip) -> Ref:
    """Add neurons whose analog reading is the clip.

    A staircase that floors (phi = 0) is a shift of half a step before neurons that round.

    Raises:
        Unsupported: a staircase that is to stay analog.
    """
    x = call.ref()
    if call.builder.kept_analog():
        if clip.levels is not None:
            raise Unsupported("a quantizer cannot stay analog", "leave the layer out of keep_analog")
        return call.emit("clamp", (x,), {"min": 0.0, "max": clip.value}, shape=x.shape)
    if clip.levels is not None and clip.shift == 0:
        offset = -clip.value / (2 * clip.levels)
        shift = {"factor": 1.0, "offset": offset}
        name = call.builder.emit("scale", (x.name,), shift, name=f"{call.builder.path}.shift")
        call.builder.track(name, "scale", (x.name,), shift, x.shape)
        x = Ref(name, x.shape)
    attrs = {**neuron_attrs(call.builder, x, clip.value, 0.0), "steps": clip.levels, "learned": True}
    return call.emit("neuron", (x,), attrs, shape=x.shape)


def recognised(model: nn.Module, given: Mapping[Key, Handler]) -> dict[Key, Handler]:
    """Handlers of the module classes in a network all of whose instances are proven clips; the given ones win."""
    found: dict[type[nn.Module], dict[nn.Module, Clip | None]] = {}
    for module in model.modules():
        if not type(module).__module__.startswith("torch.") and type(module) not in given:
            found.setdefault(type(module), {})[module] = recognise(module)
    return {kind: _by_instance(clips) for kind, clips in found.items() if all(clips.values())}


def _by_instance(clips: Mapping[nn.Module, Clip | None]) -> Handler:
    def handle(call: Call) -> Ref:
        clip = None if call.module is None else clips.get(call.module) or recognise(call.module)
        if clip is None:
            raise Unsupported("its quantizer is not known", "pass handlers={its class: convert.as_clip(...)}")
        return emit(call, clip)

    return handle


def recognise(module: nn.Module) -> Clip | None:
    """The clip of a module with a usual layout that proves to be one, else None."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if not own or sum(tensor.numel() for tensor in own.values()) > _OWN:
        return None
    for value, steps in _candidates(module):
        if 0 < value < math.inf and (steps is None or 1 <= steps <= MAX_LEVELS):
            found = fit(module, value, steps)
            if found is not None:
                return found
    return None


def _candidates(module: nn.Module) -> list[tuple[float, int | None]]:
    """Possible (clip, L) pairs by the names of attributes: tensors are trained, numbers count levels or bits."""
    trained = {name: value for name in (*CLIP_NAMES, *STEP_NAMES) if (value := _tensor(module, name)) is not None}
    counts = [value for name in LEVEL_NAMES if (value := _whole(module, name)) is not None]
    counts += [2**value - 1 for name in BIT_NAMES if (value := _whole(module, name)) is not None and value <= 10]
    by_step = [(trained[name] * n, n) for name in STEP_NAMES if name in trained for n in counts]
    return [*((trained[name], None) for name in CLIP_NAMES if name in trained), *by_step]


def _tensor(module: nn.Module, name: str) -> float | None:
    value = getattr(module, name, None)
    return float(value.detach()) if isinstance(value, Tensor) and value.numel() == 1 else None


def _whole(module: nn.Module, name: str) -> int | None:
    value = getattr(module, name, None)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return int(value) if isinstance(value, int | float) and value == int(value) else None


def _scalar(value: float | Tensor) -> float:
    number = torch.as_tensor(value, dtype=torch.float64).detach()
    if number.numel() != 1 or not bool(number.isfinite().all()) or not float(number) > 0:
        raise InputError(f"clip: expected one positive number a layer, got {value!r}")
    return float(number)


def fit(module: nn.Module, value: float, levels: int | None = None) -> Clip | None:
    """The clip that a module equals on a ramp of values from -clip/2 to 7/4 clip, None if it equals none.

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
    steps = levels or (distinct if 1 <= distinct <= MAX_LEVELS else None)
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
    """The output of a copy of the module for the values; None where it fails or changes their number."""
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
