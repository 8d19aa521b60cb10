"""Batches out of whatever holds data: a dataset, a loader, tensors, or any iterable of batches.

`iter_batches` is what every part of the package reads data with. One batch may be a tensor, inputs with labels, or a
dictionary; `parse` makes each a `Batch`, and everything is checked before it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from speedysnn.errors import DataError, InputError, SpeedySNNError
from speedysnn.files import reason

INPUT_KEYS = ("image", "images", "pixel_values", "x", "input", "inputs", "img", "data")
LABEL_KEYS = ("label", "labels", "y", "target", "targets")

_EXPECTED = "a Dataset, a DataLoader, a tensor (B, ...), a tuple (inputs, labels) of tensors, or an iterable of batches"


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward call and, where known, the class of each image, int64 (B,).

    `targets` is whatever else the data says of the images: masks, numbers, boxes; None where it says nothing.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None
    targets: Any = None

    def __repr__(self) -> str:
        """Show the shapes, not the values."""
        labels = None if self.labels is None else tuple(self.labels.shape)
        return f"Batch(inputs={[tuple(value.shape) for value in self.inputs]}, labels={labels})"


def steps_of(data: Any) -> int:
    """T where a dataset's samples are events (T, ...), as its attribute `timesteps` says, else 0.

    Args:
        data: anything; loaders and subsets are looked through to the dataset below.

    Returns:
        T, 0 where the samples are static or nothing says so.

    Example:
        >>> from speedysnn import data
        >>> data.steps_of(data.load("digits", "test", limit=5))
        0
    """
    while isinstance(data, (Dataset, DataLoader)):
        steps = getattr(data, "timesteps", None)
        if isinstance(steps, int) and not isinstance(steps, bool):
            return steps
        data = getattr(data, "dataset", None)
    return 0


def inputs_of(model: nn.Module) -> int | None:
    """Count the tensors that a network takes.

    Args:
        model: the network.

    Returns:
        Their number; None where `forward` leaves it open by `*args` or by defaults.

    Example:
        >>> from torch import nn
        >>> from speedysnn.data.batches import inputs_of
        >>> inputs_of(nn.Sequential(nn.ReLU()))
        1
    """
    taken = list(inspect.signature(model.forward).parameters.values())
    named = [item for item in taken if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    is_open = any(item.kind is item.VAR_POSITIONAL for item in taken) or any(
        item.default is not item.empty for item in named
    )
    return None if is_open or not named else len(named)


def drawn(there: int, wanted: int) -> list[int]:
    """Draw images from all of a data set, the same in every call: sorted data have all their classes in the choice.

    Args:
        there: how many images the data set has.
        wanted: how many are drawn, or all where there are fewer.

    Returns:
        Their positions, ascending.

    Example:
        >>> from speedysnn.data.batches import drawn
        >>> drawn(3, 8)
        [0, 1, 2]
        >>> len(set(drawn(1000, 8)))
        8
    """
    if there <= wanted:
        return list(range(there))
    order = torch.randperm(there, generator=torch.Generator().manual_seed(0))
    return sorted(order[:wanted].tolist())


def iter_batches(
    data: Any,
    *,
    batch_size: int = 64,
    what: str = "calibration data",
    events: Literal["mean", "steps"] = "mean",
    ranks: Sequence[int] | None = None,
    inputs: int | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[Batch]:
    """Batches from a Dataset, a DataLoader, a tensor (B, ...), a tuple (x, y), or any iterable of batches.

    A batch is a tensor, a list or tuple whose last element may be the labels, or a dict with keys such as "image" and
    "label". A last element that is a 1-D integer tensor is the labels; a floating one is one more input. Events are
    known by the attribute `timesteps` of their dataset, whose batches (B, T, ...) are put time first; else by `ranks`;
    else by labels, which must be as many as the second dimension is long and not as the first. They become floats.

    Where `inputs` or `ranks` say how many tensors the network takes, these are the first of a batch; what follows are
    targets of any kind, classes where the first of them is a 1-D integer tensor.

    Args:
        data: where the batches come from; a tuple is one big batch, a list a sequence of batches.
        batch_size: used where the data is not in batches yet.
        what: how messages name the data.
        events: what to give for events, their "mean" over time (B, ...), or all "steps" (T, B, ...).
        ranks: dimensions of each static input with its batch; an input of one more is events (T, B, ...).
        inputs: tensors that the network takes, by default as many as `ranks`; None: told by the rules above.
        dtype: what events become; None: float32 where they are no floats.

    Yields:
        The batches, each checked.

    Raises:
        InputError: batch_size below 1, or another word for `events`.
        DataError: nothing in it, NaN or infinity, something that is not a tensor, unequal lengths.

    Example:
        >>> import torch
        >>> from speedysnn import data
        >>> pair = (torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 0, 1, 0]))
        >>> list(data.iter_batches(pair, batch_size=3))
        [Batch(inputs=[(3, 1, 8, 8)], labels=(3,)), Batch(inputs=[(2, 1, 8, 8)], labels=(2,))]
        >>> list(data.iter_batches([{"image": torch.rand(2, 4)}]))
        [Batch(inputs=[(2, 4)], labels=None)]
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    if events not in ("mean", "steps"):
        raise InputError(f'events: expected "mean" or "steps", got {events!r}')
    used_up = isinstance(data, Iterator)
    steps, index = steps_of(data), -1
    count = len(ranks) if inputs is None and ranks is not None else inputs
    for index, raw in enumerate(_read(_raw_batches(data, batch_size, what, ranks, count), what)):
        where = f"{what}, batch {index}"
        batch = parse(raw, where, count)
        batch = batch if not steps else _time_first(batch, steps, where)
        dims = _batch_dims(batch, ranks, steps)
        pairs = zip(batch.inputs, dims, strict=True)
        batch = replace(batch, inputs=tuple(_floats(x, dtype) if dim else x for x, dim in pairs))
        _check(batch, dims, where)
        yield batch if events == "steps" else _mean(batch, dims)
    if index < 0:
        advice = (
            "it is an iterator that gives its batches once and is used up; pass a list, a Dataset or a DataLoader"
            if used_up
            else f"expected {_EXPECTED} with at least one image"
        )
        raise DataError(f"{what}: no batch in it; {advice}")


