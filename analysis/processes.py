"""Tensors of all processes in each of them, without pickle."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from speedysnn.errors import InputError


def gathered(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """All processes' states in the order of their ranks, so that every process adds alike; names and shapes may differ.

    Raises:
        InputError: torch.distributed is not initialised.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(
            "gather: expected torch.distributed to be initialised, as `torchrun` and `accelerate launch` do; in one "
            "process leave it out"
        )
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    own = torch.frombuffer(bytearray(save({name: x.contiguous() for name, x in state.items()})), dtype=torch.uint8)
    size = torch.tensor([len(own)], device=device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    longest = int(max(sizes))
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(own)] = own.to(device)
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [load(part[: int(length)].cpu().numpy().tobytes()) for part, length in zip(parts, sizes, strict=True)]
