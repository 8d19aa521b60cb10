"""The example network: a small batch-norm CNN for 8x8 digits with average or max pooling, its weights and their recipe.

`python -m speedysnn.assets.digits --out DIR` makes the bundled files again (needs scikit-learn). The recipe is fixed: a
seeded stratified split, a fixed number of epochs, no choice by test accuracy.
"""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from speedysnn.assets import DIGITS, asset_path, weights_name
from speedysnn.errors import InputError, SpeedySNNError

__all__ = ["NETWORKS", "avg_net", "load_digits_net", "main", "make_digits", "max_net", "train"]

_CHANNELS = (16, 16, 32, 32)
_HIDDEN = 64
TRAIN_IMAGES = 1200
EPOCHS = 40
BATCH = 64
PEAK_RATE = 1e-2
WEIGHT_DECAY = 1e-3
NOISE = 0.05

Arrays = dict[str, NDArray[np.uint8]]


def _digits_net(pool: Callable[[], nn.Module], num_classes: int) -> nn.Module:
    """Conv-bn-relu four times, a 2x2 pooling after every second one, then two linear layers."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = 1
    for number, channels in enumerate(_CHANNELS, start=1):
        layers[f"conv{number}"] = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        layers[f"bn{number}"] = nn.BatchNorm2d(channels)
        layers[f"relu{number}"] = nn.ReLU()
        if number % 2 == 0:
            layers[f"pool{number // 2}"] = pool()
        width = channels
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(width * 2 * 2, _HIDDEN, bias=False)
    layers["bn5"] = nn.BatchNorm1d(_HIDDEN)
    layers["relu5"] = nn.ReLU()
    layers["fc2"] = nn.Linear(_HIDDEN, num_classes)
    return nn.Sequential(layers)


def avg_net(num_classes: int = 10) -> nn.Module:
    """The untrained digits network with average pooling: (B, 1, 8, 8) -> (B, num_classes)."""
    return _digits_net(lambda: nn.AvgPool2d(2), num_classes)


def max_net(num_classes: int = 10) -> nn.Module:
    """The untrained digits network with max pooling: (B, 1, 8, 8) -> (B, num_classes)."""
    return _digits_net(lambda: nn.MaxPool2d(2), num_classes)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"avg": avg_net, "max": max_net}


def load_digits_net(pool: str = "avg") -> nn.Module:
    """The trained digits network, in evaluation mode; its input is `data.load("digits")`, not normalised.

    Args:
        pool: "avg" or "max".

    Raises:
        InputError: another pooling.
    """
    if pool not in NETWORKS:
        raise InputError(f"pool must be one of {', '.join(map(repr, NETWORKS))}, not {pool!r}")
    net = NETWORKS[pool]()
    net.load_state_dict(load_file(asset_path(weights_name(pool))))
    return net.eval()


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
        "script": "python -m speedysnn.assets.digits",
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
    parser = argparse.ArgumentParser(prog="python -m speedysnn.assets.digits", description="The bundled files, again.")
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
