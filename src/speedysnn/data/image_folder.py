"""Folders of image files, one folder a class; each file is read when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from speedysnn.data.images import Loaded
from speedysnn.errors import DataError, InputError
from speedysnn.files import expanded, reason
from speedysnn.sources import import_torchvision

_PACKED = 3000  # pixels that no format of photographs puts into one byte
# Folders a split may be in, best first.
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "valid")}


@dataclass(frozen=True)
class FolderStore:
    """Image files and their labels; all RGB of one size, or resized and cropped to `side`."""

    files: tuple[tuple[str, int], ...]
    root: Path
    side: int | None
    size: tuple[int, int]  # width, height of the first file

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def __getitem__(self, position: int, /) -> Any:
        """(image, label); the image (3, H, W) in [0, 1].

        Raises:
            DataError: the file is no image, or of another size than the first one.
        """
        path, label = self.files[position]
        image = _open(path)
        if self.side:
            image = _crop(image, self.side)
        elif image.size != self.size:
            first, here = (f"{width}x{height}" for width, height in (self.size, image.size))
            raise DataError(
                f"{path} is {here} (width x height), the first image {first}; networks need one size: "
                f"give it, as 'imagefolder:{self.root}@{min(*self.size, *image.size)}', to resize and crop the centre"
            )
        return _to_tensor(image), label


def load_image_folder(rest: str, split: str) -> Loaded:
    """Image files by class: DIR/train for training, DIR/test, DIR/val or DIR/valid for testing, else DIR itself.

    Args:
        rest: 'DIR', or 'DIR@SIZE' to resize every image and crop its centre to SIZE x SIZE.
        split: "train" or "test".

    Returns:
        The files and their labels; a file is read when it is asked for.

    Raises:
        DataError: the folder is missing, holds no images, or its splits have other classes.
        InputError: the size is below 1.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from speedysnn import data
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (root / name).mkdir()
        ...     Image.new("RGB", (8, 6)).save(root / name / "0.png")
        >>> data.load(f"imagefolder:{root}@4").image_shape
        (3, 4, 4)
    """
    path, side = _parse(rest)
    root = expanded(path)
    if not rest or not root.is_dir():
        came = "is a file" if root.is_file() else "does not exist"
        raise DataError(f"imagefolder: the folder {path or '(none given)'} {came}; expected 'imagefolder:DIR'")
    folder = _split_folder(root, split)
    found = _image_folder(folder)
    training = root / "train"
    if folder != training and training.is_dir() and found.classes != _class_names(training):
        raise DataError(
            f"{folder} has the classes {', '.join(found.classes[:5])}, {training} has "
            f"{', '.join(_class_names(training)[:5])}; labels are counted from the sorted folder names, "
            "so both need the same folders"
        )
    files = tuple((str(file), int(label)) for file, label in found.samples)
    return Loaded(FolderStore(files, root, side, _open(files[0][0]).size), root.name, len(found.classes))


def _parse(rest: str) -> tuple[str, int | None]:
    path, at, side = rest.rpartition("@")
    if not at or not side.isdigit():
        return rest, None
    if int(side) < 1:
        raise InputError(f"imagefolder:{rest}: the size after @ must be at least 1")
    return path, int(side)


def _split_folder(root: Path, split: str) -> Path:
    found = [root / name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()]
    if found:
        return found[0]
    others = [name for names in SPLIT_FOLDERS.values() for name in names if (root / name).is_dir()]
    if others:
        raise DataError(
            f"{root} has {' and '.join(others)}, but no {' or '.join(SPLIT_FOLDERS[split])} for split={split!r}; "
            f"ask for the other split, or name one folder for both, as 'imagefolder:{root / others[0]}'"
        )
    return root


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def _image_folder(folder: Path) -> Any:
    import_torchvision()
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(folder))
    except (FileNotFoundError, PermissionError) as err:
        raise DataError(
            f"{folder} is not a folder of images: expected one folder a class with image files in each "
            f"({reason(err)})"
        ) from err


def _open(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            _require_pixels(path, image.size)
            return image.convert("RGB")
    except DataError:
        raise
    except Image.DecompressionBombError as err:
        raise DataError(f"{path} was not opened: {err} Remove it, or make it smaller") from err
    except Exception as err:  # a damaged file ends in errors of several decoders
        raise DataError(f"{path} is damaged or not an image ({err}); remove or replace it") from err


def _require_pixels(path: str, size: tuple[int, int]) -> None:
    """Refuse a picture that claims far more pixels than its file could hold, before memory is taken for them."""
    held = Path(path).stat().st_size
    if size[0] * size[1] > 2**20 + _PACKED * held:
        raise DataError(
            f"{path} was not opened: {held:,} bytes claim {size[0]}x{size[1]} pixels, which would fill the memory; "
            "remove or replace it"
        )


def _crop(image: Image.Image, side: int) -> Image.Image:
    from torchvision.transforms import functional

    resized = functional.resize(image, [side])
    cropped: Image.Image = functional.center_crop(resized, [side, side])
    return cropped


def _to_tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels.permute(2, 0, 1).float().div_(255).contiguous()
