"""Run a network's readings beside its reference, on images in passes of a fixed size.

`passes` cuts any data into passes whose size depends on the network alone, so that float32 results never depend on how
the data is batched. `Reference` is what a network is compared with. `run` reads a network and says in plain words where
the data does not fit. The rest takes outputs and spike trains apart.
"""

from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from speedysnn.data.batches import Batch, iter_batches
from speedysnn.errors import DataError, InputError, SizeError
from speedysnn.execution.observers import Observer
from speedysnn.kernels.quantizer import levels
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.layer import IFNeuron
from speedysnn.neurons.parameters import Reading
from speedysnn.torch_utils import evaluating, float_type

TIME_BATCH = 1024  # images times steps taken from the data at once
_VALUES = 2**26  # float32 values of all layers that one pass may keep: 256 MB
_DEVICE_FACTOR = 16  # a GPU takes more images at once than a processor's caches


def device_of(snn: SpikingNetwork) -> torch.device:
    """Find the device of a network.

    Args:
        snn: the network.

    Returns:
        The device of its first parameter; the CPU where there is none.
    """
    return next((p.device for p in snn.parameters()), torch.device("cpu"))


def pass_size(snn: SpikingNetwork, timesteps: int | None = None) -> int:
    """Choose the images of a pass: by the network, T and the kind of device alone.

    Args:
        snn: the network.
        timesteps: T; None for the network's own.

    Returns:
        Images, at least 1.
    """
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
        """Read the data from its start."""
        return self._read()

    def __length_hint__(self) -> int:
        """The number of passes; 0 where the data does not say how many images it has."""
        return -(-(self.images or 0) // self._size)

    @property
    def images(self) -> int | None:
        """Images of all passes; None where the data does not say how many it has."""
        count = _count_images(self._snn, self._data)
        return count if count is None or self._limit is None else min(count, self._limit)

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
    """Cut data into passes of a fixed size.

    Args:
        snn, data, size, batch_size, limit: see `Passes`.

    Returns:
        The passes, to be iterated.

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
    taken: dict[str, Any] = {"ranks": ranks, "dtype": float_type(snn)}
    for batch in iter_batches(data, batch_size=batch_size, what="data", events="steps", **taken):
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
    """Find the batch dimension of each input.

    Args:
        snn: says what an image looks like.
        inputs: tensors of one batch.

    Returns:
        0 for static inputs (B, ...), 1 for events (T, B, ...).
    """
    return [x.ndim - len(shape) - 1 for x, shape in zip(inputs, snn.input_shapes, strict=True)]


def images_in(snn: SpikingNetwork, inputs: Sequence[Tensor]) -> int:
    """Count the images of a batch.

    Args:
        snn: says what an image looks like.
        inputs: tensors of one batch.

    Returns:
        B.
    """
    return inputs[0].shape[batch_dims(snn, inputs)[0]]


def part(snn: SpikingNetwork, batch: Batch, start: int, stop: int) -> Batch:
    """Take some images of a batch.

    Args:
        snn: says what an image looks like.
        batch: inputs, and labels or None.
        start: first image.
        stop: image after the last.

    Returns:
        Views of the batch's tensors.
    """
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


def run(snn: SpikingNetwork, reading: Reading, inputs: Sequence[Tensor], observer: Observer | None = None) -> Any:
    """Run the network in one reading; the reading chosen outside stays.

    Args:
        snn: the network.
        reading: "analog", "quantized" or "spiking".
        inputs: tensors of one batch.
        observer: is shown what every neuron layer received and emitted.

    Returns:
        The network's output.

    Raises:
        DataError: the network does not run on these inputs.
    """
    with naming_batch(inputs):
        return snn.read(reading, *inputs, observer=observer)


@contextmanager
def naming_batch(inputs: Sequence[Tensor]) -> Iterator[None]:
    """Let what refuses a batch, the network or torch, name its shapes.

    Raises:
        DataError: the shapes, and the reason.
    """
    try:
        yield
    except (SizeError, RuntimeError) as err:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        reason = str(err).partition("\n")[0]
        raise DataError(f"data: the network does not run on a batch {shapes}: {reason}") from err


@dataclass(frozen=True)
class Reference:
    """What a network is compared with.

    Attributes:
        network: its analog reading gives the layers' activations, and the outputs where `module` is None.
        module: the original network, which gives the outputs.
        outputs: what the outputs are compared with, in words.
        layers: what the layers are compared with, in words.
    """

    network: SpikingNetwork
    module: nn.Module | None
    outputs: str
    layers: str

    @staticmethod
    def of(snn: SpikingNetwork, source: nn.Module | None) -> "Reference":
        """Choose the reference that a `source` argument stands for.

        Args:
            snn: the network to compare.
            source: None, a SpikingNetwork with the same neurons, or an nn.Module.

        Returns:
            The reference.

        Raises:
            InputError: neither a module nor None, or a spiking network with other neurons.
        """
        own = "analog reading of the network itself"
        if source is None:
            return Reference(snn, None, own, own)
        if isinstance(source, SpikingNetwork):
            if list(source.neurons) != list(snn.neurons):
                odd = sorted(set(source.neurons) ^ set(snn.neurons)) or ["the order"]
                raise InputError(
                    f"source: expected a network with the same neurons, but {', '.join(odd[:4])} differ; "
                    "give the network as it was before tuning, or the original nn.Module"
                )
            other = "analog reading of the source network"
            return Reference(source, None, other, other)
        if isinstance(source, nn.Module):
            return Reference(snn, source, "source module", own + ": a plain module can be compared at its outputs only")
        raise InputError(f"source: expected a SpikingNetwork, an nn.Module or None, got {type(source).__name__}")

    def analog(self, inputs: Sequence[Tensor], observer: Observer | None = None) -> Any:
        """Compute the reference output; one forward pass, or two with a module and an observer.

        Args:
            inputs: tensors of one batch.
            observer: is shown the layers of the analog reading.

        Returns:
            The reference's output.
        """
        if self.module is None:
            return run(self.network, "analog", inputs, observer)
        if observer is not None:
            run(self.network, "analog", inputs, observer)
        device = next((p.device for p in self.module.parameters()), inputs[0].device)
        means = [x.mean(0) if dim else x for x, dim in zip(inputs, batch_dims(self.network, inputs), strict=True)]
        with evaluating(self.module):
            return self.module(*(x.to(device) for x in means))


def mean_of(outs: Sequence[Tensor]) -> Tensor:
    """Average over time what a neuron emitted.

    Args:
        outs: the output of every step, or the mean alone.

    Returns:
        The mean, float64, in the activation's unit.
    """
    total = outs[0].to(torch.float64)
    for emitted in outs[1:]:
        total = total + emitted
    return total / len(outs)


def reached_counts(drive: Tensor, constant: bool, theta: Tensor, start: Tensor, neuron: IFNeuron) -> Tensor:
    """Count the spikes that the mean over time of the drive, held for all steps, would have given.

    Args:
        drive: (..., C), the sum over all steps, or that of each step.
        constant: whether it is that of each step.
        theta: thresholds, () or (C,), or any shape that broadcasts.
        start: v_init alike.
        neuron: the layer.

    Returns:
        Whole numbers of the drive's shape.
    """
    if constant:
        return levels(drive, theta, start, neuron.timesteps, neuron.levels_per_step, neuron.signed)
    most = neuron.timesteps * neuron.levels_per_step
    return torch.floor(drive / theta + start).clamp_(-most if neuron.signed else 0, most)


def leaves(out: Any) -> list[Tensor]:
    """List the tensors of a network's output.

    Args:
        out: a tensor, or nested tuples and dicts of tensors.

    Returns:
        Tensors in order, those of a dict by name.
    """
    if isinstance(out, Tensor):
        return [out]
    items = [out[key] for key in sorted(out, key=str)] if isinstance(out, Mapping) else list(out)
    return [leaf for item in items for leaf in leaves(item)]
