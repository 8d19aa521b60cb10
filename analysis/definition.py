"""What the compiled sums of a layer mean, in plain torch, for every device and type."""

from collections.abc import Sequence

import torch
from torch import Tensor

from speedysnn.analysis.latency import first_steps, lag_sums, starts
from speedysnn.analysis.moments import histogram
from speedysnn.analysis.readings import mean_of, reached_counts
from speedysnn.analysis.units import counted
from speedysnn.kernels.quantizer import levels
from speedysnn.neurons import IFNeuron
from speedysnn.tap import Tap

Sums = dict[str, Tensor]
_BLOCK = 2**14  # elements worked on at once, so that a processor's caches hold them
_DEVICE_BLOCK = 2**26


def rows_of(x: Tensor, channel_dim: int) -> Tensor:
    """(B, ...) as (M, C), channels last; one column where there are no channels."""
    if x.ndim < 2:
        return x.reshape(-1, 1)
    return x.movedim(channel_dim, -1).reshape(-1, x.shape[channel_dim])


def steps_of(x: Tensor, steps: int, static: bool) -> Sequence[Tensor]:
    """A tap's tensor step by step; itself where it holds for all steps."""
    return (x,) if static else x.chunk(steps)


def added(first: Sums, second: Sums) -> Sums:
    """Two passes' sums as one: what either has is kept, a peak is the larger one, everything else adds up."""
    out = {**second, **first}
    for name in first.keys() & second.keys():
        both = first[name], second[name].to(first[name].device)
        out[name] = torch.maximum(*both) if name == "peak" else both[0] + both[1]
    return out


def summed_plainly(z: Tensor, source: IFNeuron, twin: Tensor, tap: Tap, theta: Tensor, start: Tensor) -> Sums:
    """Every sum of `LayerSums` by name. Shapes: z, twin (B, ...), theta and start () or (C,)."""
    neuron = tap.neuron
    drive, constant = tap.received()
    outs = steps_of(tap.output, neuron.timesteps, tap.static_output)
    rows = [rows_of(x, neuron.channel_dim) for x in (z, twin, drive, *outs)]
    size = max(1, (_BLOCK if z.device.type == "cpu" else _DEVICE_BLOCK) // max(1, rows[0].shape[1]))
    found: Sums = {}
    for own, quantized, seen, *each in zip(*(torch.split(x, size) for x in rows), strict=True):
        analog = source.analog(own)
        found = added(found, _block(own, analog, quantized, seen, constant, each, neuron, theta, start))
    step = neuron.per_channel(theta, z.ndim).to(torch.float64) / neuron.timesteps
    fired, when = torch.round(mean_of(outs) / step), first_steps(outs)
    found["counts"] = torch.cat([found["counts"], starts(when)])
    found["pulses"] = torch.stack([torch.count_nonzero(out) for out in outs])
    return {**found, **counted(fired, source.analog(z), neuron.timesteps * neuron.levels_per_step)}


def _block(
    z: Tensor, analog: Tensor, twin: Tensor, seen: Tensor, constant: bool, outs: list[Tensor], neuron: IFNeuron,
    theta: Tensor, start: Tensor,
) -> Sums:
    """One block, all tensors (M, C); every sum but those of units, images and steps."""
    a, drive = analog.to(torch.float64), z.to(torch.float64)
    step, most = theta.to(torch.float64) / neuron.timesteps, neuron.timesteps * neuron.levels_per_step
    measured = mean_of(outs)
    fired = torch.round(measured / step)
    held = z if neuron.offset is None else z + neuron.offset
    aimed = levels(held, theta, start, neuron.timesteps, neuron.levels_per_step, neuron.signed).to(torch.float64)
    reached = reached_counts(seen, constant, theta, start, neuron).to(torch.float64)
    top = step * most
    low = -top if neuron.signed else torch.zeros_like(top)
    clipped = torch.maximum(torch.minimum(drive, top), low)
    r = fired * step
    e = r - a
    parts = (clipped - a, aimed * step - clipped, reached * step - aimed * step, r - reached * step)
    off, miss = twin - a, parts[0] + parts[1] + parts[2] + parts[3] - (measured - a)
    held = held.to(torch.float64)
    granular = (held > low) & (held < top) & (held != 0)
    g = aimed - held / step
    by_channel = (a.abs(), a * a, a, e, e * e, e * e * e, (e * e) ** 2, (drive > low) & (drive < top), granular)
    pairs = ((a, r), (r, r), (off, off), (miss, miss), *((part, e) for part in parts))
    hits = (fired.abs() == most, fired == 0, a == 0, fired != reached)
    when = first_steps(outs)
    lagged, lags = lag_sums(seen, 1 if constant else neuron.timesteps, outs, theta, neuron)
    powers = [(g[granular] ** k).sum() for k in (1, 2, 3, 4)]
    return {
        "channels": torch.stack([x.to(torch.float64).sum(0) for x in by_channel]),
        "totals": torch.stack([*(torch.dot(x.reshape(-1), y.reshape(-1)) for x, y in pairs), *powers, *lags]),
        "counts": torch.stack([*(x.sum() for x in hits), (when != 0).sum(), when.sum(), torch.tensor(lagged).to(when)]),
        "bins": torch.stack([histogram(g, granular), histogram(e / step, e != 0)]),
    }  # fmt: skip
