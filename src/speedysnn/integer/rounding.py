"""Rounding by reconstruction: whole weights that keep what a layer gives, chosen layer by layer with images.

With x what a layer reads from the integers so far and z what it gives in the network, both summed over the steps (where
a sum adds something to the layer's result, z takes that one's errors off too), the weights before rounding are those of
least |W x - z|^2, with a ridge towards the network's own. They are rounded one after the other, what one gets wrong is
given to those that are still to be rounded, and the bias gets the mean that is left.

Reference: frantar2023
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from speedysnn.execution.interpreter import Execution, Value
from speedysnn.graph.ir import Node
from speedysnn.integer.program import Conv, Floats, Input, Linear, Neuron, Operation, Program, Timing
from speedysnn.integer.scales import Options
from speedysnn.integer.signals import Signal
from speedysnn.integer.simulate import value_of
from speedysnn.network import SpikingNetwork
from speedysnn.torch_utils import drawn_rows, windows

DAMPING = 0.01  # of the mean of H's diagonal, added to it
SWEEPS = 3  # over all weights, after they were rounded one after the other
RIDGES = (0.01, 0.1, 1.0, 10.0, math.inf)  # how much weights cling to the network's own before they are rounded
MOST_UNKNOWNS = 4608  # weights of a channel above which a layer is rounded to the nearest
PART = 32  # images that go through the network at once


@dataclass
class _Rows:
    """Inputs x (rows, n) and goals z (rows, channels) of a layer."""

    x: Tensor
    z: Tensor

    @cached_property
    def gram(self) -> Tensor:
        """Covariance of the inputs, (n, n)."""
        x = self.x - self.x.mean(0)
        return x.T @ x / len(x)

    def towards(self, weight: Tensor, ridge: float) -> Tensor:
        """Weights (channels, n) of least squared error to the goals, with a ridge towards the given ones."""
        if math.isinf(ridge):
            return weight
        x = self.x - self.x.mean(0)
        lacking = self.z - self.z.mean(0) - x @ weight.T
        strength = ridge * float(self.gram.diagonal().mean()) + 1e-12
        factor = torch.linalg.cholesky(self.gram + strength * torch.eye(len(self.gram)).to(x))
        return weight + torch.cholesky_solve(x.T @ lacking / len(x), factor).T


class Follower:
    """Images on their way through a network, and through its whole numbers while these are made, node by node.

    Args:
        snn: the network.
        images: as the program takes them.
        values: what they stand for, in the same shape.
        options: of `to_integer`.
        events: whether they are (T, B, ...).
    """

    def __init__(self, snn: SpikingNetwork, images: Tensor, values: Tensor, options: Options, events: bool) -> None:
        self.snn, self.options, self._run = snn, options, Execution.of(snn)
        self._program = Program((), snn.timesteps, options.weight_bits, options.state_bits, np.ones(1))
        self._images, given = (list(torch.split(x, PART, int(events))) for x in (images, values))
        name = snn.graph.inputs[0].name
        self._theirs = [{name: Value(x.flatten(0, 1) if events else x, events)} for x in given]
        self._whole: dict[str, list[Tensor]] = {}
        self._timing: dict[str, Timing] = {}
        self.signals: Mapping[str, Signal] = {}

    def advance(self, position: int, signals: Mapping[str, Signal]) -> None:
        """The network's own values of the node at a position, given the signals so far; old values are dropped."""
        self.signals = signals
        with torch.no_grad():
            self._theirs = [self._run.part(values, "spiking", position, position + 1) for values in self._theirs]
        nodes = {name for each in self.snn.graph.nodes[position:] for name in each.inputs}
        needed = {signal.source for name, signal in signals.items() if name in nodes}
        for name in [name for name in self._whole if name not in needed and self._timing[name] != "total"]:
            del self._whole[name]

    def emitted(self, op: Operation) -> None:
        """The result of an operation."""
        self._timing[op.name] = op.timing
        if isinstance(op, Input):
            self._whole[op.name] = self._images
            return
        out = []
        for part in range(len(self._images)):
            args = [(self._whole[name][part].to(torch.int64), self._timing[name] == "steps") for name in op.sources]
            made = value_of(self._program, op, args, {})
            out.append(made.to(torch.int8 if isinstance(op, Neuron) and op.highest < 128 else torch.int64))
        self._whole[op.name] = out

    def rounded(
        self, node: Node, op: Conv | Linear, x: Signal, weight: Floats, step: Floats
    ) -> tuple[Floats, Floats | None]:
        """Whole numbers for a layer's weights, and its bias beside them.

        Args:
            node: the layer.
            op: its operation, whose own weights say nothing.
            x: what it reads.
            weight: in units of one integer, (out channels, ...).
            step: what one integer stands for, of all channels or of each.

        Returns:
            Whole numbers in the same shape, and the bias, (out channels,), in the network's unit; None: its own.
        """
        out, largest = len(weight), self.options.largest
        if weight[0].size > MOST_UNKNOWNS or not bool((x.unit != 0).all()):
            return np.clip(np.round(weight), -largest, largest), None
        steps = np.broadcast_to(step.reshape(-1), out)
        groups = op.groups if isinstance(op, Conv) else 1
        halves = self._halves(node, op, x, torch.from_numpy(steps.copy()), groups)
        rows = weight.reshape(groups, -1, weight[0].size)
        found = [_fitted(w, halves[0][i], halves[1][i], largest) for i, w in enumerate(rows)]
        whole, bias = (np.concatenate([pair[i] for pair in found]) for i in (0, 1))
        return whole.reshape(weight.shape), bias * steps / self.snn.timesteps

    def _halves(self, node: Node, op: Conv | Linear, x: Signal, step: Tensor, groups: int) -> list[list[_Rows]]:
        """By half of the images and group: inputs and goals at some places, both summed over the steps."""
        unknowns, halves = op.weight[0].size, []
        each = -(-(4096 + 16 * unknowns) // sum(len(values) for values in self._images))
        for half in (0, 1):
            drawn = []
            for part in range(half if len(self._images) > 1 else 0, len(self._images), 2):
                goal = self._summed(node.name, part) + self._lacking(node, part)
                ours = self._ours(x, part) / torch.from_numpy(x.unit)
                axis = 1 if isinstance(op, Conv) else -1
                goal = (goal.movedim(axis, -1) / step).movedim(-1, axis)
                drawn.append(_rows(op, ours, goal, each, torch.Generator().manual_seed(part)))
            halves.append([_Rows(*(torch.cat([pair[i][g] for pair in drawn]) for i in (0, 1))) for g in range(groups)])
        return halves

    def _summed(self, name: str, part: int) -> Tensor:
        """The network's own value of a node, summed over the steps."""
        value = self._theirs[part][name]
        x = value.tensor.double()
        return torch.unflatten(x, 0, (self.snn.timesteps, -1)).sum(0) if value.dynamic else x * self.snn.timesteps

    def _ours(self, signal: Signal, part: int) -> Tensor:
        """A signal, summed over the steps, in the network's unit."""
        times = 1 if signal.timing == "total" else self.snn.timesteps
        constant = torch.from_numpy(signal.full_offset() * times)
        if signal.source is None:
            return constant[None]
        x = self._whole[signal.source][part].double()
        x = x.sum(0) if signal.timing == "steps" else x * times
        return x * torch.from_numpy(signal.unit) + constant

    def _lacking(self, node: Node, part: int) -> Tensor | float:
        """What our integers lack of the value beside a layer, where only a sum reads the layer and it is there."""
        readers = [each for each in self.snn.graph.nodes if node.name in each.inputs]
        if len(readers) != 1 or readers[0].op != "add":
            return 0.0
        beside = readers[0].inputs[1 - readers[0].inputs.index(node.name)]
        if beside == node.name or beside not in self.signals or beside not in self._theirs[part]:
            return 0.0
        return self._summed(beside, part) - self._ours(self.signals[beside], part)


def _rows(op: Conv | Linear, x: Tensor, z: Tensor, each: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (groups, rows, n) and goals (groups, rows, channels), at up to `each` places an image."""
    if isinstance(op, Linear):
        x, z = drawn_rows(x, z, 1, each, generator, windowed=False)
        return x.flatten(1, 2), z.flatten(1, 2)
    pads = []
    for axis, (tap, step, apart) in enumerate(zip(op.weight.shape[2:], op.stride, op.dilation, strict=True)):
        reach = (op.shape[axis + 1] - 1) * step + apart * (tap - 1) + 1
        pads.append((op.padding[axis], reach - x.shape[axis + 2] - op.padding[axis]))
    seen = windows(x, op.weight.shape[2:], op.stride, op.dilation, pads)
    x, z = drawn_rows(seen, z, op.groups, each, generator, windowed=True)
    return x.transpose(1, 2).flatten(1, 2), z.transpose(1, 2).flatten(1, 2)


def _fitted(weights: Floats, chosen: _Rows, checked: _Rows, largest: int) -> tuple[Floats, Floats]:
    """Whole numbers (channels, n) that give the goals from the inputs, and the bias beside them."""
    start, tried = torch.from_numpy(weights), {}
    for ridge in RIDGES:
        new = chosen.towards(start, ridge)
        bias = chosen.z.mean(0) - new @ chosen.x.mean(0)
        tried[ridge] = float((checked.z - bias - checked.x @ new.T).square().sum())
    both = _Rows(torch.cat([chosen.x, checked.x]), torch.cat([chosen.z, checked.z]))
    wanted = both.towards(start, min(tried, key=tried.__getitem__))
    whole = one_after_another(wanted.numpy(), both.gram.numpy(), largest)
    return whole, (both.z.mean(0) - torch.from_numpy(whole) @ both.x.mean(0)).numpy()


def one_after_another(weights: Floats, products: Floats, largest: int) -> Floats:
    """Whole numbers W of least (W - weights) H (W - weights)^T, by rounding one column after the other.

    Those of the largest inputs come first, and the rest takes up what each gets wrong; then each is chosen again beside
    all others.

    Args:
        weights: in units of one integer, (out channels, n).
        products: H, (n, n).
        largest: the largest whole number.
    """
    order = np.argsort(-np.diag(products), kind="stable")
    h = products[np.ix_(order, order)].copy()
    h[np.diag_indices_from(h)] += DAMPING * max(float(np.diag(h).mean()), 1e-12)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    left, out = weights[:, order].copy(), np.empty_like(weights)
    for i in range(left.shape[1]):
        out[:, i] = np.clip(np.round(left[:, i]), -largest, largest)
        left[:, i + 1 :] -= np.outer((left[:, i] - out[:, i]) / upper[i, i], upper[i, i + 1 :])
    slope = (weights[:, order] - out) @ h
    for i in [*range(left.shape[1])] * SWEEPS:
        chosen = np.clip(np.round(out[:, i] + slope[:, i] / h[i, i]), -largest, largest)
        slope -= np.outer(chosen - out[:, i], h[i])
        out[:, i] = chosen
    return np.asarray(out[:, np.argsort(order)])
