"""What the sums of a layer mean, in plain torch, for every device and type; `schema.SUMS` defines each.

Compiled kernels compute the same faster. A pass is taken in blocks of elements; `Block` and `Images` hold the
quantities that a sum's definition may use. Sums that a user declared are always computed here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speedysnn.analysis.noise.moments import first_steps, lag_errors
from speedysnn.analysis.noise.schema import BUILT_IN_SUMS, CHANNELS, COUNTS, HISTOGRAMS, SUMS, TOTALS, UNITS, Sum
from speedysnn.analysis.reference import mean_of, reached_counts
from speedysnn.errors import InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.kernels.quantizer import levels
from speedysnn.neurons.layer import IFNeuron

Sums = dict[str, Tensor]
_BLOCK = 2**14  # elements worked on at once, so that a processor's caches hold them
_DEVICE_BLOCK = 2**26


@dataclass(frozen=True, eq=False)
class Block:
    """Quantities of some elements of a layer, (M, C) float64 each where nothing else is said; channels come last.

    Attributes:
        z: the source's pre-activation.
        drift: error of the drive, z' - z: the mean over time of what the neuron integrated, offset included and times
            amplitude / theta, minus z.
        own: error of the quantizer alone, Q(z) - a.
        a: the source's activation.
        r: the neuron's mean output over T steps, a whole number of quantizer steps.
        e: the error r - a.
        step: quantizer step of the output, A / T, () or (C,); the amplitude A is theta unless one was set.
        clip, round, propagated, temporal: the parts of e; see `speedysnn.analysis.noise.layer.LayerSums`.
        weights: of `propagated`, what the layer's own rounded weights add; 0 where none were rounded.
        twin_error: output of the quantized reading minus a.
        miss: what the parts miss of the measured error.
        fired: r in quantizer steps, the neuron's count of spikes.
        reached: the count that the mean over time of the neuron's input would give.
        max_count: the largest count, T times the spikes that one step can hold.
        in_range: whether z lies inside the quantizer's range, (M, C) bool.
        granular: whether z with the neuron's offset lies inside the range and is not 0, (M, C) bool.
        gap: Q(z) - z in steps theta / T of the drive, meaningful where `granular`.
        outputs: the neuron's output of every step, (M, C) each; the mean over time where it was not read step by step.
        when: first step with a spike, 1 to T, and 0 without one, (M, C) int64.
        lag_range: whether the mean drive lies inside a step's range and is not 0, (M, C) bool.
        lag_error: s[t] - mean drive / theta where `lag_range`, else 0, (T, M, C).
    """

    z: Tensor
    drift: Tensor
    own: Tensor
    a: Tensor
    r: Tensor
    e: Tensor
    step: Tensor
    clip: Tensor
    round: Tensor
    propagated: Tensor
    weights: Tensor
    temporal: Tensor
    twin_error: Tensor
    miss: Tensor
    fired: Tensor
    reached: Tensor
    max_count: int
    in_range: Tensor
    granular: Tensor
    gap: Tensor
    outputs: Sequence[Tensor]
    when: Tensor
    lag_range: Tensor
    lag_error: Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """Quantities of one pass's images.

    Attributes:
        a: the source's activation, (B, ...).
        fired: count of spikes, (B, ...).
        when: first step with a spike, 1 to T, and 0 without one, (B, ...) int64.
        outputs: output of every step, (B, ...) each.
        max_count: the largest count of a neuron.
    """

    a: Tensor
    fired: Tensor
    when: Tensor
    outputs: Sequence[Tensor]
    max_count: int


def rows_of(x: Tensor, channel_dim: int) -> Tensor:
    """Lay a tensor out by channel.

    Args:
        x: (B, ...).
        channel_dim: the dimension of its channels.

    Returns:
        (M, C), channels last; one column where there are no channels.
    """
    if x.ndim < 2:
        return x.reshape(-1, 1)
    return x.movedim(channel_dim, -1).reshape(-1, x.shape[channel_dim])


def steps_of(x: Tensor, timesteps: int, static: bool) -> Sequence[Tensor]:
    """Take a recorded tensor apart by time step.

    Args:
        x: (T*B, ...), or (B, ...) where it holds for all steps.
        timesteps: T.
        static: whether it holds for all steps.

    Returns:
        One tensor a step; the tensor itself where it holds for all steps.
    """
    return (x,) if static else x.chunk(timesteps)


def added(first: Sums, second: Sums) -> Sums:
    """Add up the sums of two passes.

    Args:
        first: sums by name.
        second: sums of other images.

    Returns:
        Sums by name: what either has is kept, of two peaks the larger one, everything else adds up.
    """
    out = {**second, **first}
    for name in first.keys() & second.keys():
        both = first[name], second[name].to(first[name].device)
        out[name] = torch.maximum(*both) if name == "peak" else both[0] + both[1]
    return out


def reference_sums(
    z: Tensor, source: IFNeuron, twin: Tensor, tap: LayerRecord, theta: Tensor, start: Tensor,
    amplitude: Tensor | None = None,
) -> Sums:  # fmt: skip
    """Compute every built-in sum of one pass from its definition.

    Args:
        z: the source's pre-activation, (B, ...).
        source: the source's neuron, for its activation.
        twin: what the quantized reading emitted, (B, ...).
        tap: what the spiking reading received and emitted.
        theta: thresholds, () or (C,).
        start: v_init alike.
        amplitude: what a spike stands for, alike; None for theta.

    Returns:
        "channels" (sums, C), "totals", "counts" and "bins" (histograms, 67) by the order of `schema`, "pulses" (T,),
        and "fires", "full" and "peak" (neurons,).
    """
    found: Sums = {}
    unit = theta if amplitude is None else amplitude
    for block in _blocks(z, source, twin, tap, theta, start, unit):
        found = added(found, _sums_of_block(block))
    images = _images(z, source, tap, unit)
    later = {name: _value(BUILT_IN_SUMS[name], images) for name in COUNTS if BUILT_IN_SUMS[name].scope == "image"}
    found["counts"] = found["counts"] + _stacked(later, COUNTS, found["counts"])
    found["pulses"] = BUILT_IN_SUMS["pulses"].reference(images)
    return {**found, **{name: BUILT_IN_SUMS[name].reference(images).reshape(-1) for name in UNITS}}


def reference_user_sums(
    z: Tensor, source: IFNeuron, twin: Tensor, tap: LayerRecord, theta: Tensor, start: Tensor,
    amplitude: Tensor | None = None,
) -> Sums:  # fmt: skip
    """Compute the sums that a user declared; arguments as in `reference_sums`.

    Returns:
        Sums by name; empty where there are none.
    """
    own, unit = user_sums(), theta if amplitude is None else amplitude
    found: Sums = {}
    if any(row.scope != "image" for row in own.values()):
        for block in _blocks(z, source, twin, tap, theta, start, unit):
            found = added(found, {name: _value(row, block) for name, row in own.items() if row.scope != "image"})
    if any(row.scope == "image" for row in own.values()):
        images = _images(z, source, tap, unit)
        found.update({name: _value(row, images) for name, row in own.items() if row.scope == "image"})
    return found


def weights_sum(
    z: Tensor, source: IFNeuron, twin: Tensor, tap: LayerRecord, theta: Tensor, start: Tensor, amplitude: Tensor,
    unrounded: Tensor,
) -> Tensor:  # fmt: skip
    """Compute the sum "weights"; arguments as in `reference_sums`.

    Args:
        unrounded: mean over time of what the weights before rounding make of the same spikes, (B, ...).

    Returns:
        One number a channel, (C,).
    """
    blocks = _blocks(z, source, twin, tap, theta, start, amplitude, unrounded)
    return torch.stack([_value(BUILT_IN_SUMS["weights"], block) for block in blocks]).sum(0)


def user_sums() -> dict[str, Sum]:
    """List the sums that a user declared, or declared anew: no kernel has them, so their reference is computed.

    Returns:
        Rows of `SUMS` by name.

    Raises:
        InputError: the kind of one is not "channel", "total" or "count".
    """
    own = {name: row for name, row in SUMS.items() if BUILT_IN_SUMS.get(name) is not row}
    for name, row in own.items():
        if row.kind not in ("channel", "total", "count"):
            raise InputError(
                f"SUMS[{name!r}]: expected the kind 'channel', 'total' or 'count', got {row.kind!r}; other kinds are "
                "summed by compiled code only"
            )
    return own


def _value(row: Sum, quantities: Block | Images) -> Tensor:
    """One sum of one block, (C,) by channel or ()."""
    values = row.reference(quantities)
    if row.kind == "count":
        return values.sum().to(torch.int64)
    values = values.to(torch.float64)
    return values.sum(0) if row.kind == "channel" else values.sum()


def _stacked(values: Mapping[str, Tensor], names: Sequence[str], like: Tensor) -> Tensor:
    """Values by name in one array, 0 for the names that are missing."""
    return torch.stack([values[name] if name in values else like.new_zeros(()) for name in names])


def _sums_of_block(block: Block) -> Sums:
    """Every built-in sum over elements."""

    def values(names: Sequence[str]) -> dict[str, Tensor]:
        return {name: _value(BUILT_IN_SUMS[name], block) for name in names if BUILT_IN_SUMS[name].scope != "image"}

    counts = values(COUNTS)
    return {
        "channels": torch.stack(list(values(CHANNELS).values())),
        "totals": torch.stack(list(values(TOTALS).values())),
        "counts": _stacked(counts, COUNTS, counts[COUNTS[0]]),
        "bins": torch.stack([BUILT_IN_SUMS[name].reference(block) for name in HISTOGRAMS]),
    }


def _images(z: Tensor, source: IFNeuron, tap: LayerRecord, amplitude: Tensor) -> Images:
    """The quantities of a pass's images."""
    neuron = tap.neuron
    outs = steps_of(tap.output, neuron.timesteps, tap.static_output)
    step = neuron.per_channel(amplitude, z.ndim).to(torch.float64) / neuron.timesteps
    fired = torch.round(mean_of(outs) / step)
    return Images(source.analog(z), fired, first_steps(outs), outs, neuron.timesteps * neuron.levels_per_step)


