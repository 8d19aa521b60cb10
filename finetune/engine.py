"""Several processes as one: every batch is shared out, sums are added up, so that the result is that of one process."""

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class Engine:
    """One process of several under `accelerate launch`, or the only one.

    Attributes:
        rank: number of this process.
        world: how many there are.
        main: whether this one writes files and shows progress.
    """

    def __init__(self, precision: str = "float32") -> None:
        self._accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self._accelerator = Accelerator()
        self.rank = 0 if self._accelerator is None else int(self._accelerator.process_index)
        self.world = 1 if self._accelerator is None else int(self._accelerator.num_processes)
        self.main = self.rank == 0
        self._half = precision == "bfloat16"

    def device(self, present: torch.device) -> torch.device:
        """Where this process computes: its own device of several, else where the network is.

        Returns:
            A device of torch.
        """
        return present if self._accelerator is None else torch.device(self._accelerator.device)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Automatic mixed precision where it was asked for.

        Returns:
            A context in which torch chooses precisions, or one that changes nothing.
        """
        return torch.autocast(device.type, torch.bfloat16) if self._half else nullcontext()

    def own(self, count: int) -> slice:
        """This process's part of `count` images.

        Returns:
            A slice of the batch.
        """
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its sum over the processes, in one message."""
        chosen = list(tensors)
        if self._accelerator is None or not chosen:
            return
        packed = torch.cat([x.detach().reshape(-1).to(torch.float64) for x in chosen])
        packed = self._accelerator.reduce(packed, "sum")
        for x, values in zip(chosen, packed.split([x.numel() for x in chosen]), strict=True):
            x.copy_(values.view_as(x))

    def total(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """Sums over the processes.

        Returns:
            One sum a number, the same in every process.
        """
        if self._accelerator is None:
            return list(numbers)
        packed = torch.tensor(numbers, dtype=torch.float64, device=device)
        return [float(x) for x in self._accelerator.reduce(packed, "sum")]

    def same(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self._accelerator is None:
            return
        from accelerate.utils import broadcast

        for tensor in module.state_dict().values():
            tensor.copy_(broadcast(tensor, 0))

    def wait(self) -> None:
        """Until all processes are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
