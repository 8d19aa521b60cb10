"""Data of a user's function, 'FILE.py:FUNCTION': a Dataset or tensors, checked."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from speedysnn._batches import steps_of
from speedysnn._images import ArrayStore, Loaded, Store
from speedysnn._usercode import UserFunction
from speedysnn.errors import DataError


def from_function(spec: str, split: str) -> Loaded:
    """A user's function, called with split=...; it returns a Dataset or a tuple of tensors (images, labels)."""
    function = UserFunction(spec, DataError)
    if not function.accepts("split"):
        raise DataError(f"{spec} is called with split={split!r}, but takes no argument split; add it: def ...(split)")
    made = function(split=split)
    if isinstance(made, Dataset):
        return Loaded(_user_samples(made, spec), spec, _classes_of(made), steps_of(made))
    parts = made if isinstance(made, tuple) else (made,)
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, Tensor) and part.ndim for part in parts):
        raise DataError(f"{spec} returned {_described(made)}, expected a torch Dataset or tensors (images, labels)")
    return _from_tensors(parts[0], parts[1] if len(parts) > 1 else None, spec)


def _from_tensors(images: Tensor, labels: Tensor | None, spec: str) -> Loaded:
    if labels is None or not len(images):
        return Loaded(ArrayStore(images), spec, 0)
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise DataError(
            f"{spec} returned labels of {labels.dtype}, shape {tuple(labels.shape)}, for {len(images)} images; "
            f"expected whole numbers of shape ({len(images)},)"
        )
    return Loaded(ArrayStore(images, labels), spec, int(labels.max()) + 1)


def _user_samples(made: Any, spec: str) -> Store:
    if not hasattr(made, "__len__"):
        raise DataError(f"{spec} returned a {type(made).__name__} without a length; expected a map-style Dataset")
    return made  # type: ignore[no-any-return]


def _classes_of(made: Any) -> int:
    classes = getattr(made, "classes", 0)
    return classes if isinstance(classes, int) else len(classes) if hasattr(classes, "__len__") else 0


def _described(made: Any) -> str:
    if isinstance(made, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in made) or 'nothing'}"
    return f"a {type(made).__name__}"