def _blocks(
    z: Tensor, source: IFNeuron, twin: Tensor, tap: LayerRecord, theta: Tensor, start: Tensor, amplitude: Tensor,
    unrounded: Tensor | None = None,
) -> Iterator[Block]:  # fmt: skip
    """The quantities of a pass, block by block."""
    neuron = tap.neuron
    drive, constant = tap.received()
    outs = steps_of(tap.output, neuron.timesteps, tap.static_output)
    rows = [rows_of(x, neuron.channel_dim) for x in (z, twin, drive, z if unrounded is None else unrounded, *outs)]
    size = max(1, (_BLOCK if z.device.type == "cpu" else _DEVICE_BLOCK) // max(1, rows[0].shape[1]))
    for own, quantized, seen, plain, *each in zip(*(torch.split(x, size) for x in rows), strict=True):
        yield _block(own, source.analog(own), quantized, seen, constant, each, neuron, theta, start, amplitude,
                     None if unrounded is None else plain)  # fmt: skip


def _block(
    z: Tensor, analog: Tensor, twin: Tensor, seen: Tensor, constant: bool, outs: list[Tensor], neuron: IFNeuron,
    theta: Tensor, start: Tensor, amplitude: Tensor, unrounded: Tensor | None = None,
) -> Block:  # fmt: skip
    """The quantities of one block, all tensors (M, C)."""
    a, drive = analog.to(torch.float64), z.to(torch.float64)
    width, step = (x.to(torch.float64) / neuron.timesteps for x in (theta, amplitude))  # of the drive, of the output
    max_count = neuron.timesteps * neuron.levels_per_step
    measured = mean_of(outs)
    fired = torch.round(measured / step)

    def count(x: Tensor) -> Tensor:
        own = (neuron.timesteps, neuron.levels_per_step, neuron.signed)
        return levels(x, theta, start, *own).to(torch.float64)

    shift: Tensor | float = 0.0 if neuron.offset is None else neuron.offset
    held = z if neuron.offset is None else z + shift
    aimed = count(held)
    drift = seen.to(torch.float64) / (1 if constant else neuron.timesteps) * (step / width) - drive
    reached = reached_counts(seen, constant, theta, start, neuron).to(torch.float64)
    top = width * max_count
    low = -top if neuron.signed else torch.zeros_like(top)
    clipped = torch.maximum(torch.minimum(drive, top), low)
    r = fired * step
    parts = (clipped - a, aimed * step - clipped, reached * step - aimed * step, r - reached * step)
    weights = torch.zeros_like(r) if unrounded is None else (reached - count(unrounded + shift)) * step
    held = held.to(torch.float64)
    lag_range, lag_error = lag_errors(seen, 1 if constant else neuron.timesteps, outs, theta, neuron, amplitude)
    return Block(
        z=drive, drift=drift, own=aimed * step - a, a=a, r=r, e=r - a, step=step, clip=parts[0], round=parts[1],
        propagated=parts[2], weights=weights, temporal=parts[3], twin_error=twin - a,
        miss=parts[0] + parts[1] + parts[2] + parts[3] - (measured - a), fired=fired,
        reached=reached, max_count=max_count, in_range=(drive > low) & (drive < top),
        granular=(held > low) & (held < top) & (held != 0), gap=aimed - held / width, outputs=outs,
        when=first_steps(outs), lag_range=lag_range, lag_error=lag_error,
    )  # fmt: skip
