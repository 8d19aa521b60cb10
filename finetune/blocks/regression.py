"""Regression of weights: every layer learns, in closed form, to give the source's drive from the inputs it really gets.

With x' what a layer reads in our network (its mean over time) and z what it gives in the source for the same images,

    W, b = argmin sum |W x' + b - z|^2 + r tr(G) / n |W - W0|^2

over images and places, G the covariance of the n values x' that make up one output and W0 the present weights. The
errors of the layers before are partly a linear mixture of their outputs, and this takes that part off. The ridge r of a
layer is the one of `RIDGES` with the least error on images that did not choose the weights, and a layer that none of
them makes better there is left alone. Least squares shrinks the drive; matching the moments of the neurons that follow
gives back its spread.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from speedysnn.convert.matching import ImageWalk, Part, Walk, chunk, halves
from speedysnn.display import track
from speedysnn.execution.interpreter import Value
from speedysnn.execution.module import is_plain
from speedysnn.graph.blocks import Block
from speedysnn.graph.ir import Node
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Reading
from speedysnn.settings import repeatable
from speedysnn.torch_utils import windows

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
MOST_UNKNOWNS = 4608  # values of one output of a layer, above which its covariance costs more than it gives
_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@repeatable
def regress(
    snn: SpikingNetwork,
    source: SpikingNetwork,
    inputs: Sequence[Tensor],
    *,
    reading: Reading | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Fit weights and biases to the source in graph order, layer by layer, and match the moments of each neuron layer.

    Linear layers and convolutions with zeros for padding are fitted; others stay.

    Args:
        snn: the network; its weights, biases, thresholds, amplitudes and offsets change.
        source: the network before any tuning, read analog.
        inputs: images that choose and check, (B, ...) an input; at most 256 are used.
        reading: the one that is fitted, None for the network's own.
        progress: show progress.

    Returns:
        By layer the ridge that was taken, 0 where the layer was left alone.

    Reference: he2017channel
    """
    walk = ImageWalk(snn, inputs, reading, source)
    taken: dict[str, float] = {}
    with torch.no_grad():
        for block in track(walk.blocks, "regress weights", enabled=progress, total=len(walk.blocks)):
            taken |= _fit_block(walk, block)
            walk.advance(block)
    snn.reset()
    return taken


def regress_block(
    snn: SpikingNetwork,
    source: SpikingNetwork,
    block: Block,
    sizes: Mapping[str, int],
    clean: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
) -> None:
    """The same for one block in the quantized reading, from the values of images that enter it.

    Args:
        snn: the network, which changes.
        source: the network before any tuning.
        block: of its graph.
        sizes: elements of every value for one image.
        clean: what enters the block in the source, (B, ...) by name.
        ours: what enters it in `snn`.
    """
    count = len(next(iter(clean.values())))
    parts = []
    for checks, half in zip((False, True), halves(count, count), strict=True):
        for piece in torch.split(half, chunk(sizes, 1)):
            some = ({name: Value(x[piece]) for name, x in values.items()} for values in (clean, ours))
            parts.append(Part(checks, *some))
    walk = Walk(snn, source, "quantized", parts, block.start, sizes)
    with torch.no_grad():
        _fit_block(walk, block)


def _fit_block(walk: Walk, block: Block) -> dict[str, float]:
    """Fit the layers of a block in order; the ridge of each by name."""
    taken: dict[str, float] = {}
    for node in block.nodes:
        layer = walk.snn.layer(node.name)
        if node.op == "neuron":
            walk.correct(block, node.name, "moments")
        elif layer is not None and _can_be_fitted(layer):
            taken[node.name] = _fit(walk, node, layer)
    return taken


