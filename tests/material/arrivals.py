"""Neurons with random weights whose inputs are random spike trains, and what the neurons' own kernel answers to them."""

from typing import Any

import numpy as np
import torch

from speedysnn.kernels import Rule, multistep


def simulated(
    drive: torch.Tensor, steps: int, theta: float = 1.0, v_init: float = 0.5, delay: int = 0, max_spikes: int = 1,
    min_spikes: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Errors n - Q of neurons driven by (T, B)."""
    rule = Rule(steps, delay, min_spikes, max_spikes)
    out = multistep(drive.reshape(-1), torch.tensor(theta), torch.tensor(v_init), rule)
    n = torch.round(out.view(steps, -1).sum(0) / theta)
    return (n - torch.floor(drive.double().sum(0) / theta + v_init).clamp(0, steps * max_spikes)).double()


def arriving(
    fan_in: int, rate: float, mean: float, std: float, bias: float, rate_std: float, taken_back: float = 0.0,
    steps: int = 16, count: int = 40_000,
) -> Any:  # fmt: skip
    """Drive (T, B) of neurons with random weights, each input a spike train of its own rate, 1 and perhaps -1."""
    drawn = np.random.default_rng(0)
    chunks = []
    for _ in range(count // 4000):
        rates = np.full((4000, fan_in), rate)
        if rate_std:
            share = rate * (1 - rate) / rate_std**2 - 1
            rates = drawn.beta(rate * share, (1 - rate) * share, rates.shape)
        weights = drawn.normal(mean, std, rates.shape)
        drawn_steps = (drawn.random(rates.shape) for _ in range(steps))  # u < r + m: 1, u > 1 - m: -1
        signs = ((u < rates + taken_back) * 1.0 - (u > 1 - taken_back) for u in drawn_steps)
        chunks.append([(weights * sign).sum(1) + bias for sign in signs])
    return np.concatenate(chunks, axis=1)
