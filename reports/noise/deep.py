"""A residual network of 103 neuron layers, trained on Fashion-MNIST in a few minutes of one core."""

import math
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from speedysnn import data

BLOCKS, WIDTHS = 17, (8, 16, 32)  # 1 + 3 * 17 * 2 = 103 activations
EPOCHS, BATCH, RATE = 3, 128, 3e-3
HELD = 10_000  # of the training images: they rank the changes, and the network is not fitted to them


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a convolution where the shape changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(width), nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(width), nn.ReLU()
        self.short = nn.Sequential()
        if stride > 1 or before != width:
            self.short = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, width, H / stride, W / stride)."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.short(x))


class Deep(nn.Module):
    """(B, 1, 28, 28) -> (B, 10); strides bring the blocks down to 7, 4 and 2 pixels a side."""

    def __init__(self, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(1, WIDTHS[0], 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        before, stages = WIDTHS[0], []
        for width in WIDTHS:
            stages.append(nn.Sequential(*(Block(before if i == 0 else width, width, 2 if i == 0 else 1) for i in range(blocks))))
            before = width
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.stages(self.relu(self.bn(self.conv(x)))).mean((2, 3)))


@cache
def parts() -> dict[str, tuple[Tensor, Tensor]]:
    """Images and labels: "fit" trains the network, "train" (held out of that) ranks its changes, "test" checks them."""
    found = {}
    for split in ("train", "test"):
        loaded = data.load("fashion-mnist", split, seed=0, limit=60_000 if split == "train" else 10_000)
        items = [loaded[i] for i in range(len(loaded))]
        found[split] = torch.stack([(x - 0.286) / 0.353 for x, _ in items]), torch.tensor([int(y) for _, y in items])
    x, y = found["train"]
    return {"fit": (x[HELD:], y[HELD:]), "train": (x[:HELD], y[:HELD]), "test": found["test"]}


def images(_: Path | None, split: str, limit: int) -> TensorDataset:
    """The first images of a part, which is in random order."""
    x, y = parts()[split]
    return TensorDataset(x[:limit], y[:limit])


def source(folder: Path | None, smoke: bool) -> nn.Module:
    """The trained network, read from folder/deep100.safetensors where an earlier run has left it."""
    path = None if folder is None or smoke else folder / "deep100.safetensors"
    if path is not None and path.is_file():
        net = Deep()
        net.load_state_dict(load_file(path))
        return net.eval()
    net = trained(*((1, 1, 512) if smoke else ()))
    if path is not None:
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, path)
    return net


def trained(blocks: int = BLOCKS, epochs: int = EPOCHS, limit: int | None = None) -> Deep:
    """AdamW, one cycle, images mirrored at random; the last epoch counts."""
    torch.manual_seed(0)
    net, generator = Deep(blocks), torch.Generator().manual_seed(0)
    net.to(memory_format=torch.channels_last)
    for module in net.modules():  # every block begins as its shortcut, or 103 layers would not start
        if isinstance(module, Block):
            nn.init.zeros_(module.bn2.weight)
    x, y = (part[:limit] for part in parts()["fit"])
    adam = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.02)
    steps = math.ceil(len(x) / BATCH) * epochs
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, steps, pct_start=0.2)
    for epoch in range(epochs):
        net.train()
        seen = torch.zeros(())
        for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
            mirrored = torch.rand(len(chosen), 1, 1, 1, generator=generator) < 0.5
            given = torch.where(mirrored, x[chosen].flip(3), x[chosen]).contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(net(given), y[chosen], label_smoothing=0.05)
            adam.zero_grad()
            loss.backward()
            adam.step()
            cycle.step()
            seen += loss.detach() * len(chosen)
        print(f"epoch {epoch + 1} of {epochs}: loss {float(seen) / len(x):.3f}", flush=True)
    return net.eval()
