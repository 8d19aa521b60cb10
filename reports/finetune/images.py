"""CIFAR-10 inputs of the study: the lossless subset, and the JPEG ones as further inputs without labels."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
SPREAD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Cifar:
    """Normalised images: to tune on, held out, further ones, and for the test."""

    tune: Tensor
    held: TensorDataset
    further: Tensor
    test: TensorDataset

    def training(self, copies: int, more: int) -> Dataset[tuple[Tensor, ...]]:
        """`copies` of the lossless images and `more` of the others, chosen by seed 1."""
        order = torch.randperm(len(self.further), generator=torch.Generator().manual_seed(1))
        return TensorDataset(torch.cat([*[self.tune] * copies, self.further[order[:more]]]))


def cifar(folder: Path, runs: Path, *, further: bool = True) -> Cifar:
    """The images in `folder`; a tenth of the lossless training ones is held out by seed 0, with its JPEG twins."""
    file = np.load(folder / "cifar10-subset.npz")
    x, y = file["x_train"], file["y_train"]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).numpy()
    held, tune = order[: len(x) // 10], order[len(x) // 10 :]
    others = _without(_jpeg(folder, runs), x[held]) if further else x[:0]
    return Cifar(
        _normal(x[tune]), TensorDataset(_normal(x[held]), torch.from_numpy(y[held])), _normal(others),
        TensorDataset(_normal(file["x_test"]), torch.from_numpy(file["y_test"])),
    )  # fmt: skip


def _normal(pixels: np.ndarray) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 255
    return (x - MEAN) / SPREAD


def _jpeg(folder: Path, runs: Path) -> np.ndarray:
    """All JPEG images in the order of their names, (50000, 32, 32, 3); decoded once."""
    kept = runs / "jpeg.npy"
    if not kept.is_file():
        with tarfile.open(folder / "cifar10-train-jpeg.tar.xz") as archive:
            members = [m for m in archive if m.isfile() and m.name.endswith(".jpg")]
            read = {m.name: _decoded(archive.extractfile(m)) for m in members}
        np.save(kept, np.stack([read[name] for name in sorted(read)]))
    out: np.ndarray = np.load(kept)
    return out


def _decoded(file: IO[bytes] | None) -> np.ndarray:
    assert file is not None
    return np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))


def _without(images: np.ndarray, held: np.ndarray) -> np.ndarray:
    """The images but for each held-out one's nearest, which is its own JPEG version."""
    ours, theirs = (torch.from_numpy(x.reshape(len(x), -1)) for x in (held, images))
    nearest, least = torch.zeros(len(ours), dtype=torch.long), torch.full((len(ours),), torch.inf)
    for start in range(0, len(theirs), 5000):
        distance, index = torch.cdist(ours.float(), theirs[start : start + 5000].float()).min(1)
        nearest = torch.where(distance < least, index + start, nearest)
        least = torch.minimum(distance, least)
    keep = np.ones(len(images), dtype=bool)
    keep[nearest.numpy()] = False
    return images[keep]
