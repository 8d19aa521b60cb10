"""Images and events of one split: their layout in memory, their range of values, and how they are normalised.

`as_nchw`, `as_events` and `as_labels` check arrays and bring them into one layout; a `Normalizer` computes
(x - mean) / std for each channel; `ImageData` is the dataset that `speedysnn.data.load` returns, whose samples are
converted and normalised when they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from speedysnn.errors import DataError, InputError, SpeedySNNError

_COLOURS = (1, 2, 3, 4)  # channel counts by which an axis of an image array is recognised
_BY_FUNCTION = "or serve the data from a function, as 'FILE.py:FUNCTION'"


class Store(Protocol):
    """Samples by position: (image, label) pairs, or images alone."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, position: int, /) -> Any:
        """One sample; the image is float32, not normalised."""


class Loaded(NamedTuple):
    """What a reader of `data.HANDLERS` returns.

    Attributes:
        store: the samples of the split, by position.
        name: of the data, for reports.
        classes: number of classes, 0 where unknown.
        timesteps: T where samples are events (T, C, H, W), 0 where they are static.
    """

    store: Store
    name: str
    classes: int
    timesteps: int = 0


@dataclass(frozen=True)
class ArrayStore:
    """Images and labels in memory, kept in the type they came in and converted one image at a time.

    Attributes:
        images: (N, ...); uint8 becomes float32 in [0, 1], other types become float32 with their values.
        labels: (N,), None where there are none.
        counts: the numbers are no pixels, such as events: uint8 keeps its values too.

    Example:
        >>> import torch
        >>> from speedysnn import data
        >>> store = data.ArrayStore(torch.full((2, 1, 1, 1), 255, dtype=torch.uint8), torch.tensor([3, 1]))
        >>> store[0]
        (tensor([[[1.]]]), 3)
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


@dataclass(frozen=True)
class Normalizer:
    """(x - mean) / std for each channel of a (C, H, W) image."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str

    def __call__(self, image: Tensor) -> Tensor:
        """Normalise one image."""
        mean, std = (image.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (image - mean) / std

    def require_fits(self, shape: tuple[int, ...], where: str) -> None:
        """Check that images of this shape can be normalised.

        Raises:
            InputError: not (C, H, W), or another number of channels.
        """
        if len(shape) != 3 or shape[0] != len(self.mean):
            came = f"{shape[0]} channel(s)" if len(shape) == 3 else f"the shape {shape}"
            raise InputError(
                f"{where}: normalize={self.name!r} is for {len(self.mean)} channel(s), the images have {came}; "
                "give one mean and one standard deviation a channel, as '0.5/0.25' or '0.5,0.5,0.5/0.2,0.2,0.2'"
            )


NORMALIZERS: dict[str, Normalizer] = {
    "imagenet": Normalizer((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "imagenet"),
    "cifar10": Normalizer((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "cifar10"),
}


def parse_normalize(text: str | None) -> Normalizer | None:
    """The normalisation that a text names.

    Args:
        text: None or 'none', a name in `NORMALIZERS`, or 'means/deviations' with commas between channels.

    Returns:
        The `Normalizer`, None where there is nothing to do.

    Raises:
        InputError: anything else, or a deviation that is not above 0.

    Example:
        >>> import torch
        >>> from speedysnn import data
        >>> halve = data.parse_normalize("0.5,0.5/0.25,0.5")
        >>> halve(torch.ones(2, 1, 1)).flatten()
        tensor([2., 1.])
    """
    if text is None or text == "none":
        return None
    if text in NORMALIZERS:
        return NORMALIZERS[text]
    expected = f"'none', {', '.join(map(repr, NORMALIZERS))} or 'MEAN,.../STD,...' as '0.5,0.5,0.5/0.2,0.2,0.2'"
    try:
        means, deviations = (tuple(float(value) for value in part.split(",")) for part in text.split("/"))
    except ValueError:
        raise InputError(f"normalize={text!r} is not understood; expected {expected}") from None
    if len(means) != len(deviations) or not all(map(math.isfinite, means)):
        raise InputError(f"normalize={text!r} has {len(means)} means and {len(deviations)} deviations, not one each")
    if not all(math.isfinite(value) and value > 0 for value in deviations):
        raise InputError(f"normalize={text!r}: every standard deviation must be above 0; expected {expected}")
    return Normalizer(means, deviations, text)


class ImageData(Dataset[Any]):
    """Samples (image, label), or images alone where there are no labels; images are float32, converted when asked for.

    Attributes:
        name: of the data, for reports.
        classes: number of classes, 0 where unknown.
        image_shape: shape of one image, usually (C, H, W), of events that of one step.
        labelled: whether samples carry a label.
        timesteps: T where the samples are events (T, C, H, W), 0 where they are images.

    Example:
        >>> from speedysnn import data
        >>> digits = data.load("digits", "test", limit=5)
        >>> image, label = digits[0]
        >>> image.shape, digits.image_shape, digits.labelled
        (torch.Size([1, 8, 8]), (1, 8, 8), True)
        >>> digits.subset([0, 2])
        ImageData('digits', 2 images (1, 8, 8), 10 classes)
    """

    def __init__(
        self,
        loaded: Loaded,
        normalizer: Normalizer | None = None,
        positions: Sequence[int] | None = None,
        timesteps: int | None = None,
    ) -> None:
        self.name, self.classes = loaded.name, loaded.classes
        self.timesteps = loaded.timesteps if timesteps is None else timesteps
        self._loaded, self._normalizer = loaded, normalizer
        self._positions: Sequence[int] = range(len(loaded.store)) if positions is None else positions
        if not len(self._positions):
            raise InputError(f"{self.name}: no samples were chosen; give at least one position")
        sample = _first(loaded.store, self._positions[0], self.name)
        self.labelled = isinstance(sample, (tuple, list))
        image = sample[0] if self.labelled else sample
        shape = tuple(image.shape) if isinstance(image, Tensor) else ()
        self.image_shape: tuple[int, ...] = shape[1:] if self.timesteps else shape
        if normalizer is not None:
            normalizer.require_fits(self.image_shape, self.name)
            if image.min() < 0:
                raise InputError(f"{self.name}: images hold values below 0, so they are normalised already; use 'none'")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._positions)

    def __getitem__(self, index: int) -> Any:
        """One sample, its image normalised."""
        sample = self._loaded.store[self._positions[index]]
        if self._normalizer is None and self.timesteps == self._loaded.timesteps:
            return sample
        return (self._prepared(sample[0]), *sample[1:]) if self.labelled else self._prepared(sample)

    def _prepared(self, image: Tensor) -> Tensor:
        if self.timesteps:
            image = image.view(self.timesteps, -1, *image.shape[1:]).mean(1)
        return image if self._normalizer is None else self._normalizer(image)

    def __repr__(self) -> str:
        """Show name, size and shape."""
        steps = f" of {self.timesteps} steps" if self.timesteps else ""
        return f"ImageData({self.name!r}, {len(self)} images {self.image_shape}{steps}, {self.classes} classes)"

    def subset(self, indices: Sequence[int]) -> ImageData:
        """These samples, in this order, sharing the memory."""
        chosen = [self._positions[index] for index in indices]
        return ImageData(self._loaded, self._normalizer, chosen, self.timesteps)

    def in_steps(self, timesteps: int) -> ImageData:
        """The same events in fewer steps: the mean over T / timesteps neighbours, which keeps the mean over time.

        Raises:
            InputError: the samples are no events, or `timesteps` does not divide their T.
        """
        own = self._loaded.timesteps
        if not own:
            raise InputError(f"{self.name}: the samples are images without a time axis; encode them to get events")
        if timesteps < 1 or own % timesteps:
            raise InputError(
                f"{self.name}: events of {own} steps cannot be put into {timesteps}; give a number that divides {own}"
            )
        return ImageData(self._loaded, self._normalizer, self._positions, timesteps)


def _first(store: Store, position: int, name: str) -> Any:
    try:
        return store[position]
    except SpeedySNNError:
        raise
    except Exception as err:  # the user's dataset may raise anything
        raise DataError(f"{name}: reading sample {position} failed: {type(err).__name__}: {err}") from err
