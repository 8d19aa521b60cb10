"""Tensors of all processes in each of them, without pickle."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from speedysnn.errors import InputError


def gathered(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Each process's state in the order of their ranks, so that all add alike; names and shapes may differ.

    Raises:
        InputError: torch.distributed is not initialised.
    """
    _require()
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    for rank in range(dist.get_world_size()):
        sent = torch.empty(0, dtype=torch.uint8)
        if rank == dist.get_rank():
            data = save({name: x.contiguous() for name, x in state.items()})
            sent = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        size = torch.tensor([len(sent)], device=device)
        dist.broadcast(size, rank)
        data_there = sent.to(device) if len(sent) else torch.empty(int(size), dtype=torch.uint8, device=device)
        dist.broadcast(data_there, rank)
        yield load(data_there.cpu().numpy().tobytes())


def require_alike(names: Sequence[str]) -> None:
    """Refuse to go on where another process has other names, which would wait for one another for ever.

    Raises:
        InputError: it has, or torch.distributed is not initialised.
    """
    own = torch.tensor(list(hashlib.sha256("\n".join(names).encode()).digest()), dtype=torch.uint8)
    if any(not torch.equal(state["names"], own) for state in list(gathered({"names": own}))):
        raise InputError("gather: expected the same network in every process, but the layers' names differ")


def _require() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(
            "gather: expected torch.distributed to be initialised, as `torchrun` and `accelerate launch` do; in one "
            "process leave it out"
        )
