"""Regression of weights: every layer learns, in closed form, to give the source's drive from the inputs it really gets.

With x' what a layer reads in our network (its mean over time) and z what it gives in the source for the same images,

    W, b = argmin sum |W x' + b - z|^2 + r tr(G) / n |W - W0|^2

over images and places, G the covariance of the n values x' that make up one output and W0 the present weights. The
errors of the layers before are partly a linear mixture of their outputs, and this takes that part off. Where a sum adds
the output to a stream, z is what our stream lacks of the source's sum, so that the layer takes the stream's errors off
too. Where neurons without negative spikes read the output, they answer alike for all drives below 0 and for all above
the largest output h, so errors there are none:

    W, b = argmin sum |c(W x' + b) - c(z)|^2 + ...,  c(z) = min(max(z, 0), h)

is found by rounds of the first, each with the goal W x' + b in place of z where both lie on the same flat side, and the
side's end where only z does, which bounds the second from above. The ridge r of a layer is the one of `RIDGES` with the
least error on images that did not choose the weights, and a layer that none of them makes better there is left alone.
Least squares shrinks the drive; matching the moments of the neurons that follow gives back its spread.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from speedysnn.convert.matching import MAX_IMAGES, ImageWalk, Part, Walk, chunk, halves
from speedysnn.display import track
from speedysnn.execution.interpreter import Value
from speedysnn.execution.module import is_plain
from speedysnn.graph import Block
from speedysnn.graph.ir import Node
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Reading
from speedysnn.settings import repeatable
from speedysnn.torch_utils import drawn_rows, windows

RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
ROUNDS = 6  # of goals that follow the neurons
MOST_UNKNOWNS = 4608  # values of one output of a layer, above which its covariance costs more than it gives
MOST_VALUES = 2**25  # of the rows of one half of the images
_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@repeatable
def regress(
    snn: SpikingNetwork,
    source: SpikingNetwork,
    inputs: Sequence[Tensor],
    *,
    reading: Reading | None = None,
    images: int = MAX_IMAGES,
    progress: bool = False,
) -> dict[str, float]:
    """Fit weights and biases to the source in graph order, layer by layer, and match the moments of each neuron layer.

    Linear layers and convolutions with zeros for padding are fitted; others stay.

    Args:
        snn: the network; its weights, biases, thresholds, amplitudes and offsets change.
        source: the network before any tuning, read analog.
        inputs: images that choose and check, (B, ...) an input.
        reading: the one that is fitted, None for the network's own.
        images: at most so many are used.
        progress: show progress.

    Returns:
        By layer the ridge that was taken, 0 where the layer was left alone.

    Reference: he2017channel
    """
    walk = ImageWalk(snn, inputs, reading, source, images)
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
    values: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    copies: int = 1,
) -> None:
    """The same for one block in the quantized reading, from the values of images that enter it.

    Args:
        snn: the network, which changes.
        source: the network before any tuning.
        block: of its graph.
        sizes: elements of every value for one image.
        values: what enters the block in the source and in `snn`, (B, ...) by name.
        copies: of each image, first one of all, then the next; all of an image choose or all of them check.
    """
    count = len(next(iter(values[0].values()))) // copies
    parts = []
    for checks, half in zip((False, True), halves(count, count), strict=True):
        every = torch.cat([half + copy * count for copy in range(copies)])
        for piece in torch.split(every, chunk(sizes, 1)):
            parts.append(Part(checks, *({name: Value(x[piece]) for name, x in side.items()} for side in values)))
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
class _Rows:
    """Inputs x (g, rows, n) and goals z (g, rows, m) of one half of the images, for each group of channels."""

    x: Tensor
    z: Tensor

    def __add__(self, other: "_Rows") -> "_Rows":
        return _Rows(torch.cat([self.x, other.x], 1), torch.cat([self.z, other.z], 1))

    def drive(self, weight: Tensor, bias: Tensor) -> Tensor:
        """W x + b, (g, rows, m)."""
        return torch.baddbmm(bias[:, None].to(self.x), self.x, weight.mT.to(self.x))


@dataclass
class _Flat:
    """Drives on which a layer's neurons answer alike: below 0, and above the largest output (m,) by group."""

    top: Tensor

    def goal(self, drive: Tensor, z: Tensor) -> Tensor:
        """The nearest drives to the present ones that the neurons answer as they would answer z."""
        top = self.top[:, None].to(z)
        return torch.where(z <= 0, drive.clamp(max=0), torch.where(z >= top, torch.maximum(drive, top), z))