def _floats(events: Tensor, dtype: torch.dtype | None) -> Tensor:
    return events.to(dtype or (events.dtype if events.is_floating_point() else torch.float32))


def _raw_batches(
    data: Any, batch_size: int, what: str, ranks: Sequence[int] | None, inputs: int | None
) -> Iterable[Any]:
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=batch_size)
    if isinstance(data, (Tensor, tuple, Mapping, Batch)):
        return _chunks(parse(data, what, inputs), batch_size, what, ranks)
    if isinstance(data, (str, bytes)):
        raise DataError(f"{what}: got the text {data!r}; load it first, as speedysnn.data.load({data!r})")
    if not isinstance(data, Iterable) or type(data).__module__.partition(".")[0] == "numpy":
        array = "; make it a tensor with torch.from_numpy" if hasattr(data, "__array__") else ""
        raise DataError(f"{what}: got {type(data).__name__}, expected {_EXPECTED}{array}")
    return data


def _chunks(whole: Batch, batch_size: int, what: str, ranks: Sequence[int] | None) -> Iterator[Batch]:
    dims = _batch_dims(whole, ranks, 0)
    count = _check_lengths(whole, dims, what)
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        inputs = tuple(x.narrow(dim, start, size) for x, dim in zip(whole.inputs, dims, strict=True))
        own = slice(start, start + size)
        yield Batch(inputs, None if whole.labels is None else whole.labels[own], _part(whole.targets, own))


def _part(targets: Any, own: slice) -> Any:
    """The targets of some images: of each tensor in a tuple, or of a list that holds one an image."""
    if isinstance(targets, tuple):
        return tuple(_part(item, own) for item in targets)
    return targets[own] if isinstance(targets, (Tensor, list)) else targets


def _read(batches: Iterable[Any], what: str) -> Iterator[Any]:
    """Yield the batches; an error in the user's dataset becomes a `DataError` that says which batch it was."""
    index = 0
    try:
        for batch in batches:
            yield batch
            index += 1
    except SpeedySNNError:
        raise
    except Exception as err:  # the user's dataset may raise anything
        raise DataError(f"{what}: reading batch {index} failed: {type(err).__name__}: {reason(err)}") from err


def parse(raw: Any, where: str, inputs: int | None = None) -> Batch:
    """One batch in any of the accepted forms as a `Batch`; `inputs` are the tensors that the network takes.

    Raises:
        DataError: it has another form; the message begins with `where`.
    """
    if isinstance(raw, Batch):
        return raw
    if isinstance(raw, Tensor):
        return Batch((raw,))
    if isinstance(raw, Mapping):
        return _parse_dict(raw, where, inputs)
    if isinstance(raw, Sequence) and not isinstance(raw, (str, bytes)):
        return _parse_sequence(raw, where) if inputs is None or not raw else _taken(raw, where, inputs)
    expected = f"expected a tensor, (inputs, labels), or a dict with {_keys(INPUT_KEYS)}"
    raise DataError(f"{where}: got {_kind(raw)}, {expected}")


def _taken(raw: Sequence[Any], where: str, count: int) -> Batch:
    """The first tensors as inputs, as many as the network takes, and what follows as targets."""
    inputs: list[Tensor] = []
    rest = list(raw)
    while rest and len(inputs) < count and rest[0] is not None:
        if inputs and isinstance(rest[0], int):
            break
        inputs.extend(_inputs(rest.pop(0), where))
    if rest and isinstance(rest[0], int):
        return _parse_sequence(raw, where)  # which says what is wrong with it
    return Batch(tuple(inputs), *_told(rest))


