"""Batches out of whatever holds data: a dataset, a loader, tensors, or any iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speedysnn.errors import DataError, InputError, SpeedySNNError

__all__ = ["Batch", "iter_batches"]

INPUT_KEYS = ("image", "images", "pixel_values", "x", "input", "inputs", "img", "data")
LABEL_KEYS = ("label", "labels", "y", "target", "targets")
_EXPECTED = "a Dataset, a DataLoader, a tensor (B, ...), a tuple (inputs, labels) of tensors, or an iterable of batches"


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward call and, where known, the class of each image, int64 (B,)."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None

    def __repr__(self) -> str:
        """Shapes only."""
        labels = None if self.labels is None else tuple(self.labels.shape)
        return f"Batch(inputs={[tuple(value.shape) for value in self.inputs]}, labels={labels})"


def iter_batches(data: Any, *, batch_size: int = 64, what: str = "calibration data") -> Iterator[Batch]:
    """Batches from a Dataset, a DataLoader, a tensor (B, ...), a tuple (x, y), or any iterable of batches.

    A batch is a tensor, a list or tuple whose last element may be the labels, or a dict with keys such as "image" and
    "label". A last element that is a 1-D integer tensor is the labels; a floating one is one more input.

    Args:
        data: where the batches come from; a tuple is one big batch, a list a sequence of batches.
        batch_size: used where the data is not in batches yet.
        what: how messages name the data.

    Raises:
        InputError: batch_size below 1.
        DataError: nothing in it, NaN or infinity, something that is not a tensor, unequal lengths.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    used_up = isinstance(data, Iterator)
    index = -1
    for index, raw in enumerate(_read(_raw_batches(data, batch_size, what), what)):
        batch = _parse(raw, f"{what}, batch {index}")
        _check(batch, f"{what}, batch {index}")
        yield batch
    if index < 0:
        advice = (
            "it is an iterator that gives its batches once and is used up; pass a list, a Dataset or a DataLoader"
            if used_up
            else f"expected {_EXPECTED} with at least one image"
        )
        raise DataError(f"{what}: no batch in it; {advice}")


def _raw_batches(data: Any, batch_size: int, what: str) -> Iterable[Any]:
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=batch_size)
    if isinstance(data, (Tensor, tuple, Mapping, Batch)):
        return _chunks(_parse(data, what), batch_size, what)
    if isinstance(data, (str, bytes)):
        raise DataError(f"{what}: got the text {data!r}; load it first, as speedysnn.data.load({data!r})")
    if not isinstance(data, Iterable) or type(data).__module__.partition(".")[0] == "numpy":
        array = "; make it a tensor with torch.from_numpy" if hasattr(data, "__array__") else ""
        raise DataError(f"{what}: got {type(data).__name__}, expected {_EXPECTED}{array}")
    return data


def _chunks(whole: Batch, batch_size: int, what: str) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
    _check_lengths(whole, what)
    count = len(whole.inputs[0])
    for start in range(0, count, batch_size):
        part = slice(start, start + batch_size)
        yield tuple(value[part] for value in whole.inputs), None if whole.labels is None else whole.labels[part]


def _read(batches: Iterable[Any], what: str) -> Iterator[Any]:
    """The batches; what a user's dataset raises becomes one message with the batch's number."""
    index = 0
    try:
        for batch in batches:
            yield batch
            index += 1
    except SpeedySNNError:
        raise
    except Exception as err:
        reason = str(err).strip().partition("\n")[0]
        raise DataError(f"{what}: reading batch {index} failed: {type(err).__name__}: {reason}") from err


def _parse(raw: Any, where: str) -> Batch:
    if isinstance(raw, Batch):
        return raw
    if isinstance(raw, Tensor):
        return Batch((raw,))
    if isinstance(raw, Mapping):
        return _parse_dict(raw, where)
    if isinstance(raw, Sequence) and not isinstance(raw, (str, bytes)):
        return _parse_sequence(raw, where)
    expected = f"expected a tensor, (inputs, labels), or a dict with {_keys(INPUT_KEYS)}"
    raise DataError(f"{where}: got {_kind(raw)}, {expected}")


def _parse_dict(raw: Mapping[Any, Any], where: str) -> Batch:
    images = next((raw[key] for key in INPUT_KEYS if key in raw), None)
    if images is None:
        have = ", ".join(map(repr, raw)) or "none"
        raise DataError(f"{where}: a dict with the keys {have}; the images must be below one of {_keys(INPUT_KEYS)}")
    labels = next((raw[key] for key in LABEL_KEYS if key in raw), None)
    return Batch(_inputs(images, where), None if labels is None else _labels(labels, where))


def _parse_sequence(raw: Sequence[Any], where: str) -> Batch:
    if not raw:
        raise DataError(f"{where}: an empty {type(raw).__name__}, expected inputs and, if known, labels")
    *front, last = raw
    if front and (last is None or _are_labels(last)):
        inputs = tuple(value for part in front for value in _inputs(part, where))
        return Batch(inputs, last)
    if front and isinstance(last, int):
        raise DataError(
            f"{where}: the label is one number, so this is a single image; put the images into a DataLoader"
        )
    return Batch(tuple(value for part in raw for value in _inputs(part, where)))


def _are_labels(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and not (value.is_floating_point() or value.is_complex())


def _inputs(value: Any, where: str) -> tuple[Tensor, ...]:
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, (tuple, list)) and value and all(isinstance(part, Tensor) for part in value):
        return tuple(value)
    array = "; make it a tensor with torch.from_numpy" if hasattr(value, "__array__") else ""
    raise DataError(f"{where}: got {_kind(value)} where a tensor of inputs was expected{array}")


def _labels(value: Any, where: str) -> Tensor:
    if _are_labels(value):
        return value  # type: ignore[no-any-return]
    raise DataError(f"{where}: labels are {_kind(value)}, expected a 1-D tensor of whole numbers, one an image")


def _check_lengths(batch: Batch, where: str) -> None:
    if any(value.ndim == 0 or len(value) == 0 for value in batch.inputs):
        raise DataError(f"{where}: an input of shape {[tuple(value.shape) for value in batch.inputs]} holds no image")
    parts = batch.inputs if batch.labels is None else (*batch.inputs, batch.labels)
    if len({len(value) for value in parts}) > 1:
        raise DataError(
            f"{where}: inputs and labels differ in length ({', '.join(str(tuple(value.shape)) for value in parts)}); "
            "each image needs one label, and a sequence of batches must be a list, not a tuple"
        )


def _check(batch: Batch, where: str) -> None:
    """Inputs must be finite floats (or indices), as many as labels; time-major events (T, B, ...) count by their B."""
    events = batch.labels is not None and all(v.ndim > 2 and v.shape[1] == len(batch.labels) for v in batch.inputs)
    _check_lengths(Batch(batch.inputs) if events else batch, where)
    for value in batch.inputs:
        if value.dtype == torch.uint8:
            raise DataError(f"{where}: inputs are uint8; scale them as in training, for example images.float() / 255")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            bad = int((~value.isfinite()).sum())
            raise DataError(
                f"{where}: {bad} of {value.numel()} values are NaN or infinity; remove or repair those images"
            )


def _kind(value: Any) -> str:
    return f"a tensor of {value.dtype}, {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _keys(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:4]))
