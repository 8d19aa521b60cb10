"""One reader a kind of data: .npz files, digits, Fashion-MNIST, CIFAR-10, and functions of the user's.

A reader is called with what stands after the colon of 'npz:FILE' and with the split, and returns a `Loaded`;
`speedysnn.data.HANDLERS` names them. Nothing is downloaded, no pickle is opened, and what a file claims of its
size is checked before memory is taken for it.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from speedysnn import settings
from speedysnn.assets import DIGITS, asset_path
from speedysnn.data.batches import steps_of
from speedysnn.data.images import ArrayStore, Loaded, Store, as_events, as_labels, as_nchw
from speedysnn.errors import DataError, InputError
from speedysnn.files import DAMAGED, PACKED, UserFunction, expanded, reason
from speedysnn.files import require_data_file as require_file

VARIABLE = settings.SETTINGS["data"].variable
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package dataset-fashion-mnist puts it
_RECORD = 1 + 3 * 32 * 32  # a CIFAR-10 record: the label, then the red, green and blue planes
_PICKLED = "cifar-10-batches-py"


def load_npz(rest: str, split: str) -> Loaded:
    """Arrays x_train, y_train, x_test, y_test of an .npz file, or x and y for either split; labels may be absent.

    Args:
        rest: the file.
        split: "train" or "test".

    Returns:
        The samples: images (C, H, W), or events (T, C, H, W), whose values are kept as they are.

    Raises:
        DataError: the file is missing, damaged, holds Python objects, or its arrays have unexpected names or shapes.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from speedysnn import data
        >>> file = Path(tempfile.mkdtemp()) / "grey.npz"
        >>> np.savez(file, x=np.zeros((4, 8, 8), np.uint8), y=np.array([0, 1, 2, 1]))
        >>> data.load(f"npz:{file}")
        ImageData('grey', 4 images (1, 8, 8), 3 classes)
    """
    path = require_file(expanded(rest), "an .npz file", "npz:FILE")
    try:
        with path.open("rb") as handle:  # opened here, as np.load leaves a damaged file open
            archive = np.load(handle, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(
                    f"{path} is a single array, expected an .npz file with x_train, y_train, x_test, y_test"
                )
            with archive:
                _require_honest(archive, path)
                return _from_archive(archive, path, split)
    except MemoryError:
        raise DataError(f"{path} does not fit into memory; save fewer images, or use 'imagefolder:DIR'") from None
    except DAMAGED as err:
        if "pickle" in str(err).lower() and zipfile.is_zipfile(path):
            raise DataError(
                f"{path} holds Python objects, which are not opened as they may run code; "
                "save plain arrays: np.savez(FILE, x_train=images, y_train=labels, ...)"
            ) from None
        raise DataError(f"{path} is not a whole .npz file ({reason(err)}); copy or save it again") from err


def load_digits(rest: str, split: str) -> Loaded:
    """The bundled digits: 1,200 training and 597 test images (1, 8, 8), ten classes.

    Args:
        rest: must be empty.
        split: "train" or "test".

    Returns:
        The images and labels of the split.

    Raises:
        InputError: something stands after the colon.

    Example:
        >>> from speedysnn import data
        >>> len(data.load_digits("", "train").store), len(data.load_digits("", "test").store)
        (1200, 597)
    """
    if rest:
        raise InputError(
            f"'digits' comes with the package and takes nothing after a colon, got {rest!r}; use 'npz:FILE'"
        )
    return load_npz(str(asset_path(DIGITS)), split)._replace(name="digits")


def load_fashion_mnist(rest: str, split: str) -> Loaded:
    """Fashion-MNIST, 60,000 and 10,000 images (1, 28, 28), from the idx files in a folder.

    Args:
        rest: the folder; empty to look where SPEEDYSNN_DATA says, in `data` and here.
        split: "train" or "test".

    Returns:
        The images and labels of the split.

    Raises:
        DataError: the files are missing or damaged.

    Example:
        >>> import struct, tempfile
        >>> from pathlib import Path
        >>> from speedysnn import data
        >>> folder = Path(tempfile.mkdtemp())
        >>> images = struct.pack(">4B3I", 0, 0, 8, 3, 2, 28, 28) + bytes(2 * 28 * 28)
        >>> _ = (folder / "t10k-images-idx3-ubyte").write_bytes(images)
        >>> _ = (folder / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">4BI2B", 0, 0, 8, 1, 2, 9, 3))
        >>> data.load(f"fashion-mnist:{folder}", "test")
        ImageData('fashion-mnist', 2 images (1, 28, 28), 10 classes)
    """
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
    """CIFAR-10 (3, 32, 32), from the folder of its official binary version or from a cifar10*.npz file.

    Args:
        rest: the folder or the file; empty to look where SPEEDYSNN_DATA says, in `data` and here.
        split: "train" or "test".

    Returns:
        The images and labels of the split.

    Raises:
        DataError: the files are missing or damaged, or hold something else.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from speedysnn import data
        >>> folder = Path(tempfile.mkdtemp())
        >>> record = bytes([7]) + bytes(3 * 32 * 32)  # the label, then the red, green and blue planes
        >>> _ = (folder / "test_batch.bin").write_bytes(2 * record)
        >>> data.load(f"cifar10:{folder}", "test")
        ImageData('cifar10', 2 images (3, 32, 32), 10 classes)
    """
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


def from_function(spec: str, split: str) -> Loaded:
    r"""The data that a function of the user's returns, checked.

    Args:
        spec: 'FILE.py:FUNCTION' or 'package.module:FUNCTION'; the function is called with split=... and returns a
            map-style Dataset, images (N, ...), or (images, labels).
        split: "train" or "test".

    Returns:
        The samples; events where the Dataset says `timesteps = T`.

    Raises:
        DataError: the function is missing, fails, takes no `split`, or returns something else.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from speedysnn import data
        >>> file = Path(tempfile.mkdtemp()) / "own_data.py"
        >>> _ = file.write_text("import torch\ndef make(split): return torch.zeros(6, 1, 4, 4)", encoding="utf-8")
        >>> len(data.load(f"{file}:make"))
        6
    """
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


def _require_honest(archive: Any, path: Path) -> None:
    """Refuse arrays that claim another size than they have, before memory is taken for them.

    Raises:
        DataError: the array, its claim, and what is there.
    """
    for info in archive.zip.infolist():
        if not info.filename.endswith(".npy"):
            raise DataError(f"{path} holds {info.filename[:80]!r}, which is no array; save arrays alone with np.savez")
        with archive.zip.open(info) as member:
            start = io.BytesIO(member.read(2**16))
        version = np.lib.format.read_magic(start)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(start)
        claimed = math.prod(shape) * dtype.itemsize + start.tell()
        if min(shape, default=0) < 0 or (not dtype.hasobject and claimed != info.file_size):
            raise DataError(
                f"{path}: {info.filename} claims the shape {shape} of {dtype}, {claimed:,} bytes, but holds "
                f"{info.file_size:,}; copy or save it again"
            )
        if info.file_size > PACKED * path.stat().st_size:
            raise DataError(f"{path}: {info.filename} claims more than the file can hold; copy or save it again")


def _from_archive(archive: Any, path: Path, split: str) -> Loaded:
    keys = list(archive.keys())
    suffix = f"_{split}" if f"x_{split}" in keys else ""
    if f"x{suffix}" not in keys:
        other = next((name for name in ("train", "test") if f"x_{name}" in keys), None)
        advice = f"; for its other part ask for split={other!r}" if other else ""
        raise DataError(
            f"{path} holds {', '.join(keys) or 'no arrays'}, expected x_{split} and y_{split} (or x and y){advice}"
        )
    where = f"{path}, x{suffix}"
    array = archive[f"x{suffix}"]
    timesteps = array.shape[1] if array.ndim == 5 else 0
    images = as_events(array, where) if timesteps else as_nchw(array, where)
    if f"y{suffix}" not in keys:
        return Loaded(ArrayStore(images, None, bool(timesteps)), path.stem, 0, timesteps)
    labels = as_labels(archive[f"y{suffix}"], len(images), f"{path}, y{suffix}")
    others = [archive[key] for key in ("y", "y_train", "y_test") if key in keys and key != f"y{suffix}" and suffix]
    largest = max([int(labels.max())] + [int(y.max()) for y in others if y.size and y.dtype.kind in "iuf"])
    return Loaded(ArrayStore(images, labels, bool(timesteps)), path.stem, largest + 1, timesteps)


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
