"""Images or events from an .npz file: its claims are checked before memory is taken, no pickle is opened."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from speedysnn._data_guard import DAMAGED, PACKED, reason, require_file
from speedysnn._files import expanded
from speedysnn._images import ArrayStore, Loaded, as_events, as_labels, as_nchw
from speedysnn.errors import DataError


def load_npz(rest: str, split: str) -> Loaded:
    """Arrays x_train, y_train, x_test, y_test of an .npz file, or x and y for either split; labels may be absent.

    x holds images, or events (N, T, C, H, W), whose values are kept as they are.
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