class _Ridge:
    """Ridge regression of one layer on some rows, with the covariance of the inputs factored once for each ridge."""

    def __init__(self, rows: _Rows, weight: Tensor, flat: _Flat | None) -> None:
        self._rows, self._weight, self._flat = rows, weight, flat
        x = rows.x.to(torch.float64, copy=True)
        self._mean = x.mean(1)
        x -= self._mean[:, None]  # before squares are taken, so that constant inputs have no variance at all
        self._gram, self._x = x.mT @ x / x.shape[1], x.to(rows.x)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights (g, m, n) and biases (g, m) of least error with this ridge towards the present weights."""
        strength = ridge * self._gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)[:, None, None]
        factor = torch.linalg.cholesky(self._gram + strength * torch.eye(self._gram.shape[1]).to(self._gram))
        weight, bias = self._least(self._rows.z, factor, strength)
        if self._flat is not None:
            for _ in range(ROUNDS):
                goal = self._flat.goal(self._rows.drive(weight, bias), self._rows.z)
                weight, bias = self._least(goal, factor, strength)
        return weight, bias

    def _least(self, goal: Tensor, factor: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        mean = goal.mean(1, dtype=torch.float64)
        product = (self._x.mT @ (goal - mean[:, None].to(goal))).double() / goal.shape[1]
        weight = torch.cholesky_solve(product + strength * self._weight.mT, factor).mT
        return weight, mean - (weight @ self._mean[:, :, None])[:, :, 0]


def _error(rows: _Rows, weight: Tensor, bias: Tensor, flat: _Flat | None) -> float:
    """Squared error of the drives, or their distance from the drives that the neurons answer as they answer z."""
    drive = rows.drive(weight, bias)
    goal = rows.z if flat is None else flat.goal(drive, rows.z)
    return float((drive - goal).square().sum(dtype=torch.float64))


def _can_be_fitted(layer: nn.Module) -> TypeGuard[_Layer]:
    if not (isinstance(layer, _Layer) and is_plain(layer)):
        return False
    if isinstance(layer, _Conv) and layer.padding_mode != "zeros":
        return False
    return layer.bias is not None and layer.weight[0].numel() <= MOST_UNKNOWNS


def _fit(walk: Walk, node: Node, layer: _Layer) -> float:
    """Fit one layer, and give the ridge that was taken."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    weight = layer.weight.detach().double().flatten(1)
    weight = weight.view(groups, -1, weight.shape[1])  # (g, m, n)
    bias = cast(Tensor, layer.bias).detach().double().view(groups, -1)
    chosen, checked = _both_halves(walk, node, layer)
    flat = _flat(walk, node, bias.shape)
    ridges = _Ridge(chosen, weight, flat)
    best, error = _lowest(lambda ridge: _error(checked, *ridges.solve(ridge), flat))
    if not error < _error(checked, weight, bias, flat):
        return 0.0
    new, shift = _Ridge(chosen + checked, weight, flat).solve(best)
    layer.weight.data.copy_(new.reshape(layer.weight.shape))
    cast(Tensor, layer.bias).data.copy_(shift.flatten())
    return best


def _lowest(error: Callable[[float], float]) -> tuple[float, float]:
    """The ridge from which the error rises to both sides, and its error, by steps from the middle of `RIDGES`."""
    middle = len(RIDGES) // 2 - 1
    known = {middle: error(RIDGES[middle])}
    for step in (-1, 1):
        while 0 <= (here := min(known, key=known.__getitem__) + step) < len(RIDGES) and here not in known:
            known[here] = error(RIDGES[here])
            if known[here] > known[here - step]:
                break
    best = min(known, key=known.__getitem__)
    return RIDGES[best], known[best]


def _flat(walk: Walk, node: Node, shape: torch.Size) -> _Flat | None:
    """Where the neurons that alone read a layer are flat; None for other readers, and for signed neurons."""
    reader = walk.only_reader(node, "neuron")
    if reader is None or (neuron := walk.snn.neurons[reader.name]).signed:
        return None
    top = neuron.levels_per_step * neuron.amplitude.detach()
    return _Flat(top.expand(shape.numel()).reshape(shape))


def _both_halves(walk: Walk, node: Node, layer: _Layer) -> tuple[_Rows, _Rows]:
    """Rows at some places of the images that choose, and of those that check."""
    position, parts = walk.come_near(node), walk.parts_for(node)
    unknowns, groups = layer.weight[0].numel(), 1 if isinstance(layer, nn.Linear) else layer.groups
    room = max(256, min(4096 + 8 * unknowns, MOST_VALUES // (groups * unknowns)))
    halves = []
    for checks in (False, True):
        some = [part for part in parts if part.checks == checks]
        each, generator = max(1, -(-room // sum(part.images for part in some))), torch.Generator().manual_seed(0)
        rows = [_patches(layer, *walk.around(part, node, position), each, generator) for part in some]
        halves.append(_Rows(*(torch.cat(values, 1) for values in zip(*rows, strict=True))))
    return halves[0], halves[1]


def _patches(layer: _Layer, x: Tensor, z: Tensor, each: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (g, rows, n) and goals (g, rows, m) of a layer at up to `each` places an image."""
    groups = 1
    if not isinstance(layer, nn.Linear):
        x, groups = windows(x, layer.kernel_size, layer.stride, layer.dilation, _padding(layer)), layer.groups
    x, z = drawn_rows(x, z, groups, each, generator, not isinstance(layer, nn.Linear))
    return x.flatten(1, 2), z.flatten(1, 2)


def _padding(layer: _Conv) -> list[tuple[int, int]]:
    """Zeros before and behind each dimension."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        needed = [step * (size - 1) for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in needed]
    return [(int(side), int(side)) for side in layer.padding]
