"""Learned clips: activations of quantization-trained networks (QCFS, PACT, LSQ), found by layout, proven by probing.

Such modules have no common base and are copied from project to project, so no class is known here. A module is a
candidate when it owns a scalar tensor under one of the usual names; it is taken only if, on a probe that covers its
range, it *is* clip/L floor(L z/clip + phi) cut to 0..clip for some L and phi in {1/2, 0}, or min(max(z, 0), clip).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.convert.builder import Ref, Unsupported
from speedysnn.convert.call import Call, Handler, Key, neuron_attrs
from speedysnn.convert.probe import MOST_LEVELS
from speedysnn.convert.probe import Clip as Clip
from speedysnn.convert.probe import fit as fit
from speedysnn.errors import InputError

CLIP_NAMES = ("thresh", "threshold", "up", "lam", "lambda_", "lmbda", "alpha", "clip", "clip_val", "clip_value")
STEP_NAMES = ("s", "step", "step_size", "scale", "delta", "alpha")
LEVEL_NAMES = ("Qp", "qp", "q_p", "thd_pos", "qmax", "quant_max", "L", "levels")
BIT_NAMES = ("nbits", "bits", "bit", "n_bits", "num_bits", "bitwidth", "k")
_OWN = 8  # numbers a module may own and still be an activation


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

    Raises:
        ConversionError: on conversion, if a module is not that function.

    Reference: bu2022, choi2018, esser2020
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
    """Neurons whose analog reading is the clip; phi = 0 is a shift of half a step before one that rounds.

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
        if 0 < value < math.inf and (steps is None or 1 <= steps <= MOST_LEVELS):
            found = fit(module, value, steps)
            if found is not None:
                return found
    return None


def _candidates(module: nn.Module) -> list[tuple[float, int | None]]:
    """(clip, L) pairs by the names of attributes: tensors are trained, numbers count levels or bits."""
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
