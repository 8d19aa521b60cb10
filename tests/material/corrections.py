"""Networks and comparisons that the tests of corrections share."""

import torch
from torch import Tensor, nn

from speedysnn import data
from speedysnn.convert.correct import KINDS
from speedysnn.network import SpikingNetwork

CORRECTIONS = [kind for kind in KINDS if kind != "none"]
READINGS = ("analog", "quantized", "spiking")


def digits(count: int = 256) -> Tensor:
    loaded = data.load("digits", "train")
    return torch.stack([loaded[i][0] for i in range(count)])


def outputs(snn: SpikingNetwork, *x: Tensor) -> dict[str, list[Tensor]]:
    with torch.no_grad():
        found = {reading: snn.read(reading, *x) for reading in READINGS}
    return {reading: torch.utils._pytree.tree_leaves(out) for reading, out in found.items()}


def same(a: dict[str, list[Tensor]], b: dict[str, list[Tensor]], readings=READINGS) -> bool:
    return all(torch.equal(x, y) for reading in readings for x, y in zip(a[reading], b[reading], strict=True))


def settings(snn: SpikingNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in snn.state_dict().items()}


def alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