@dataclass
class _Moments:
    """Sums over images and places for each group of channels: of inputs x, (g, n), goals z, (g, m), and products."""

    count: int
    x: Tensor
    z: Tensor
    xx: Tensor  # (g, n, n)
    xz: Tensor  # (g, n, m)
    zz: Tensor  # (g, m)

    @classmethod
    def of(cls, rows: Iterator[tuple[Tensor, Tensor]]) -> "_Moments":
        """Sums of rows: inputs (g, rows, n) and goals (g, rows, m)."""
        total: _Moments | None = None
        for x, z in rows:
            x, z = x.double(), z.double()
            found = cls(x.shape[1], x.sum(1), z.sum(1), x.mT @ x, x.mT @ z, z.square().sum(1))
            total = found if total is None else total + found
        assert total is not None
        return total

    def __add__(self, other: "_Moments") -> "_Moments":
        return _Moments(self.count + other.count, *(getattr(self, name) + getattr(other, name)
                                                    for name in ("x", "z", "xx", "xz", "zz")))  # fmt: skip

    def solve(self, weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights (g, m, n) and biases (g, m) of least error with this ridge towards the present weights."""
        x, z = self.x / self.count, self.z / self.count
        xx = self.xx / self.count - x[:, :, None] * x[:, None]
        xz = self.xz / self.count - x[:, :, None] * z[:, None]
        strength = ridge * xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)[:, None, None]
        found = torch.linalg.solve(xx + strength * torch.eye(xx.shape[1]).to(xx), xz + strength * weight.mT).mT
        return found, z - (found @ x[:, :, None])[:, :, 0]

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Sum of (W x + b - z)^2, (g, m)."""
        quadratic = ((weight @ self.xx) * weight).sum(2) - 2 * (weight * self.xz.mT).sum(2) + self.zz
        linear = (weight @ self.x[:, :, None])[:, :, 0] - self.z
        return quadratic + 2 * bias * linear + self.count * bias.square()


def _can_be_fitted(layer: nn.Module) -> TypeGuard[_Layer]:
    if not (isinstance(layer, _Layer) and is_plain(layer)):
        return False
    if isinstance(layer, _Conv) and layer.padding_mode != "zeros":
        return False
    return layer.bias is not None and layer.weight[0].numel() <= MOST_UNKNOWNS


def _fit(walk: Walk, node: Node, layer: _Layer) -> float:
    """Fit one layer, and give the ridge that was taken."""
    position, groups = walk.come_near(node), 1 if isinstance(layer, nn.Linear) else layer.groups
    weight = layer.weight.detach().double().flatten(1)
    weight = weight.view(groups, -1, weight.shape[1])  # (g, m, n)
    bias = cast(Tensor, layer.bias).detach().double().view(groups, -1)
    room = 4096 + 8 * weight.shape[2]
    parts = walk.parts_for(node)
    chosen, checked = (
        _Moments.of(_rows(walk, [part for part in parts if part.checks == checks], node, position, layer, room))
        for checks in (False, True)
    )
    errors = {ridge: checked.error(*chosen.solve(weight, ridge)).sum() for ridge in RIDGES}
    best = min(errors, key=lambda ridge: float(errors[ridge]))
    if not errors[best] < checked.error(weight, bias).sum():
        return 0.0
    new, shift = (chosen + checked).solve(weight, best)
    layer.weight.data.copy_(new.reshape(layer.weight.shape))
    cast(Tensor, layer.bias).data.copy_(shift.flatten())
    return best


def _rows(
    walk: Walk, parts: Sequence[Part], node: Node, position: int, layer: _Layer, room: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the layer reads at some places of every image, and what it should give there, by group of channels."""
    images = sum(part.images for part in parts)
    each, generator = max(1, -(-room // images)), torch.Generator().manual_seed(0)
    for part in parts:
        ours, theirs = walk.around(part, node, position)
        yield _patches(layer, ours, theirs, each, generator)


def _patches(layer: _Layer, x: Tensor, z: Tensor, each: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (g, rows, n) and goals (g, rows, m) of a layer at up to `each` places an image."""
    if isinstance(layer, nn.Linear):
        x, z = x.reshape(len(x), -1, x.shape[-1]), z.reshape(len(z), -1, z.shape[-1])
        drawn = _drawn(x.shape[1], each, generator).to(x.device)
        return x[:, drawn].flatten(0, 1)[None], z[:, drawn].flatten(0, 1)[None]
    x = windows(x, layer.kernel_size, layer.stride, layer.dilation, _padding(layer))
    channels = x.shape[1] // layer.groups
    places = _drawn(z[0, 0].numel(), each, generator).to(x.device)
    index = torch.unravel_index(places, z.shape[2:])
    x, z = x.movedim((0, 1), (-2, -1))[index].flatten(1, -3), z.flatten(2)[:, :, places]  # (p, k, B, C), (B, O, p)
    x = x.view(len(places), -1, len(z), layer.groups, channels).permute(3, 2, 0, 4, 1).flatten(3)
    z = z.view(len(z), layer.groups, -1, len(places)).permute(1, 0, 3, 2)
    return x.flatten(1, 2), z.flatten(1, 2)


def _drawn(there: int, each: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(there, generator=generator)[:each]


def _padding(layer: _Conv) -> list[tuple[int, int]]:
    """Zeros before and behind each dimension."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        needed = [step * (size - 1) for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in needed]
    return [(int(side), int(side)) for side in layer.padding]
