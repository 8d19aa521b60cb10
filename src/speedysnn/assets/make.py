"""Make the bundled files again: `python -m speedysnn.assets.make --out DIR` (needs scikit-learn).

The recipe is fixed: a seeded stratified split, a fixed number of epochs, no choice by test accuracy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from speedysnn.assets import DIGITS, weights_name
from speedysnn.assets.digits import NETWORKS
from speedysnn.errors import SpeedySNNError

__all__ = ["main", "make_digits", "train"]

TRAIN_IMAGES = 1200
EPOCHS = 40
BATCH = 64
PEAK_RATE = 1e-2
WEIGHT_DECAY = 1e-3
NOISE = 0.05

Arrays = dict[str, NDArray[np.uint8]]


def make_digits(seed: int = 0) -> Arrays:
    """The 1,797 scikit-learn digits as uint8 (N, 8, 8), 0..16 stretched to 0..255, in a stratified split 1200 / 597.

    Raises:
        SpeedySNNError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as err:
        raise SpeedySNNError("making the bundled files needs scikit-learn: pip install scikit-learn") from err
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    parts = train_test_split(
        pixels, labels.astype(np.uint8), train_size=TRAIN_IMAGES, stratify=labels, random_state=seed
    )
    return dict(zip(("x_train", "x_test", "y_train", "y_test"), parts, strict=True))


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by -1, 0 or 1 pixels along both axes and add a little noise; shape (B, 1, 8, 8) is kept."""
    count, size = len(images), images.shape[-1]
    offsets = torch.randint(0, 3, (2, count, 1), generator=generator)
    rows, columns = offsets + torch.arange(size)
    padded = F.pad(images, (1, 1, 1, 1))[:, 0]
    shifted = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return shifted[:, None] + NOISE * torch.randn(images.shape, generator=generator)


def _accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    net.eval()
    with torch.no_grad():
        return float((net(images).argmax(1) == labels).double().mean())


def train(pool: str, arrays: Arrays, seed: int = 0) -> tuple[nn.Module, float]:
    """Train one digits network by the fixed recipe.

    Args:
        pool: "avg" or "max".
        arrays: what `make_digits` returned.
        seed: of the weights, the order and the augmentation.

    Returns:
        The network in evaluation mode and its accuracy on the test images, measured once, at the end.
    """
    images, test = (torch.from_numpy(arrays[key]).float().div(255)[:, None] for key in ("x_train", "x_test"))
    labels, test_labels = (torch.from_numpy(arrays[key]).long() for key in ("y_train", "y_test"))
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = NETWORKS[pool]()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    net.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            loss = F.cross_entropy(net(_augment(images[chosen], generator)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net, _accuracy(net, test, test_labels)


def _save(net: nn.Module, path: Path, accuracy: float, seed: int) -> None:
    metadata = {
        "script": "python -m speedysnn.assets.make",
        "data": f"{DIGITS}, 1200 training images (scikit-learn's load_digits)",
        "seed": str(seed),
        "epochs": str(EPOCHS),
        "torch": torch.__version__,
        "test_accuracy": f"{accuracy:.4f}",
        "test_images": "597",
    }
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, path, metadata)
    path.chmod(0o644)  # safetensors writes files only the owner may read


def main(argv: list[str] | None = None) -> None:
    """Write the digits and both trained networks into a folder."""
    parser = argparse.ArgumentParser(prog="python -m speedysnn.assets.make", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    arrays = make_digits(options.seed)
    np.savez_compressed(options.out / DIGITS, **arrays)  # type: ignore[arg-type]
    for pool in NETWORKS:
        net, accuracy = train(pool, arrays, options.seed)
        _save(net, options.out / weights_name(pool), accuracy, options.seed)
        sys.stdout.write(f"{weights_name(pool)}: {accuracy:.2%} of 597 test images\n")


if __name__ == "__main__":
    main()
