"""What one batch may look like: a tensor, inputs and labels, a dict; each becomes a `Batch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from speedysnn.errors import DataError

INPUT_KEYS = ("image", "images", "pixel_values", "x", "input", "inputs", "img", "data")
LABEL_KEYS = ("label", "labels", "y", "target", "targets")


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward call and, where known, the class of each image, int64 (B,)."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None

    def __repr__(self) -> str:
        """Shapes only."""
        labels = None if self.labels is None else tuple(self.labels.shape)
        return f"Batch(inputs={[tuple(value.shape) for value in self.inputs]}, labels={labels})"


def parse(raw: Any, where: str) -> Batch:
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


def _kind(value: Any) -> str:
    return f"a tensor of {value.dtype}, {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _keys(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:4]))
