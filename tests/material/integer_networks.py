"""Random spiking networks for the integer reading: graphs of their own, with every kind of neuron and of junction."""

import random
from typing import Any

import numpy as np
import torch

from speedysnn.graph.ir import Graph, Node
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import IFNeuron

SPIKES = ("binary", "ternary", "graded:3", "power2:3")
DELAYS: tuple[int | str, ...] = (0, 1, 2, "full")


class Maker:
    """A graph in the making.

    Args:
        seed: of every choice.
        exact: weights, thresholds and amplitudes that integers hold exactly, and look-aheads d whose t/k (k inputs seen
            at step t) floats do.
        timesteps: T, by default 1 to 8.
    """

    def __init__(self, seed: int, exact: bool = False, timesteps: int | None = None) -> None:
        self.random, self.generator, self.exact = random.Random(seed), torch.Generator().manual_seed(seed), exact
        self.timesteps = self.random.choice((1, 2, 4) if exact else range(1, 9)) if timesteps is None else timesteps
        self.nodes: list[Node] = []
        self.tensors: dict[str, dict[str, torch.Tensor]] = {}
        self.neurons: dict[str, IFNeuron] = {}

    def add(
        self, op: str, inputs: tuple[str, ...], attrs: dict[str, Any] | None = None, **tensors: torch.Tensor
    ) -> str:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs, attrs or {}))
        if tensors:
            self.tensors[name] = tensors
        return name

    def normal(self, *shape: int) -> torch.Tensor:
        if not self.exact:
            return torch.randn(shape, generator=self.generator)
        whole = torch.randint(-127, 128, shape, generator=self.generator)
        whole.view(len(whole), -1)[:, 0] = 127  # the largest weight of a channel makes the scale a power of two
        return whole / 64

    def conv(self, x: str, shape: tuple[int, ...], out: int, **options: Any) -> tuple[str, tuple[int, ...]]:
        kernel, stride = (
            options.get("kernel", self.random.choice((1, 2, 3))),
            options.get("stride", self.random.choice((1, 1, 2))),
        )
        padding, dilation = options.get("padding", self.random.choice((0, 1))), options.get("dilation", 1)
        kernel = min(kernel, *(size + 2 * padding for size in shape[1:]))
        groups = self.random.choice([g for g in (1, 1, 2, shape[0]) if shape[0] % g == 0 and out % g == 0])
        size = tuple((s + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for s in shape[1:])
        attrs = {"stride": [stride] * 2, "padding": [padding] * 2, "dilation": [dilation] * 2, "groups": groups}
        weight, bias = self.normal(out, shape[0] // groups, kernel, kernel), self.bias(out)
        if not self.exact:
            weight = weight / (weight[0].numel() ** 0.5)
        return self.add("conv2d", (x,), attrs, weight=weight, bias=bias), (out, *size)

    def bias(self, size: int) -> torch.Tensor:
        made = torch.randn(size, generator=self.generator) * 0.2
        return torch.round(made * 64) / 64 if self.exact else made

    def linear(self, x: str, features: int, out: int) -> str:
        weight = self.normal(out, features)
        return self.add("linear", (x,), weight=weight if self.exact else weight / features**0.5, bias=self.bias(out))

    def neuron(self, x: str, channels: int) -> str:
        choose = self.random.choice
        per = choose((True, False)) and not self.exact
        spread = torch.rand(channels if per else 1, generator=self.generator).squeeze() if per else torch.tensor(0.5)
        theta = torch.tensor(1.0) if self.exact else 0.3 + spread
        name = self.add("neuron", (x,))
        made = IFNeuron(theta, choose((0.0, 0.5)) if self.exact else self.random.random(), timesteps=self.timesteps,
                        spikes=choose(SPIKES), delay=choose(self.delays()), floor=choose((0.0, 0.0, None)))  # fmt: skip
        if not self.exact and choose((True, False)):
            made.set_amplitude(0.2 + spread * 1.3)
        if not self.exact and choose((True, False)):
            made.offset = torch.randn(channels, generator=self.generator) * 0.1
        self.neurons[name] = made
        return name

    def delays(self) -> tuple[int | str, ...]:
        """Look-aheads to choose from."""
        return (0, self.timesteps - 1, "full") if self.exact else DELAYS

    def pool(self, x: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        if min(shape[1:]) < 2:
            return x, shape
        kind = self.random.choice(("max", "avg", "max", "odd") if not self.exact else ("max", "avg"))
        attrs: dict[str, Any] = {"kernel": [2, 2], "stride": [2, 2], "padding": [0, 0], "ceil_mode": False}
        if kind == "odd":  # windows that overlap and lie partly outside
            attrs |= {"kernel": [3, 3] if min(shape[1:]) > 2 else [2, 2], "padding": [1, 1], "ceil_mode": True}
        if kind == "max":
            name = self.add("max_pool2d", (x,), {**attrs, "dilation": [1, 1]})
        else:
            name = self.add("avg_pool2d", (x,), {**attrs, "count_include_pad": True, "divisor_override": None})
        return name, tuple(self.made(name, x, shape))

    def made(self, name: str, x: str, shape: tuple[int, ...]) -> torch.Size:
        from speedysnn.graph.operators import OPERATORS

        node = self.nodes[-1]
        return OPERATORS[node.op].run([torch.zeros(1, *shape)], node.attrs, {}).shape[1:]

    def block(self, x: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """One or two layers of neurons, with a junction or without."""
        kind, channels = self.random.choice(("plain", "plain", "residual", "shortcut", "cat", "double")), shape[0]
        if kind == "plain":
            y, size = self.conv(x, shape, self.random.choice((2, 4)))
            return self.neuron(y, size[0]), size
        if kind == "cat":
            same = {"kernel": 1, "stride": 1, "padding": 0}
            a, _ = self.conv(x, shape, 2, **same)
            b, _ = self.conv(x, shape, 3, kernel=3, stride=1, padding=1)
            parts = (self.neuron(a, 2), self.neuron(b, 3))
            return self.add("cat", parts, {"dim": 1}), (5, *shape[1:])
        same = {"kernel": 3, "stride": 1, "padding": 1}
        a, _ = self.conv(x, shape, channels, **same)
        if kind == "residual":
            return self.neuron(self.add("add", (a, x)), channels), shape
        if kind == "double":
            b, _ = self.conv(x, shape, channels, kernel=1, stride=1, padding=0)
            return self.neuron(self.add("sub" if self.random.random() < 0.5 else "add", (a, b)), channels), shape
        inner, _ = self.conv(self.neuron(a, channels), shape, channels, **same)
        return self.neuron(self.add("add", (inner, x)), channels), shape

    def network(self) -> SpikingNetwork:
        """Layers, pools and a read-out, one after the other."""
        shape: tuple[int, ...] = (self.random.randint(1, 3), self.random.randint(4, 7), self.random.randint(4, 7))
        first = shape
        x = self.add("input", ())
        y, shape = self.conv(x, shape, 4)
        x = self.neuron(y, 4)
        for _ in range(self.random.randint(0, 2)):
            if self.random.random() < 0.5:
                x, shape = self.pool(x, shape)
            x, shape = self.block(x, shape)
        if self.random.random() < 0.4:
            x, shape = self.pool(x, shape)
        if self.random.random() < 0.5:
            x = self.add("flatten", (x,), {"start": 1, "end": -1})
            features = int(np.prod(shape))
            if self.random.random() < 0.5:
                x, features = self.neuron(self.linear(x, features, 6), 6), 6
        else:
            x, features = self.add("mean", (x,), {"dim": [2, 3], "keepdim": False}), shape[0]
        out = self.linear(x, features, 3)
        return SpikingNetwork(Graph(tuple(self.nodes), out), self.tensors, self.neurons, self.timesteps, [first])


def images(snn: SpikingNetwork, count: int, seed: int = 0) -> torch.Tensor:
    """Noise, uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *snn.input_shapes[0]), generator=generator, dtype=torch.uint8)
