"""Images in passes of a fixed size, whatever batches they come in: float32 results then never depend on the split."""

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speedysnn.data import Batch, iter_batches
from speedysnn.errors import DataError, InputError
from speedysnn.network import SpikingNetwork

TIME_BATCH = 1024  # images times steps taken from the data at once
_VALUES = 2**26  # float32 values of all layers that one pass may keep: 256 MB
_DEVICE_FACTOR = 16  # a GPU takes more images at once than a processor's caches


def device_of(snn: SpikingNetwork) -> torch.device:
    """Where the network lies."""
    return next((p.device for p in snn.parameters()), torch.device("cpu"))


def pass_size(snn: SpikingNetwork, timesteps: int | None = None) -> int:
    """Images a pass: a function of the network, T and the kind of device alone."""
    features = sum(int(node.attrs.get("features", 1)) for node in snn.graph.neurons)
    most = TIME_BATCH if device_of(snn).type == "cpu" else TIME_BATCH * _DEVICE_FACTOR
    return max(1, min(most // (timesteps or snn.timesteps), _VALUES // max(1, features)))


class Passes:
    """The images of `data`, `size` at a time and the rest at the end, on the network's device.

    Its `operator.length_hint` is the number of passes where the data says how many images it has; progress needs it.

    Args:
        snn: says what an input looks like, static (B, ...) or events (T, B, ...).
        data: what `iter_batches` takes.
        size: images a pass.
        batch_size: images read at a time where the data is not in batches yet.
        limit: stop after this many images.
    """

    def __init__(self, snn: SpikingNetwork, data: Any, size: int, batch_size: int, limit: int | None) -> None:
        self._snn, self._data, self._size, self._batch_size, self._limit = snn, data, size, batch_size, limit

    def __iter__(self) -> Iterator[Batch]:
        """From the start."""
        return self._read()

    def __length_hint__(self) -> int:
        """Passes there will be; 0 where the data does not say."""
        count = _count_images(self._snn, self._data)
        if count is None:
            return 0
        return -(-(count if self._limit is None else min(count, self._limit)) // self._size)

    def _read(self) -> Iterator[Batch]:
        snn, size, waiting = self._snn, self._size, None
        for batch in _limited(snn, self._data, self._batch_size, self._limit):
            waiting = batch if waiting is None else _join(snn, waiting, batch)
            count = images_in(snn, waiting.inputs)
            for start in range(0, count - size + 1, size):
                yield _moved(snn, part(snn, waiting, start, start + size))
            left = count % size
            waiting = part(snn, waiting, count - left, count) if left else None
        if waiting is not None:
            yield _moved(snn, waiting)


def passes(snn: SpikingNetwork, data: Any, size: int, *, batch_size: int = 32, limit: int | None = None) -> Passes:
    """See `Passes`.

    Raises:
        InputError: a limit below 1.
        DataError: while reading: no data, an input of another rank, or labels on some batches only.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InputError(f"limit: expected a whole number of at least 1, got {limit!r}; leave it out for all images")
    return Passes(snn, data, size, batch_size, limit)


def _count_images(snn: SpikingNetwork, data: Any) -> int | None:
    """Images in the data, where it says so without being read."""
    data = data.dataset if isinstance(data, DataLoader) and data.sampler is not None else data
    first = data[0] if isinstance(data, tuple) and data else data
    if isinstance(first, Tensor):
        events = first.ndim == len(snn.input_shapes[0]) + 2
        return int(first.shape[1 if events else 0]) if first.ndim > 1 else None
    return len(data) if isinstance(data, Dataset) and isinstance(data, Sized) else None


def _limited(snn: SpikingNetwork, data: Any, batch_size: int, limit: int | None) -> Iterator[Batch]:
    left, first = limit, None
    ranks = [len(shape) + 1 for shape in snn.input_shapes]
    for batch in iter_batches(data, batch_size=batch_size, what="data", events="steps", ranks=ranks):
        _check(snn, batch.inputs)
        first = first or batch
        _check_alike(snn, first, batch)
        count = images_in(snn, batch.inputs)
        if left is None or count < left:
            yield batch
            left = None if left is None else left - count
        else:
            yield part(snn, batch, 0, left)
            return


def _check(snn: SpikingNetwork, inputs: Sequence[Tensor]) -> None:
    expected = snn.input_shapes
    if len(inputs) != len(expected) or any(
        x.ndim - len(shape) - 1 not in (0, 1) for x, shape in zip(inputs, expected, strict=True)
    ):
        wanted = ", ".join(f"(B, {', '.join(map(str, shape))})" for shape in expected)
        got = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise DataError(f"data: expected batches of {wanted}, or events with the steps in front, got {got}")


def _check_alike(snn: SpikingNetwork, first: Batch, batch: Batch) -> None:
    if batch_dims(snn, first.inputs) != batch_dims(snn, batch.inputs):
        raise DataError("data: some batches are static (B, ...) and others events (T, B, ...); measure them apart")
    if (first.labels is None) != (batch.labels is None):
        raise DataError("data: some batches carry labels and others do not; give labels to all or to none")


def batch_dims(snn: SpikingNetwork, inputs: Sequence[Tensor]) -> list[int]:
    """The batch dimension of each input: 0, or 1 for events (T, B, ...)."""
    return [x.ndim - len(shape) - 1 for x, shape in zip(inputs, snn.input_shapes, strict=True)]


def images_in(snn: SpikingNetwork, inputs: Sequence[Tensor]) -> int:
    """B."""
    return inputs[0].shape[batch_dims(snn, inputs)[0]]


def part(snn: SpikingNetwork, batch: Batch, start: int, stop: int) -> Batch:
    """Images start..stop of a batch."""
    dims = batch_dims(snn, batch.inputs)
    inputs = tuple(x.narrow(dim, start, stop - start) for x, dim in zip(batch.inputs, dims, strict=True))
    return Batch(inputs, None if batch.labels is None else batch.labels[start:stop])


def _join(snn: SpikingNetwork, first: Batch, second: Batch) -> Batch:
    dims = batch_dims(snn, first.inputs)
    try:
        inputs = tuple(torch.cat(pair, dim) for *pair, dim in zip(first.inputs, second.inputs, dims, strict=True))
    except RuntimeError as err:
        raise DataError(f"data: batches hold images of different shapes ({err})") from None
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = torch.cat([first.labels, second.labels])
    return Batch(inputs, labels)


def _moved(snn: SpikingNetwork, batch: Batch) -> Batch:
    device = device_of(snn)
    labels = None if batch.labels is None else batch.labels.to(device)
    return Batch(tuple(x.to(device) for x in batch.inputs), labels)
