"""Signals: a value of the source network as whole numbers, what one of them stands for, and a constant beside them."""

from dataclasses import dataclass, replace

import numpy as np

from speedysnn.errors import ConversionError
from speedysnn.integer.program import Floats, Timing

SAME = 1e-9  # relative difference of two scales that are one


class UnfitError(ConversionError):
    """What a node cannot be in integers, and what to do."""


@dataclass(frozen=True)
class Signal:
    """value = unit * integer + offset, element by element; of a sum over the steps where its timing is "total".

    Attributes:
        source: the buffer of the integers, None for a value that is the offset alone.
        unit: broadcasts against the shape and has as many axes.
        offset: likewise.
        shape: without the batch.
        timing: as in `Operation`.
    """

    source: str | None
    unit: Floats
    offset: Floats
    shape: tuple[int, ...]
    timing: Timing

    def at(self, unit: Floats) -> "Signal":
        """The same integers in another unit."""
        return replace(self, unit=fitted(unit, self.shape))

    def full_unit(self) -> Floats:
        """The unit of every element."""
        return np.broadcast_to(self.unit, self.shape)

    def full_offset(self) -> Floats:
        """The offset of every element."""
        return np.broadcast_to(self.offset, self.shape)


def fitted(value: Floats | float, shape: tuple[int, ...]) -> Floats:
    """A value that broadcasts against a shape, with as many axes."""
    array = np.asarray(value, dtype=np.float64)
    return array.reshape((1,) * (len(shape) - array.ndim) + array.shape)


def settled(values: Floats) -> Floats:
    """Values of every element with fewer of them: one, or one an axis, where that says the same; NaN fits anything."""
    known = np.isfinite(values)
    if not known.any():
        return np.ones((1,) * values.ndim)
    for axis in (None, *range(values.ndim)):
        others = tuple(i for i in range(values.ndim) if i != axis)
        low = np.where(known, values, np.inf).min(axis=others, keepdims=True)
        high = np.where(known, values, -np.inf).max(axis=others, keepdims=True)
        if bool((high - low <= SAME * np.maximum(np.abs(high), np.abs(low))).all()):  # none known: -inf, which is small
            return np.where(np.isfinite(low), low, 1.0)
    return np.where(known, values, 1.0)


def along(values: Floats, shape: tuple[int, ...], axis: int) -> Floats | None:
    """One value for each position of an axis, None where they differ along others too."""
    moved = np.moveaxis(np.broadcast_to(values, shape), axis, 0).reshape(shape[axis], -1)
    if not bool(np.isclose(moved, moved[:, :1], rtol=SAME, atol=0).all()):
        return None
    return np.array(moved[:, 0])


def placed(values: Floats, ndim: int, axis: int) -> Floats:
    """One value for each position of an axis, so that they broadcast; a single one for all."""
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def meeting(timings: list[Timing]) -> Timing:
    """When the result of values of these timings is there."""
    return "total" if "total" in timings else "steps" if "steps" in timings else "constant"
