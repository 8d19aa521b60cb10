"""Networks to time, with weights of their own size and thresholds calibrated on the images given."""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from speedysnn import convert
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork


class _Block(nn.Module):
    """Two convolutions and a shortcut without weights, which takes every second place and pads channels with zeros."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(outside), nn.ReLU()
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(outside), nn.ReLU()
        self.stride, self.more = stride, outside - inside

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.more:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        activated: Tensor = self.relu2(out + x)
        return activated


def resnet20(width: int = 16, blocks: int = 3) -> nn.Module:
    """The CIFAR ResNet (He et al. 2016) of 6 * blocks + 2 layers, random weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inside = width
    for stage in range(3):
        for block in range(blocks):
            outside = width * 2**stage
            layers.append(_Block(inside, outside, 2 if stage and not block else 1))
            inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10))


def resnet18() -> nn.Module:
    """The ResNet-18 of torchvision with an average pool in place of the max-pool, which peers do not compute alike."""
    model: nn.Module = torchvision.models.resnet18(weights=None)
    model.maxpool = nn.AvgPool2d(2)
    return model


def digits() -> nn.Module:
    """Four convolutions and two linear layers for 8x8 images."""
    layers: list[nn.Module] = []
    for inside, outside in ((1, 16), (16, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
        if outside != inside and inside > 1:
            layers.append(nn.AvgPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "digits": (digits, (1, 8, 8)),
    "resnet20": (resnet20, (3, 32, 32)),
    "resnet18": (resnet18, (3, 224, 224)),
}


def make(
    name: str, steps: int, batch: int, pixels: int | None = None, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[SpikingNetwork, Tensor]:
    """A converted network and seeded images for it.

    Raises:
        InputError: no network has that name.
    """
    if name not in NETWORKS:
        raise InputError(f"network: expected one of {', '.join(NETWORKS)}, got {name!r}")
    build, shape = NETWORKS[name]
    shape = shape if pixels is None else (shape[0], pixels, pixels)
    return converted(build, shape, steps, batch, seed, device)


def converted(
    build: Callable[[], nn.Module], shape: tuple[int, int, int], steps: int, batch: int, seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[SpikingNetwork, Tensor]:  # fmt: skip
    """The same of what `build` makes."""
    torch.manual_seed(seed)
    model = build().eval()
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():  # statistics that fit, so that activity neither dies out nor explodes
        model.train()
        model(x[: min(16, batch)])
    snn = convert.to_spiking(model.eval(), x[: min(16, batch)], steps)
    return snn.to(device), x.to(device)
