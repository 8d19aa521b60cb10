"""A small tuning run as a program: `tune_job.py OUT.safetensors [FOLDER] [--resume] [--slow] [--event FILE]`."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from speedysnn import convert, finetune
from speedysnn.finetune.config import Stage


def network():
    """An untrained network with batch-norm, thresholds from random images."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip
    ann[-1].weight.data.mul_(20)
    return convert.to_spiking(ann, images(), timesteps=2)


def images(count: int = 130):
    """Random images with a structure, the same every time."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, 1, 8, 8, generator=generator) * torch.rand(count, 1, 8, 1, generator=generator) * 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune and save the weights; one writer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--slow", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = finetune.Config(
        stages=(Stage("blockwise", 1), Stage("quantized", 2, timesteps=4), Stage("spiking", 2)), layer_match_weight=1.0, batch_size=31,
        augment="flip-crop", budget=0.6, membrane=0.1, average=0.9, batch_norm=False,
    )  # fmt: skip
    snn = network()

    def epoch(row) -> None:
        print(row["stage"], row["epoch"], flush=True)
        if options.slow:
            time.sleep(0.15)

    finetune.fit(snn, images(), config=config, folder=options.folder, resume=options.resume, on_epoch=epoch)
    if finetune.engine.Engine().main:
        scratch = options.out.with_suffix(".tmp")
        save_file({name: value.contiguous() for name, value in snn.state_dict().items()}, scratch)
        scratch.replace(options.out)


if __name__ == "__main__":
    main()
