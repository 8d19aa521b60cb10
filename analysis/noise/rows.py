"""A layer's row of the table: the stored sums get their names, and every column's function is called on them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from speedysnn.analysis.entries import Column
from speedysnn.analysis.noise.layer_totals import LayerTotals, summary
from speedysnn.analysis.noise.schema import CHANNELS, COLUMNS, COUNTS, HISTOGRAMS, TOTALS
from speedysnn.analysis.noise.sums_reference import user_sums
from speedysnn.errors import InputError
from speedysnn.neurons.layer import IFNeuron

PARTS = ("clip", "round", "propagated", "temporal")
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
