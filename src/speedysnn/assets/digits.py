"""The example network: a small batch-norm CNN for 8x8 digits, with average or max pooling, and its trained weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from safetensors.torch import load_file
from torch import nn

from speedysnn.assets import asset_path, weights_name
from speedysnn.errors import InputError

__all__ = ["NETWORKS", "avg_net", "load_digits_net", "max_net"]

_CHANNELS = (16, 16, 32, 32)
_HIDDEN = 64


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
