"""A network of several kinds of layers, and what tests of its modules ask of it."""

from typing import Any

import torch
from torch import Tensor, nn

from speedysnn import convert
from speedysnn.network import SpikingNetwork

READINGS = ("analog", "quantized", "spiking")
X = torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def network(delay: Any = 0) -> SpikingNetwork:
    """A convolution, a batch-norm, a pool that is exact in rate, a linear layer and a norm."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3), nn.LayerNorm(3),
    ).eval()  # fmt: skip
    return convert.to_spiking(ann, X, timesteps=4, delay=delay, allow_hybrid=True)


def answers(snn: SpikingNetwork) -> list[Tensor]:
    with torch.no_grad():
        return [snn.read(reading, X) for reading in READINGS]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def layer(snn: SpikingNetwork, kind: type[nn.Module]) -> tuple[str, Any]:
    """The first layer of a class, by its name in `snn.layers`."""
    return next((name, module) for name, module in snn.layers.items() if isinstance(module, kind))
