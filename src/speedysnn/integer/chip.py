"""to_integer: a spiking network in whole numbers, and the chip that it returns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from speedysnn.data.images import parse_normalize
from speedysnn.errors import InputError
from speedysnn.integer.lower import Pixels, Range, lower, ranges, rounded, state_range
from speedysnn.integer.profiles import find_profile, require_fits
from speedysnn.integer.program import Conv, Linear, Neuron, Operation, Program, bits_of, weights_of
from speedysnn.integer.scales import Options
from speedysnn.integer.simulate import Seen, Stream, run
from speedysnn.network import SpikingNetwork

AT_ONCE = 2**19  # values of the widest buffer that are held at once: more of them leave the caches


class Chip:
    """An integer network, run exactly: what a chip or the exported C computes, bit for bit.

    Args:
        program: its operations.

    Attributes:
        program: its operations.
        seen: by layer, what the states did with the images of `measure`.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.ranges: dict[str, Range] = ranges(program)
        self.seen: dict[str, Seen] = {}
        self._stream: Stream | None = None

    @property
    def scale(self) -> Tensor:
        """What 1 of each logit stands for in the source network's unit, float64, in the shape of one answer."""
        return torch.from_numpy(self.program.scale.copy())

    @property
    def timesteps(self) -> int:
        """T."""
        return self.program.timesteps

    def __call__(self, images: Tensor | NDArray[Any], *, step_by_step: bool = False) -> Tensor:
        """The logits of images.

        Args:
            images: uint8 (B, channels, height, width), or counts of events (T, B, ...) where it takes events.
            step_by_step: run tick after tick with the state and delay lines of a chip, which gives the same.

        Returns:
            (B, classes), int64; times `scale` they are the source network's logits.

        Raises:
            InputError: another type or shape.
        """
        return self._run(self.accepted(images), {}, step_by_step)

    def measure(self, images: Tensor | NDArray[Any]) -> Tensor:
        """The logits of images, whose states' ranges and saturations are kept for `report`."""
        return self._run(self.accepted(images), self.seen, False)

    def _run(self, images: Tensor, seen: dict[str, Seen], step_by_step: bool) -> Tensor:
        batch = int(self.program.input.timing == "steps")
        widest = max(op.size * (self.timesteps if op.timing == "steps" else 1) for op in self.program.operations)
        parts = torch.split(images, max(1, AT_ONCE // widest), batch)
        if not step_by_step:
            return torch.cat([run(self.program, part, seen) for part in parts])
        return torch.cat([Stream(self.program, seen).answer(part) for part in parts])

    def step(self, images: Tensor | NDArray[Any] | None) -> Tensor | None:
        """One tick: the input of this step (B, ...), or None for what is under way; the logits so far, or None.

        The read-out of the first t of T steps comes after t plus the look-aheads' ticks; `reset` forgets the state.
        """
        if self._stream is None:
            self._stream = Stream(self.program, {})
        return self._stream.tick(None if images is None else torch.as_tensor(images).to(torch.int64))

    def reset(self) -> None:
        """Forget the state of `step`."""
        self._stream = None

    def accepted(self, images: Tensor | NDArray[Any]) -> Tensor:
        """Images or events as the program takes them.

        Raises:
            InputError: another type or shape, or counts out of range.
        """
        x, given = torch.as_tensor(images), self.program.input
        events = given.timing == "steps"
        lead = (self.timesteps, x.shape[1] if x.ndim > 1 else 0) if events else (len(x) if x.ndim else 0,)
        if tuple(x.shape) != (*lead, *given.shape):
            first = f"({self.timesteps}, B, " if events else "(B, "
            raise InputError(f"chip: expected {first}{', '.join(map(str, given.shape))}), got {tuple(x.shape)}")
        if x.dtype.is_floating_point or x.dtype.is_complex:
            raise InputError(
                f"chip: expected whole numbers of {given.low} to {given.high} (torch.uint8), got {x.dtype}; a chip "
                "reads pixels as they are stored, so give them before they are divided by 255 and normalised"
            )
        if x.numel() and (int(x.min()) < given.low or int(x.max()) > given.high):
            raise InputError(
                f"chip: expected numbers of {given.low} to {given.high}, got {int(x.min())} to {int(x.max())}"
            )
        return x

    @property
    def report(self) -> pd.DataFrame:
        """One row a layer of neurons: scales, what its state can reach, and what it did reach with `measure`."""
        return pd.DataFrame([self._row(op) for op in self.program.neurons])

    def _row(self, op: Neuron) -> dict[str, Any]:
        proven = state_range(self.program, op, self.ranges[op.sources[0]])
        low, high = proven.ends
        seen = self.seen.get(op.name)
        feeding = feeders(self.program, op)
        weights = [each.weight for each in feeding if isinstance(each, Conv | Linear)]
        return {
            "layer": op.name,
            "neurons": op.size,
            "scale_min": float(op.unit.min()),
            "scale_max": float(op.unit.max()),
            "threshold_min": int(op.threshold.min()),
            "threshold_max": int(op.threshold.max()),
            "weight_bits": max((bits_of(int(w.min()), int(w.max())) for w in weights if w.size), default=0),
            "shift": max((shift for _, _, shift in weights_of(feeding)), default=0),
            "state_bits": self.program.state_bits,
            "bound_low": low,
            "bound_high": high,
            "bits_needed": bits_of(low, high),
            "measured_low": None if seen is None else seen.low,
            "measured_high": None if seen is None else seen.high,
            "measured_bits": None if seen is None else bits_of(seen.low, seen.high),
            "saturated": None if seen is None else seen.saturated,
            "saturated_share": None if seen is None else seen.saturated / max(seen.updates, 1),
        }

    def __repr__(self) -> str:
        """T, layers and bits in one line."""
        made = self.program
        bits = f"{made.weight_bits}-bit weights, {made.state_bits}-bit states"
        return f"Chip(T={made.timesteps}, {len(made.neurons)} neuron layers, {bits})"


def feeders(program: Program, op: Neuron) -> list[Operation]:
    """The operations whose results reach a layer without passing another one, in execution order."""
    by_name, wanted = program.by_name, {op.sources[0]}
    for name in reversed(list(by_name)):
        if name in wanted and not isinstance(by_name[name], Neuron):
            wanted.update(by_name[name].sources)
    return [each for name, each in by_name.items() if name in wanted and not isinstance(each, Neuron)]


def to_integer(
    snn: SpikingNetwork,
    weight_bits: int = 8,
    state_bits: int = 32,
    profile: str = "generic",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    *,
    granularity: str | None = None,
    events: bool = False,
    rounding: str = "nearest",
    images: Tensor | NDArray[Any] | None = None,
) -> Chip:
    """The network in whole numbers: weights, thresholds, biases, starts and states.

    With theta the threshold and A the amplitude before, W = round(W A TH / theta), and TH the integer threshold.

    Args:
        snn: the network, in its present T, look-ahead and spike kind.
        weight_bits: of a weight, sign included, 2 to 16.
        state_bits: of a neuron's state, sign included, 8 to 32; a narrower one than needed saturates.
        profile: a key of `PROFILES`, whose limits the result has to keep.
        mean: of a pixel in 0..1, a number or one a channel; by default what the network was converted with.
        std: likewise.
        granularity: one scale a "channel", or one a "layer"; by default what the profile needs.
        events: the input is counts of events at every step, (T, B, ...), which are not normalised.
        rounding: "nearest", or "reconstruct": weights are rounded so that each layer's drive on `images` stays, which
            takes a few hundred of them and is worth it below 6 bits.
        images: run once, so that the report shows measured ranges; uint8 as a chip takes them.

    Returns:
        The chip: `chip(images)` gives int64 logits, `chip.scale` their unit, `chip.report` a table.

    Raises:
        InputError: an option out of range.
        ConversionError: parts that have no integer form or do not fit the profile, all of them.

    Example:
        >>> import speedysnn, torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> snn = speedysnn.convert.to_spiking(net, torch.rand(32, 4), timesteps=4)
        >>> chip = speedysnn.to_integer(snn)
        >>> chip(torch.tensor([[0, 64, 128, 255]], dtype=torch.uint8)).shape
        torch.Size([1, 2])
    """
    made = find_profile(profile)
    chosen = granularity or ("layer" if made.one_scale else "channel")
    _check(weight_bits, state_bits, chosen)
    if rounding not in ("nearest", "reconstruct") or (rounding == "reconstruct" and images is None):
        raise InputError(
            f'to_integer: rounding: expected "nearest", or "reconstruct" together with images, got {rounding!r}'
        )
    given = _pixels(snn, mean, std, events)
    facts = {"profile": profile, "granularity": chosen, "latency": snn.latency}
    options = Options(weight_bits, state_bits, chosen, made.shifts)
    program = lower(snn, given, options, facts)
    require_fits(program, profile)
    if rounding == "reconstruct" and images is not None:
        program = lower(snn, given, options, facts, Chip(program).accepted(images))
    chip = Chip(program)
    if images is not None:
        chip.measure(images)
    return chip


def rounded_weights(snn: SpikingNetwork, weight_bits: int = 8, *, events: bool = False) -> dict[str, Tensor]:
    """The weights that `to_integer` gives each layer, as numbers of the network's own unit.

    W' = round(W A TH / theta) theta / (A TH), with the scales that `to_integer` chooses at its other defaults.

    Args:
        snn: the network.
        weight_bits: of a weight, sign included, 2 to 16.
        events: the input is counts of events.

    Returns:
        Name of the layer -> its weights, float64.

    Raises:
        InputError: another number of bits.
        ConversionError: a part that has no integer form.

    Example:
        >>> import speedysnn, torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> snn = speedysnn.convert.to_spiking(net, torch.rand(32, 4), timesteps=4)
        >>> rows = speedysnn.integer.rounded_weights(snn, 3)["0"]
        >>> max(len(row.unique()) for row in rows) <= 7
        True
    """
    _check(weight_bits, 32, "channel")
    return rounded(snn, _pixels(snn, None, None, events), Options(weight_bits, 32))


def _check(weight_bits: int, state_bits: int, granularity: str) -> None:
    for name, value, low, high in (("weight_bits", weight_bits, 2, 16), ("state_bits", state_bits, 8, 32)):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InputError(f"to_integer: {name}: expected a whole number of {low} to {high}, got {value!r}")
    if granularity not in ("channel", "layer"):
        raise InputError(f'to_integer: granularity: expected "channel" or "layer", got {granularity!r}')


def _pixels(snn: SpikingNetwork, mean: Any, std: Any, events: bool) -> Pixels:
    shape = snn.input_shapes[0]
    if events:
        if mean is not None or std is not None:
            raise InputError("to_integer: events are counts, which are not normalised; leave mean and std out")
        return Pixels(np.ones(()), np.zeros(()), events=True)
    if mean is None and std is None:
        found = parse_normalize(snn.provenance.get("normalize"))
        mean, std = (0.0, 1.0) if found is None else (found.mean, found.std)
    elif mean is None or std is None:
        raise InputError("to_integer: expected both mean and std, or neither")
    first, second = (_per_channel(name, value, shape) for name, value in (("mean", mean), ("std", std)))
    if not bool((second > 0).all() and np.isfinite(second).all() and np.isfinite(first).all()):
        raise InputError(f"to_integer: expected finite means and deviations above 0, got {mean!r} and {std!r}")
    return Pixels(1 / (255 * second), -first / second)


def _per_channel(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    out = np.asarray(value, dtype=np.float64)
    if out.ndim == 0:
        return out.reshape((1,) * len(shape))
    if out.ndim != 1 or len(out) not in (1, shape[0]):
        raise InputError(f"to_integer: {name}: expected a number or {shape[0]}, one a channel, got shape {out.shape}")
    return out.reshape(-1, *[1] * (len(shape) - 1))