def _told(rest: Sequence[Any]) -> tuple[Tensor | None, Any]:
    """Labels and other targets out of what the data says of the images."""
    labels = rest[0] if rest and _are_labels(rest[0]) else None
    others = tuple(item for item in rest[labels is not None :] if item is not None)
    return labels, (others[0] if len(others) == 1 else others or None)


def _parse_dict(raw: Mapping[Any, Any], where: str, inputs: int | None) -> Batch:
    images = next((raw[key] for key in INPUT_KEYS if key in raw), None)
    if images is None:
        have = ", ".join(map(repr, raw)) or "none"
        raise DataError(f"{where}: a dict with the keys {have}; the images must be below one of {_keys(INPUT_KEYS)}")
    labels = next((raw[key] for key in LABEL_KEYS if key in raw), None)
    if inputs is not None:
        return Batch(_inputs(images, where), *_told([labels]))
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


def _inputs(value: Any, where: str) -> tuple[Tensor, ...]:
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, (tuple, list)) and value and all(isinstance(part, Tensor) for part in value):
        return tuple(value)
    array = "; make it a tensor with torch.from_numpy" if hasattr(value, "__array__") else ""
    raise DataError(f"{where}: got {_kind(value)} where a tensor of inputs was expected{array}")


def _are_labels(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and not (value.is_floating_point() or value.is_complex())


def _labels(value: Any, where: str) -> Tensor:
    if _are_labels(value):
        return value  # type: ignore[no-any-return]
    raise DataError(f"{where}: labels are {_kind(value)}, expected a 1-D tensor of whole numbers, one an image")


def _kind(value: Any) -> str:
    return f"a tensor of {value.dtype}, {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _keys(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:4]))


def _time_first(batch: Batch, steps: int, where: str) -> Batch:
    """Events (B, T, ...) of a dataset as (T, B, ...)."""
    if any(x.ndim < 2 or x.shape[1] != steps for x in batch.inputs):
        came = ", ".join(str(tuple(x.shape)) for x in batch.inputs)
        raise DataError(f"{where}: the dataset says timesteps={steps}; expected a batch (B, {steps}, ...), got {came}")
    return replace(batch, inputs=tuple(x.transpose(0, 1) for x in batch.inputs))


def _batch_dims(batch: Batch, ranks: Sequence[int] | None, steps: int) -> list[int]:
    """The dimension of each input that counts the images: 1 where it is events (T, B, ...), else 0."""
    if steps:
        return [1] * len(batch.inputs)
    if ranks is not None and len(ranks) == len(batch.inputs):
        return [int(x.ndim == rank + 1) for x, rank in zip(batch.inputs, ranks, strict=True)]
    if batch.labels is None:
        return [0] * len(batch.inputs)
    count = len(batch.labels)
    return [int(x.ndim > 2 and len(x) != count and x.shape[1] == count) for x in batch.inputs]


def over_steps(batch: Batch) -> Batch:
    """Events (T, B, ...) as their mean over the steps, (B, ...), in float32 at least."""
    return _mean(batch, [1] * len(batch.inputs))


def _mean(batch: Batch, dims: Sequence[int]) -> Batch:
    if not any(dims):
        return batch
    inputs = (x.to(torch.promote_types(x.dtype, torch.float32)).mean(0) if dim else x
              for x, dim in zip(batch.inputs, dims, strict=True))  # fmt: skip
    return replace(batch, inputs=tuple(inputs))


def _check(batch: Batch, dims: Sequence[int], where: str) -> None:
    """Inputs must be finite floats (or indices), as many as labels."""
    _check_lengths(batch, dims, where)
    for value in batch.inputs:
        if value.dtype == torch.uint8:
            raise DataError(f"{where}: inputs are uint8; scale them as in training, for example images.float() / 255, "
                            "or give images.float() to a network that scales them itself")  # fmt: skip
        if value.is_floating_point() and not _finite(value):
            bad = int((~value.isfinite()).sum())
            raise DataError(
                f"{where}: {bad} of {value.numel()} values are NaN or infinity; remove or repair those images"
            )


def _check_lengths(batch: Batch, dims: Sequence[int], where: str) -> int:
    """The number of images, the same in every input and in the labels."""
    if any(value.ndim <= dim or value.shape[dim] == 0 for value, dim in zip(batch.inputs, dims, strict=True)):
        raise DataError(f"{where}: an input of shape {[tuple(value.shape) for value in batch.inputs]} holds no image")
    parts = batch.inputs if batch.labels is None else (*batch.inputs, batch.labels)
    counts = {value.shape[dim] for value, dim in zip(parts, (*dims, 0), strict=False)}
    if len(counts) > 1:
        raise DataError(
            f"{where}: inputs and labels differ in length ({', '.join(str(tuple(value.shape)) for value in parts)}); "
            "each image needs one label, and a sequence of batches must be a list, not a tuple"
        )
    return counts.pop()


def _finite(x: Tensor) -> bool:
    """Whether all values are finite. Their sum is tried first: where it is finite, all of them are."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())
