"""ImageData: the samples of one split, images or events, each normalised and shortened in time when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from speedysnn._images import Loaded, Store
from speedysnn._normalize import Normalizer
from speedysnn.errors import DataError, InputError, SpeedySNNError


class ImageData(Dataset[Any]):
    """Samples (image, label), or images alone where there are no labels; images are float32, converted when asked for.

    Attributes:
        name: of the data, for reports.
        classes: number of classes, 0 where unknown.
        image_shape: shape of one image, usually (C, H, W), of events that of one step.
        labelled: whether samples carry a label.
        timesteps: T where the samples are events (T, C, H, W), 0 where they are images.
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
        """Name, size and shape."""
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
    except Exception as err:
        raise DataError(f"{name}: reading sample {position} failed: {type(err).__name__}: {err}") from err
