"""Images in memory: one layout, one range, and what normalising them means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speedysnn.errors import DataError

__all__ = ["ArrayStore", "Loaded", "Store", "as_events", "as_labels", "as_nchw"]

_COLOURS = (1, 2, 3, 4)  # channel counts by which an axis of an image array is recognised
_BY_FUNCTION = "or serve the data from a function, as 'FILE.py:FUNCTION'"


class Store(Protocol):
    """Samples by position: (image, label) pairs, or images alone."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, position: int, /) -> Any:
        """One sample; the image is float32, not normalised."""


class Loaded(NamedTuple):
    """What a handler of `data.load` returns; `classes` is 0 where unknown, `timesteps` where samples are static."""

    store: Store
    name: str
    classes: int
    timesteps: int = 0


@dataclass(frozen=True)
class ArrayStore:
    """Images (N, ...) and labels (N,) kept as they came; uint8 becomes float32 in [0, 1] one image at a time.

    `counts` marks numbers that are no pixels, such as events: they become float32 as they are.
    """

    images: Tensor
    labels: Tensor | None = None
    counts: bool = False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, position: int, /) -> Any:
        """(image, label), or the image alone where there are no labels."""
        image = self.images[position]
        pixels = image.dtype == torch.uint8 and not self.counts
        image = image.float().div_(255) if pixels else image.float()
        image = image.contiguous()
        return image if self.labels is None else (image, int(self.labels[position]))


def as_nchw(images: NDArray[Any], where: str) -> Tensor:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) as a compact (N, C, H, W) tensor: uint8, or float as it came.

    Raises:
        DataError: another number of dimensions, no images, unclear layout, wrong type or range.
    """
    if images.ndim not in (3, 4) or not images.size:
        raise DataError(
            f"{where}: expected images of shape (N, H, W), (N, H, W, C) or (N, C, H, W), or events (N, T, C, H, W), "
            f"with N at least 1, got {images.shape}; reshape them, {_BY_FUNCTION}"
        )
    tensor = _as_compact(images, where)
    if tensor.ndim == 3:
        return tensor[:, None]
    return tensor.permute(0, 3, 1, 2) if _channels_last(images.shape, where) else tensor


def as_events(events: NDArray[Any], where: str) -> Tensor:
    """Events (N, T, C, H, W), counts or amplitudes of any sign, as a compact tensor with their values unchanged.

    Raises:
        DataError: another number of dimensions, nothing in it, not numbers, NaN or infinity.
    """
    if events.ndim != 5 or not events.size:
        raise DataError(f"{where}: expected events of shape (N, T, C, H, W), none of them 0, got {events.shape}")
    if events.dtype.kind not in "iufb":
        raise DataError(f"{where}: events are {events.dtype}, expected whole numbers or floats")
    if events.dtype.kind in "iub":
        small = np.iinfo(np.uint8)
        fits = small.min <= int(events.min()) and int(events.max()) <= small.max
        return torch.from_numpy(np.ascontiguousarray(events, np.uint8 if fits else np.float32))
    tensor = torch.from_numpy(np.ascontiguousarray(events, np.float16 if events.dtype.itemsize == 2 else np.float32))
    finite = tensor.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise DataError(f"{where}: {int((~finite).sum())} of {len(events)} samples hold NaN or infinity, first {bad}")
    return tensor


def _channels_last(shape: tuple[int, ...], where: str) -> bool:
    _, first, middle, last = shape
    if (first in _COLOURS) != (last in _COLOURS):
        return last in _COLOURS
    if (first == middle) != (middle == last):
        return first == middle
    raise DataError(
        f"{where}: cannot tell which axis of the shape {shape} is the channels; "
        f"store images as (N, C, H, W) with C of 1 to 4, {_BY_FUNCTION}"
    )


def _as_compact(images: NDArray[Any], where: str) -> Tensor:
    if images.dtype.kind not in "iufb":
        raise DataError(f"{where}: pixels are {images.dtype}, expected uint8 or floats in [0, 1]")
    if images.dtype.kind in "iu":
        if images.min() < 0 or images.max() > 255:
            raise DataError(
                f"{where}: pixels are {images.dtype} from {images.min()} to {images.max()}, expected 0 to 255; "
                f"rescale them, or store them as floats in [0, 1], {_BY_FUNCTION}"
            )
        return torch.from_numpy(np.ascontiguousarray(images, np.uint8))
    tensor = torch.from_numpy(np.ascontiguousarray(images, np.float16 if images.dtype.itemsize == 2 else np.float32))
    _check_float_range(tensor, where)
    return tensor


def _check_float_range(images: Tensor, where: str) -> None:
    """Floats must be in [0, 1], or standardised already, which shows by some being below 0.

    Raises:
        DataError: NaN, infinity, or what looks like 0..255 stored as floats.
    """
    finite = images.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise DataError(f"{where}: {int((~finite).sum())} of {len(images)} images hold NaN or infinity, first {bad}")
    low, high = images.min().item(), images.max().item()
    if low >= 0 and high > 1 + 1e-3:
        raise DataError(
            f"{where}: float pixels go from {low:g} to {high:g}, expected [0, 1] (or standardised ones, some below 0); "
            f"store them as uint8 0..255, divide them by {high:g}, {_BY_FUNCTION}"
        )


def as_labels(labels: NDArray[Any], count: int, where: str) -> Tensor:
    """Labels as an int64 tensor (N,), from whole numbers of shape (N,) or (N, 1).

    Raises:
        DataError: another shape or count, not whole numbers, or below 0.
    """
    flat = labels.reshape(len(labels)) if labels.ndim and labels.size == len(labels) else labels
    if flat.shape != (count,):
        raise DataError(
            f"{where}: expected {count} labels, one an image, as shape ({count},), got shape {labels.shape}; "
            "give class numbers, not one-hot rows"
        )
    numeric = flat.dtype.kind in "iuf" and bool(np.all(np.isfinite(flat)))
    if not numeric or bool(np.any(flat != np.floor(flat))) or flat.min() < 0:
        came = f"{flat.dtype} such as {flat[:3].tolist()}"
        raise DataError(f"{where}: labels must be whole numbers from 0 up, got {came}; number the classes from 0")
    return torch.from_numpy(flat.astype(np.int64))
