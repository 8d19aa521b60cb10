"""The networks of the study: a VGG-like and a residual one for 28 x 28 grey images, about 16 million MACs each."""

import torch.nn.functional as F
from torch import Tensor, nn


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


def vgg(num_classes: int = 10) -> nn.Module:
    """Three stages of two convolutions with 24, 48 and 96 channels, max-pooling between, the last average-pooled."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 24), (24, 48), (48, 96)):
        layers += [_layer(inputs, outputs), nn.ReLU(), _layer(outputs, outputs), nn.ReLU()]
        layers.append(nn.AdaptiveAvgPool2d(1) if outputs == 96 else nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, num_classes))


class Block(nn.Module):
    """conv-bn-relu-conv-bn, add, relu; the shortcut is a convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _layer(inputs, outputs, stride), _layer(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def resnet(num_classes: int = 10) -> nn.Module:
    """A stem of 16 channels, one block of 16, two of 32 and two of 64; 11 neuron layers."""
    sizes = ((16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
    return nn.Sequential(
        _layer(1, 16), nn.ReLU(), *(Block(*size) for size in sizes), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, num_classes),
    )  # fmt: skip
