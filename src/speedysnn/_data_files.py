"""Data sets by name from their published files: digits, Fashion-MNIST, CIFAR-10. Never pickle, never a download."""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from speedysnn import settings
from speedysnn._data_guard import DAMAGED, PACKED, reason, require_file
from speedysnn._files import expanded
from speedysnn._images import ArrayStore, Loaded, as_labels, as_nchw
from speedysnn._npz import load_npz
from speedysnn.assets import DIGITS, asset_path
from speedysnn.errors import DataError, InputError

__all__ = ["load_cifar10", "load_digits", "load_fashion_mnist"]

VARIABLE = settings.SETTINGS["data"].variable
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package dataset-fashion-mnist puts it
_RECORD = 1 + 3 * 32 * 32  # a CIFAR-10 record: the label, then the red, green and blue planes
_PICKLED = "cifar-10-batches-py"


def load_digits(rest: str, split: str) -> Loaded:
    """The bundled digits: 1,200 training and 597 test images (1, 8, 8), ten classes."""
    if rest:
        raise InputError(
            f"'digits' comes with the package and takes nothing after a colon, got {rest!r}; use 'npz:FILE'"
        )
    return load_npz(str(asset_path(DIGITS)), split)._replace(name="digits")


def load_fashion_mnist(rest: str, split: str) -> Loaded:
    """Fashion-MNIST, 60,000 and 10,000 images (1, 28, 28), from the idx files in a folder."""
    prefix = {"train": "train", "test": "t10k"}[split]
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    folders = _folders(rest, ("fashion-mnist", "FashionMNIST/raw"), "fashion-mnist", DEBIAN)
    for folder in folders:
        files = [_either(folder, name) for name in names]
        if all(files):
            images, labels = (_read_idx(file, dims) for file, dims in zip(files, (3, 1), strict=True) if file)
            store = ArrayStore(as_nchw(images, str(folder)), as_labels(labels, len(images), str(folder)))
            return Loaded(store, "fashion-mnist", 10)
    raise DataError(
        f"fashion-mnist: no {names[0]} and {names[1]}, raw or .gz, in {_listed(folders)}. Nothing is downloaded: "
        f"put the four idx files into a folder and name it, 'fashion-mnist:DIR', or set {VARIABLE} to it"
    )


def load_cifar10(rest: str, split: str) -> Loaded:
    """CIFAR-10 (3, 32, 32), from the folder of its official binary version or from a cifar10*.npz file."""
    if rest.endswith(".npz"):
        return _cifar10_npz(Path(rest), split)
    folders = _folders(rest, ("cifar-10-batches-bin", "cifar10"), "cifar10")
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] if split == "train" else ["test_batch.bin"]
    for folder in folders:
        if any((folder / name).exists() for name in names):
            return _read_cifar10([require_file(folder / name, "a CIFAR-10 batch", "cifar10:DIR") for name in names])
        found = sorted(folder.glob("cifar10*.npz")) if folder.is_dir() else []
        if found:
            return _cifar10_npz(found[0], split)
    pickled = [folder for folder in folders for below in ("", _PICKLED) if (folder / below / "batches.meta").exists()]
    extra = (
        f"; {pickled[0]} has the Python version, whose pickles are not opened as they may run code" if pickled else ""
    )
    raise DataError(
        f"cifar10: no {names[0]} and no cifar10*.npz in {_listed(folders)}{extra}. Nothing is downloaded: unpack the "
        f"binary version (cifar-10-binary.tar.gz), and name its folder, 'cifar10:DIR', or set {VARIABLE} to it"
    )


def _cifar10_npz(path: Path, split: str) -> Loaded:
    loaded = load_npz(str(path), split)
    shape = tuple(loaded.store[0][0].shape) if loaded.classes else ()
    if shape != (3, 32, 32) or loaded.classes > 10:
        raise DataError(
            f"{path} is not CIFAR-10: expected labelled images (3, 32, 32) of 10 classes, got "
            f"{f'{shape} of {loaded.classes}' if shape else 'no labels'}; load other data as 'npz:{path}'"
        )
    return loaded._replace(name="cifar10", classes=10)


def _read_cifar10(files: Sequence[Path]) -> Loaded:
    parts = []
    for file in files:
        records = np.fromfile(file, dtype=np.uint8)
        if not records.size or records.size % _RECORD or records[::_RECORD].max() > 9:
            raise DataError(
                f"{file} is not a whole CIFAR-10 batch: {records.size:,} bytes, expected records of {_RECORD:,} bytes "
                "that begin with a label below 10; unpack the archive again"
            )
        parts.append(records.reshape(-1, _RECORD))
    records = np.concatenate(parts)
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))
    return Loaded(ArrayStore(images, torch.from_numpy(records[:, 0].astype(np.int64))), "cifar10", 10)


def _read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """One idx file: two zero bytes, type 8 (uint8), the number of dimensions, their sizes, the values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(4 + 4 * dims)
            sizes = struct.unpack(f">{dims}I", data[4:]) if len(data) == 4 + 4 * dims else ()
            if data[:4] == bytes((0, 0, 8, dims)) and sizes:  # no more than it claims, nor than the file can hold
                data += file.read(min(math.prod(sizes), PACKED * path.stat().st_size) + 1)
    except DAMAGED as err:
        raise DataError(f"{path} is not a whole gzip file ({reason(err)}); copy or download it again") from err
    if data[:4] != bytes((0, 0, 8, dims)):
        raise DataError(
            f"{path} is not an idx file of {dims} dimension(s): it begins with {data[:4]!r}; fetch it again"
        )
    if not sizes or len(data) != 4 + 4 * dims + math.prod(sizes):
        wrong = "longer than it says" if sizes and len(data) > 4 + 4 * dims + math.prod(sizes) else "cut short"
        raise DataError(f"{path} is {wrong}: {len(data):,} bytes came for the sizes {sizes}; fetch it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(sizes).copy()


def _either(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _folders(rest: str, below: tuple[str, ...], spec: str, *more: Path) -> list[Path]:
    """Where to look: the folder that was named, or each search folder, and the usual names below them."""
    if rest:
        named = expanded(rest)
        if not named.is_dir():
            came = "is a file" if named.exists() else "does not exist"
            raise DataError(f"{spec}: the folder {named} {came}; give the folder that holds the files, '{spec}:DIR'")
        roots = [named]
    else:
        variable = settings.get("data")
        roots = [*([expanded(variable)] if variable else []), Path("data"), Path()]
    return [folder for root in roots for folder in (root, *(root / name for name in below))] + ([] if rest else [*more])


def _listed(folders: Sequence[Path]) -> str:
    return ", ".join(str(folder) for folder in folders)
