"""Batches, seeds and learning rate of an epoch: functions of where it stands alone, so that resuming needs no state."""

import math
from collections.abc import Sequence

import torch


def chunked(order: Sequence[int], size: int, least: int = 1) -> list[list[int]]:
    """Batches of `size`; a last one with fewer than `least` images joins the one before."""
    chunks = [list(order[i : i + size]) for i in range(0, len(order), size)]
    if len(chunks) > 1 and len(chunks[-1]) < least:
        chunks[-2:] = [chunks[-2] + chunks[-1]]
    return chunks


def seed_of(seed: int, stage: int, epoch: int) -> int:
    """The generator's seed of an epoch."""
    return (seed * 1_000_003 + stage * 10_007 + epoch * 101 + 17) % (2**63)


def set_rate(optimizer: torch.optim.Optimizer, progress: float, warmup: float) -> float:
    """Linear rise, then a cosine to zero; a function of progress alone, so that resuming needs no state."""
    if progress < warmup:
        factor = max(progress / warmup, 0.02)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1e-9, 1 - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return factor
