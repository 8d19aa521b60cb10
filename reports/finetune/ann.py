"""Trains the source networks on Fashion-MNIST the usual way: AdamW, one cycle, flips and shifts; the last epoch counts."""

import math
import time
from pathlib import Path

import networks
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from speedysnn.data import load
from speedysnn.finetune.augment import AUGMENTATIONS

EPOCHS, BATCH, RATE = 16, 64, 3e-3


def images(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, y) of Fashion-MNIST, pixels divided by the training images' spread."""
    data = load("fashion-mnist", split)
    loaded = [data[i] for i in range(len(data))]
    x = torch.stack([x for x, _ in loaded])
    return (x - 0.286) / 0.353, torch.tensor([int(y) for _, y in loaded])


def parts(seed: int = 0) -> dict[str, torch.Tensor]:
    """Training, held-out (5,000 of the training images) and test images with labels."""
    x, y = images("train")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held, tune = order[:5000], order[5000:]
    test_x, test_y = images("test")
    return {"x": x[tune], "y": y[tune], "held_x": x[held], "held_y": y[held], "test_x": test_x, "test_y": test_y}


def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of right answers, in eval mode."""
    net.eval()
    place = next(net.parameters()).device
    with torch.no_grad():
        return float((torch.cat([net(part.to(place)).argmax(1).cpu() for part in x.split(100)]) == y).float().mean())


def source(
    name: str, data: dict[str, torch.Tensor], runs: Path, epochs: int, device: torch.device, seed: int = 0
) -> nn.Module:
    """The trained network, on the device; read from `runs` where it was trained before."""
    torch.manual_seed(seed)
    net, path = getattr(networks, name)(), runs / f"ann-{name}.safetensors"
    net = net.to(device, memory_format=torch.channels_last)
    if path.is_file():
        net.load_state_dict(load_file(path))
        return net.eval()
    _train(net, data, epochs, torch.Generator().manual_seed(seed))
    runs.mkdir(parents=True, exist_ok=True)
    save_file({key: value.cpu().contiguous() for key, value in net.state_dict().items()}, path)
    return net.eval()


def _train(net: nn.Module, data: dict[str, torch.Tensor], epochs: int, generator: torch.Generator) -> None:
    adam = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.02)
    count = len(data["x"])
    steps = math.ceil(count / BATCH) * epochs
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, steps, pct_start=0.2)
    begin, place = time.monotonic(), next(net.parameters()).device
    for epoch in range(epochs):
        net.train()
        for chosen in torch.randperm(count, generator=generator).split(BATCH):
            x = AUGMENTATIONS["flip-crop"](data["x"][chosen], generator)
            x = x.to(place).contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(net(x), data["y"][chosen].to(place), label_smoothing=0.05)
            adam.zero_grad()
            loss.backward()
            adam.step()
            cycle.step()
        held = accuracy(net, data["held_x"], data["held_y"])
        print(f"epoch {epoch + 1}: held out {held:.4f} after {time.monotonic() - begin:.0f} s", flush=True)
