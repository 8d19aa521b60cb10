"""The networks of the study: trained weights, the images all contestants are calibrated with, and the test images."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from speedysnn import data
from speedysnn.assets.digits import load_digits_net
from speedysnn.errors import SpeedySNNError
from speedysnn.sources import load_model

RESNET = Path(__file__).resolve().parents[1] / "cifar10_resnet20" / "resnet20.py"
EPOCHS, BATCH, RATE = 4, 128, 4e-3


@dataclass(frozen=True)
class Subject:
    """A trained network, modules only so that every converter can read it, and its images.

    Attributes:
        name: as in the tables.
        model: in evaluation mode.
        calibration: batches of training images, without labels; every contestant gets these, in this order.
        images: test images (N, C, H, W), used for figures only.
        labels: of the test images.
        steps: the T measured, the last the longest.
        batch: images a pass.
        timed: images of the batch that is timed.
        checks: what was verified while the network was made, name -> value.
    """

    name: str
    model: nn.Module
    calibration: list[Tensor]
    images: Tensor
    labels: Tensor
    steps: tuple[int, ...]
    batch: int
    timed: int
    checks: dict[str, float]

    @property
    def max_pool(self) -> bool:
        """Whether it pools by maximum."""
        return any(isinstance(module, nn.MaxPool2d) for module in self.model.modules())


class Block(nn.Module):
    """A residual block of ResNet-20 out of modules alone; `pick` is its weightless shortcut as a fixed convolution."""

    def __init__(self, conv1: nn.Module, bn1: nn.Module, conv2: nn.Module, bn2: nn.Module, pick: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv1, bn1, nn.ReLU()
        self.conv2, self.bn2, self.relu2 = conv2, bn2, nn.ReLU()
        self.pick = pick

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.pick(x))


def picking(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Every second pixel, zero channels on both sides: as a 1x1 convolution of zeros and ones."""
    if stride == 1:
        return nn.Identity()
    layer = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        before = (outputs - inputs) // 2
        layer.weight[before : before + inputs, :, 0, 0] = torch.eye(inputs)
    return layer


def in_modules(net: Any) -> nn.Module:
    """The ResNet-20 of reports/cifar10_resnet20 with nn.ReLU, nn.AdaptiveAvgPool2d and convolutions as shortcuts."""
    blocks = [
        Block(b.conv1, b.bn1, b.conv2, b.bn2, picking(b.conv1.in_channels, b.conv1.out_channels, b.stride))
        for layer in (net.layer1, net.layer2, net.layer3)
        for b in layer
    ]
    return nn.Sequential(net.conv1, net.bn1, nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.linear)


def small_net() -> nn.Module:
    """Fashion-MNIST, (B, 1, 28, 28) -> (B, 10): three convolutions, two linear layers, batch-norm, average pooling."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.AvgPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(64 * 9, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers)


def train(images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """The small network by Adam with a one-cycle rate, no augmentation, seed 0."""
    torch.manual_seed(0)
    net = small_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(epochs):
        for batch in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
        print(f"fashion-mnist: epoch {epoch + 1} of {epochs}", flush=True)
    return net.eval()


def tensors(images: data.ImageData) -> tuple[Tensor, Tensor]:
    """All images and labels at once."""
    samples = [images[i] for i in range(len(images))]
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])


def batches(images: Tensor, size: int) -> list[Tensor]:
    """Calibration batches."""
    return [part.clone() for part in images.split(size)]


def digits(pool: str, smoke: bool) -> Subject:
    """The bundled digits network: 1,200 training images in 12 batches, 597 test images."""
    images, labels = tensors(data.load("digits", "test", limit=48 if smoke else None, seed=0))
    calibration, _ = tensors(data.load("digits", "train", limit=64 if smoke else 1200, seed=0))
    steps = (1, 2, 4) if smoke else (1, 2, 4, 8, 16, 32, 64)
    return Subject(f"digits-{pool}", load_digits_net(pool), batches(calibration, 32 if smoke else 100), images, labels,
                   steps, 200, 8 if smoke else 200, {})  # fmt: skip


def fashion(runs: Path, smoke: bool) -> Subject:
    """A small network trained here on 60,000 images; 1,200 of them calibrate, 1,000 random test images measure."""
    try:
        load = data.load("fashion-mnist", "train", limit=512 if smoke else None, seed=0)
        images, labels = tensors(data.load("fashion-mnist", "test", limit=32 if smoke else 1000, seed=0))
    except SpeedySNNError as err:
        sys.exit(f"study: {err}")
    seen, classes = tensors(load)
    file = runs / "fashion.safetensors"
    checks = {}
    if smoke or not file.is_file():
        began = time.process_time()
        model = train(seen, classes, 1 if smoke else EPOCHS)
        checks["seconds of CPU to train"] = time.process_time() - began
        part = file.with_suffix(".part")
        save_file(model.state_dict(), part)
        part.replace(file)
    model = small_net()
    model.load_state_dict(load_file(file))
    calibration = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[: 64 if smoke else 1200]]
    return Subject("fashion-mnist", model.eval(), batches(calibration, 32 if smoke else 100), images, labels,
                   (1, 2, 4) if smoke else (1, 2, 4, 8, 16, 32, 64), 100, 4 if smoke else 64, checks)  # fmt: skip


def resnet20(folder: Path, smoke: bool) -> Subject:
    """The published CIFAR-10 checkpoint in modules; 1,024 training images calibrate, 128 random test images measure."""
    spec = f"npz:{folder / 'cifar10-subset.npz'}"
    images, labels = tensors(data.load(spec, "test", normalize="imagenet", limit=8 if smoke else 128, seed=0))
    calibration, _ = tensors(data.load(spec, "train", normalize="imagenet", limit=32 if smoke else 1024, seed=0))
    source = load_model(f"{RESNET}:make", checkpoint=folder / "resnet20-12fca82f.th").model.eval()
    with torch.no_grad():
        before = source(images[:8])
        model = in_modules(source).eval()
        apart = float((model(images[:8]) - before).norm() / before.norm())
    if apart > 1e-5:
        sys.exit(f"study: the ResNet-20 in modules differs from its source by {apart:.1e} of the norm, expected below 1e-5")
    return Subject("resnet20", model, batches(calibration, 16 if smoke else 128), images, labels,
                   (1, 2) if smoke else (1, 2, 4, 8, 16, 32), 32, 2 if smoke else 16,
                   {"modules against the source, relative error": apart})  # fmt: skip


def makers(folder: Path | None, runs: Path, smoke: bool) -> dict[str, Callable[[], Subject]]:
    """The networks that can be had here, by name."""
    out: dict[str, Callable[[], Subject]] = {
        "digits-avg": lambda: digits("avg", smoke),
        "digits-max": lambda: digits("max", smoke),
        "fashion-mnist": lambda: fashion(runs, smoke),
    }
    if folder is not None:
        out["resnet20"] = lambda: resnet20(folder, smoke)
    return out
