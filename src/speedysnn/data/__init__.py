"""A name, a file or a function becomes images, events or batches of them.

`load` finds the reader of a kind in `HANDLERS`, the one table of kinds; messages and the command line's help list the
kinds from it. A kind of the user's is added with one line, `HANDLERS["noise"] = DataKind(load, "noise:SIZE")`, and wins
over a built-in one of the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from speedysnn.data.batches import Batch as Batch
from speedysnn.data.batches import iter_batches as iter_batches
from speedysnn.data.batches import steps_of as steps_of
from speedysnn.data.image_folder import load_image_folder as load_image_folder
from speedysnn.data.images import ArrayStore as ArrayStore
from speedysnn.data.images import ImageData as ImageData
from speedysnn.data.images import Loaded as Loaded
from speedysnn.data.images import parse_normalize as parse_normalize
from speedysnn.data.readers import from_function as from_function
from speedysnn.data.readers import load_cifar10 as load_cifar10
from speedysnn.data.readers import load_digits as load_digits
from speedysnn.data.readers import load_fashion_mnist as load_fashion_mnist
from speedysnn.data.readers import load_npz as load_npz
from speedysnn.errors import DataError, InputError
from speedysnn.files import FILE, MODULE, closest, kind_of

SPLITS = ("train", "test")
LoadData = Callable[[str, str], Loaded]


@dataclass(frozen=True)
class DataKind:
    """One kind of data of `HANDLERS`.

    Attributes:
        load: called with what stands after the colon and the split, "train" or "test"; returns a `Loaded`.
        form: how a user writes it, as 'npz:FILE'; square brackets hold what may be left out.
        description: what is read, in a few words, for `--help`.
        whole_text: `load` takes the whole text instead of what stands after the colon.

    Example:
        >>> import torch
        >>> from speedysnn import data
        >>> def load_grey(rest, split):
        ...     return data.Loaded(data.ArrayStore(torch.full((int(rest), 1, 4, 4), 0.5)), "grey", 0)
        >>> data.HANDLERS["grey"] = data.DataKind(load_grey, "grey:COUNT", "grey images")
        >>> data.load("grey:3")
        ImageData('grey', 3 images (1, 4, 4), 0 classes)
        >>> data.kinds_help().endswith("grey:COUNT (grey images).")
        True
        >>> del data.HANDLERS["grey"]
    """

    load: LoadData
    form: str = ""
    description: str = ""
    whole_text: bool = False

    def __call__(self, rest: str, split: str) -> Loaded:
        """Load; a row is called as a function of the user's in its place would be."""
        return self.load(rest, split)


# One row a kind. A function (what stands after the colon, split) -> Loaded may stand for a row that says no more.
HANDLERS: dict[str, DataKind | LoadData] = {
    "digits": DataKind(load_digits, "digits", "8 x 8 images that come with the package"),
    "fashion-mnist": DataKind(load_fashion_mnist, "fashion-mnist[:DIR]", "its idx files"),
    "cifar10": DataKind(load_cifar10, "cifar10[:DIR]", "its binary batches, or cifar10*.npz"),
    "npz": DataKind(load_npz, "npz:FILE", "arrays x_train, y_train, x_test, y_test"),
    "imagefolder": DataKind(load_image_folder, "imagefolder:DIR[@SIZE]", "a folder of images for each class"),
    FILE: DataKind(from_function, FILE, "called with split=...", whole_text=True),
    MODULE: DataKind(from_function, MODULE, "the same", whole_text=True),
}


def _row_of(kind: str) -> DataKind:
    """The row of a kind, its form filled in where there is none."""
    row = HANDLERS[kind]
    if not isinstance(row, DataKind):
        row = DataKind(row)
    return row if row.form else DataKind(row.load, f"{kind}[:...]", row.description, row.whole_text)


def kinds_help() -> str:
    """Every kind of data that is known now, for the help of an option.

    Returns:
        The forms of all kinds, in one sentence, with their descriptions in brackets.

    Example:
        >>> from speedysnn import data
        >>> data.kinds_help().split(", ")[0]
        'digits (8 x 8 images that come with the package)'
    """
    rows = [_row_of(kind) for kind in HANDLERS]
    return ", ".join(f"{row.form} ({row.description})" if row.description else row.form for row in rows) + "."


