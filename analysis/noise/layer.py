"""One layer's sums: added up pass by pass by compiled code or by their definition, named, and made a row of the table.

`LayerSums` adds up. `totals_of` gives the stored sums their names, and `row_of` calls every column's function on them.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from speedysnn.analysis.memory import LayerMemory, places
from speedysnn.analysis.noise import Column, triton_backend
from speedysnn.analysis.noise.layer_totals import LayerTotals, summary
from speedysnn.analysis.noise.moments import MOST_CHANNELS, compared, gram
from speedysnn.analysis.noise.numba_backend import Clip, Running, supports
from speedysnn.analysis.noise.schema import CHANNELS, COLUMNS, COUNTS, HISTOGRAMS, TOTALS, UNITS
from speedysnn.analysis.noise.sums_reference import (
    added,
    reference_sums,
    reference_user_sums,
    rows_of,
    steps_of,
    user_sums,
    weights_sum,
)
from speedysnn.analysis.reference import mean_of
from speedysnn.errors import InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.kernels.layout import in_rows
from speedysnn.neurons.layer import IFNeuron

PARTS = ("clip", "round", "propagated", "temporal", "weights")
Sums = dict[str, Tensor]
OWN = "own."  # a user's sum is stored under this and its name


def totals_of(
    name: str, neuron: IFNeuron, theta: Tensor, amplitude: Tensor, start: Tensor, sums: Sums, shape: tuple[int, ...],
    places: Tensor | None = None, reads: Sequence[str] = (),
) -> LayerTotals:
    """Give the stored sums of a layer their names.

    Args:
        name: the layer's.
        neuron: the layer.
        theta: thresholds, () or (C,).
        amplitude: what a spike stands for, () or (C,).
        start: v_init, () or (C,).
        sums: arrays by kind, as `sums_reference.reference_sums` returns them.
        shape: of the layer for one image.
        places: of the sampled neurons; None for all.
        reads: the neuron layers that reach this one directly.

    Returns:
        What the columns' functions read.
    """
    channel = dict(zip(CHANNELS, sums["channels"], strict=True))
    channel["weights"] = sums.get("weights", torch.zeros_like(channel["e"]))
    total = {name: float(value.sum()) for name, value in channel.items()}
    total.update(zip(TOTALS, sums["totals"].tolist(), strict=True))
    counts = dict(zip(COUNTS, sums["counts"].tolist(), strict=True))
    for own, row in user_sums().items():
        value = sums.get(OWN + own)
        if value is None:  # declared after these images were measured
            continue
        if row.kind == "channel":
            channel[own] = value
        target: dict[str, Any] = counts if row.kind == "count" else total
        target[own] = value.sum().item()
    events, n, images = (int(x) for x in sums["events"])
    pulses: list[int] | None = sums["pulses"].tolist() if "pulses" in sums else None
    units = summary(name, shape, images, sums["fires"], sums["full"], sums["peak"], places)
    named = {**sums, **dict(zip(HISTOGRAMS, sums["bins"], strict=True))}
    return LayerTotals(
        name, neuron, tuple(reads), theta.to("cpu", torch.float64), amplitude.to("cpu", torch.float64), start.cpu(),
        channel, total, counts, named, events, n, images, pulses, units,
    )  # fmt: skip


def table_columns() -> dict[str, Column]:
    """Put the columns in the order of the table.

    Returns:
        Columns by name, those with `after` behind the one that they name.

    Raises:
        InputError: a column has no function, or names a column that is not there.
    """
    order = [name for name, column in COLUMNS.items() if not column.after]
    for name, column in COLUMNS.items():
        if column.value is None:
            raise InputError(f"COLUMNS[{name!r}]: expected a function value(layer) of a LayerTotals, got none")
        if not column.after:
            continue
        if column.after not in order:
            raise InputError(
                f"COLUMNS[{name!r}]: expected `after` to name an earlier column, got {column.after!r}; leave it out to "
                "put the column last"
            )
        order.insert(order.index(column.after) + 1, name)
    return {name: COLUMNS[name] for name in order}


def row_of(layer: LayerTotals) -> dict[str, Any]:
    """Compute every column of a layer.

    Args:
        layer: its sums.

    Returns:
        Figures by the names of `schema.COLUMNS`, in the table's order; NaN where undefined, None where not measured.
    """
    return {name: column.value(layer) for name, column in table_columns().items() if column.value is not None}


class LayerSums:
    """What a layer's row needs, summed over all images; memory does not grow with them.

    a: source activation, z: source pre-activation, r: mean output over time, e = r - a, step = A / T (A is theta unless
    an amplitude was set), Q(z) = step clip(floor(T z / theta + v_init), 0, T N):

        e = [clamp(z, 0, N theta) - a] + [Q(z) - clamp(z, 0, N theta)] + [Q(z') - Q(z)] + [r - Q(z')]
               clip                         round                          propagated       temporal

    Where weights were rounded, Q(z') - Q(z) = [Q(z') - Q(z'')] + [Q(z'') - Q(z)]: the layer's own weights, and what is
    propagated, with z'' the mean drive that the weights before rounding make of the same spikes.

    Sums by channel and products are float64, counts are whole numbers.

    Args:
        name: the layer's name.
        neuron: the layer itself.
        full: also sum the products of every two channels' errors, and of adjacent steps.
        memory: what the sums may take; None for all neurons.
    """

    def __init__(self, name: str, neuron: IFNeuron, full: bool = False, memory: LayerMemory | None = None) -> None:
        self.name, self.neuron, self.full, self.memory = name, neuron, full, memory
        self.sample = memory.sample if memory is not None else None
        self.places = None if self.sample is None or memory is None else places(memory.neurons, *self.sample)
        self.theta = neuron.threshold.detach().to(torch.float32)
        self.amplitude = neuron.amplitude.detach().to(torch.float32)
        self.start = neuron.v_init.detach().to(torch.float32)
        self.max_count = neuron.timesteps * neuron.levels_per_step
        self.shape: tuple[int, ...] = ()
        self._sums: dict[str, Tensor] = {}
        self._running: Running | triton_backend.RunningThere | None = None

    @property
    def sums(self) -> dict[str, Tensor]:
        """All sums by name, with what compiled code has added up so far."""
        self._settle()
        return self._sums

    def update(
        self, z: Tensor, source: IFNeuron, twin: Tensor, tap: LayerRecord, unrounded: Tensor | None = None
    ) -> int | Tensor:
        """Add one pass.

        Args:
            z: the source's pre-activation, (B, ...).
            source: the source's neuron, for its activation.
            twin: what the quantized reading emitted, (B, ...).
            tap: what the spiking reading received and emitted.
            unrounded: z'', (B, ...), where weights were rounded.

        Returns:
            The pass's spike events, which a GPU may still be counting.
        """
        clip = (source.floor, source.ceiling) if source.steps is None else source.analog(z)
        fired = self._at_once(z, clip, twin, tap)
        if fired is None:
            found = reference_sums(z, source, twin, tap, self.theta, self.start, self.amplitude)
            fired = tap.events() if tap.static_output else int(found["pulses"].sum())
            if tap.static_output:  # no trains were unrolled, so nothing is known of their steps
                del found["pulses"]
            self._keep({**found, "events": torch.tensor([fired, z.numel(), len(z)])})
        if unrounded is not None:
            brought = weights_sum(z, source, twin, tap, self.theta, self.start, self.amplitude, unrounded)
            self._keep({"weights": brought})
        own = reference_user_sums(z, source, twin, tap, self.theta, self.start, self.amplitude)
        self._keep({OWN + name: value for name, value in own.items()})
        if self.full:
            self._keep(self._products(source.analog(z), tap))
        self.shape = tuple(z.shape[1:])
        if self.places is not None:  # the sums of all neurons are not to be kept
            self._settle()
        return fired

    def _at_once(self, z: Tensor, a: Tensor | Clip, twin: Tensor, tap: LayerRecord) -> int | Tensor | None:
        """Add all sums with compiled code and give the spike events; None where no kernel takes these tensors."""
        drive, constant = tap.received()
        read = (z, *((a,) if isinstance(a, Tensor) else ()), twin, drive, tap.output)
        kind = Running if supports(*read) else triton_backend.RunningThere if triton_backend.supports(*read) else None
        if kind is None:
            return None
        neuron, z, trains = self.neuron, in_rows(z), not tap.static_output
        if not isinstance(self._running, kind) or not self._running.fits(z, trains):
            self._settle()
            self._running = kind(
                z, neuron.channel_dim, self.theta, self.start, amplitude=self.amplitude, timesteps=neuron.timesteps,
                max_count=self.max_count, min_count=-self.max_count if neuron.signed else 0, trains=trains,
                lags=self.full,
            )  # fmt: skip
        fired = None if trains else int(tap.events())
        return self._running.add(z, neuron.corrected(z), a, twin, drive, constant, tap.output, fired)

    def _settle(self) -> None:
        """Add what compiled code holds to the sums."""
        running, self._running = self._running, None
        if running is not None:
            self._keep(running.found())

    def _keep(self, found: dict[str, Tensor]) -> None:
        """Add sums by name; where neurons are sampled, only the sample's own numbers."""
        if self.places is not None:
            for name in found.keys() & set(UNITS):
                found[name] = found[name].index_select(0, self.places.to(found[name].device))
        self._sums = added(self._sums, {name: value.cpu() for name, value in found.items()})

    def _products(self, a: Tensor, tap: LayerRecord) -> dict[str, Tensor]:
        """Sums of the compared channels' errors, and of their products."""
        mean = mean_of(steps_of(tap.output, self.neuron.timesteps, tap.static_output))
        error = rows_of(mean - a, self.neuron.channel_dim)
        limit = MOST_CHANNELS if self.memory is None else self.memory.compared
        error = error[:, compared(error.shape[1], limit).to(error.device)]
        return {"gram": gram(error), "gram_sums": error.sum(0)}

    def fresh(self) -> "LayerSums":
        """Make empty sums of the same layer and the same sample of its neurons.

        Returns:
            The empty sums.
        """
        out = copy.copy(self)
        out._sums, out._running = {}, None
        return out

    def merge(self, other: "LayerSums") -> None:
        """Add what another pass over other images has summed.

        Args:
            other: sums of the same layer.
        """
        self.add_state(other.state())

    def state(self) -> dict[str, Tensor]:
        """Give all sums as tensors, to send to another process.

        Returns:
            Sums by name; counts are whole numbers, the rest is float64. Empty before the first pass.
        """
        if not self.sums:
            return {}
        own = {"shape": self.shape, "sample": (self.sample[0], *self.sample[1]) if self.sample else ()}
        return {**self.sums, **{name: torch.tensor(value, dtype=torch.int64) for name, value in own.items()}}

    def add_state(self, state: dict[str, Tensor]) -> None:
        """Add the `state` of another process's sums over other images.

        Args:
            state: as `state` gives it.

        Raises:
            InputError: they are of other neurons.
        """
        if not state:
            return
        sums, (read, *seed) = {**state}, state["sample"].tolist() or (0, 0)
        shape, _ = tuple(sums.pop("shape").tolist()), sums.pop("sample")
        sample = (read, (seed[0], seed[1])) if read else None
        if self.memory is None and not self.sums:  # nothing of its own yet: what is sampled is the other's choice
            self.sample = sample
            self.places = None if sample is None else places(math.prod(shape), *sample)
        own = self.sums
        odd = [name for name in sums.keys() & own.keys() if sums[name].shape != own[name].shape]
        if sample != self.sample or odd:
            raise InputError(
                f"add_state: the sums of layer {self.name!r} are of other neurons; expected images of one size, and "
                "the same memory_mib and seed in every process"
            )
        self.shape, self._sums = shape, added(own, sums)

    def found(self, reads: Sequence[str] = ()) -> LayerTotals:
        """Give the sums so far their names, for `rows.row_of` and for the report's details.

        Args:
            reads: the neuron layers whose spikes reach this one directly.

        Returns:
            What the columns' functions read.
        """
        return totals_of(
            self.name, self.neuron, self.theta, self.amplitude, self.start, self.sums, self.shape, self.places, reads
        )  # fmt: skip