def load(
    spec: str, split: str = "test", *, normalize: str | None = None, limit: int | None = None, seed: int = 0
) -> ImageData:
    """Find and open the data a text names. Nothing is downloaded, and no pickle is opened.

    Args:
        spec: a kind in `HANDLERS`, with what it needs after a colon: 'digits', 'npz:FILE', 'imagefolder:DIR@32'. An
            npz array (N, T, C, H, W) is events, and so are the samples of a function's Dataset that says
            `timesteps = T`.
        split: "train" or "test".
        normalize: None, "none", "imagenet", "cifar10" or 'means/deviations', as '0.5,0.5,0.5/0.2,0.2,0.2'.
        limit: keep this many samples, chosen at random by `seed`, in that random order.
        seed: of the choice that `limit` makes.

    Returns:
        The samples of the split, read when they are asked for.

    Raises:
        InputError: an argument is not understood or out of range.
        DataError: the data is missing, empty, damaged or of the wrong shape.

    Example:
        >>> from speedysnn import data
        >>> data.load("digits", "test", limit=100)
        ImageData('digits', 100 images (1, 8, 8), 10 classes)
    """
    if split not in SPLITS:
        raise InputError(f"split must be 'train' or 'test', not {split!r}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}; leave it out to use all images")
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed: expected a whole number of 64 bits, got {seed}")
    normalizer = parse_normalize(normalize)
    try:
        loaded = _found(spec, split)
    except OSError as err:
        raise DataError(f"{spec}: {err.strerror or err}; check the path") from err
    count = len(loaded.store)
    if not count:
        raise DataError(f"{spec}: no images in its {split} split")
    positions = None if limit is None else _shuffled(count, seed)[:limit]
    return ImageData(loaded, normalizer, positions)


def _found(spec: str, split: str) -> Loaded:
    kind = kind_of(spec, HANDLERS)
    if kind not in HANDLERS:
        raise InputError(_unknown(spec, kind))
    row = _row_of(kind)
    return row(spec if row.whole_text else spec.partition(":")[2], split)


def _unknown(spec: str, kind: str) -> str:
    suffix = Path(spec).suffix
    if suffix == ".py":
        hint = f"; name the function in it too: '{spec}:FUNCTION'"
    elif suffix == ".npz":
        hint = f"; did you mean 'npz:{spec}'?"
    elif Path(spec).is_dir():
        hint = f"; did you mean 'imagefolder:{spec}'?"
    else:
        hint = closest(kind, list(HANDLERS))
    *forms, last = (repr(_row_of(known).form) for known in HANDLERS)
    return f"unknown data {spec!r}{hint}; expected {', '.join(forms)} or {last}"


def _shuffled(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def split_holdout(dataset: Dataset[Any], fraction: float, seed: int = 0) -> tuple[Dataset[Any], Dataset[Any]]:
    """Split off a random share of a dataset, the same for the same seed.

    Args:
        dataset: map-style; an `ImageData` gives two of its kind.
        fraction: share to hold out, above 0 and below 1.
        seed: of the choice.

    Returns:
        (train, held): the rest and the held-out part, at least one sample each.

    Raises:
        InputError: the fraction is out of range, or the dataset too small for it.

    Example:
        >>> from speedysnn import data
        >>> train, held = data.split_holdout(data.load("digits", "train"), 0.25)
        >>> len(train), len(held)
        (900, 300)
    """
    count = len(dataset)  # type: ignore[arg-type]
    held = round(fraction * count) if 0 < fraction < 1 else 0
    if not 0 < held < count:
        raise InputError(
            f"cannot hold out the fraction {fraction} of {count} samples; "
            "it must lie between 0 and 1 and leave at least one sample on each side"
        )
    order = _shuffled(count, seed)
    pick = dataset.subset if isinstance(dataset, ImageData) else lambda indices: Subset(dataset, indices)
    return pick(order[held:]), pick(order[:held])


def loader(
    dataset: Dataset[Any], batch_size: int = 64, shuffle: bool = False, seed: int = 0, drop_last: bool = False
) -> DataLoader[Any]:
    """Batches of a dataset, in this process, in an order that depends on the seed alone.

    Args:
        dataset: map-style.
        batch_size: samples a batch; the last batch may hold fewer.
        shuffle: take the samples in a random order, another one for every pass.
        seed: of that order.
        drop_last: leave out a last batch that is not full.

    Returns:
        A loader of torch, without worker processes.

    Raises:
        InputError: batch_size below 1.

    Example:
        >>> from speedysnn import data
        >>> batches = data.loader(data.load("digits", "test"), batch_size=100)
        >>> images, labels = next(iter(batches))
        >>> images.shape, labels.shape, len(batches)
        (torch.Size([100, 1, 8, 8]), torch.Size([100]), 6)
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size, shuffle, num_workers=0, generator=generator, drop_last=drop_last)
