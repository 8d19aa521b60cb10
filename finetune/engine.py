"""Training in several processes: each takes a part of every batch, and sums are added up over all of them.

The result is that of one process, up to the rounding of the sums.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class Engine:
    """This process among those of a run: one of several under `accelerate launch`, or the only one.

    Args:
        precision: "float32", or "bfloat16" for automatic mixed precision.

    Attributes:
        rank: number of this process, from 0.
        world: how many processes there are.
        main: whether this one writes files and shows progress.

    Example:
        >>> from speedysnn.finetune.engine import Engine
        >>> engine = Engine()
        >>> engine.world, engine.main, engine.own(50)
        (1, True, slice(0, 50, None))
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
        """Choose where this process computes: its own device of several, else where the network is.

        Args:
            present: where the network is.

        Returns:
            A device of torch.
        """
        return present if self._accelerator is None else torch.device(self._accelerator.device)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Turn on automatic mixed precision where it was asked for.

        Args:
            device: where the forward pass runs.

        Returns:
            A context in which torch chooses precisions, or one that changes nothing.
        """
        return torch.autocast(device.type, torch.bfloat16) if self._half else nullcontext()

    def own(self, count: int) -> slice:
        """Choose this process's part of a batch.

        Args:
            count: images of the batch.

        Returns:
            A slice of the batch.
        """
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its sum over the processes, in one message.

        Args:
            tensors: of the same shapes in every process.
        """
        chosen = list(tensors)
        if self._accelerator is None or not chosen:
            return
        packed = torch.cat([x.detach().reshape(-1).to(torch.float64) for x in chosen])
        packed = self._accelerator.reduce(packed, "sum")
        for x, values in zip(chosen, packed.split([x.numel() for x in chosen]), strict=True):
            x.copy_(values.view_as(x))

    def total(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """Add up numbers over the processes.

        Args:
            numbers: as many in every process.
            device: where this process computes.

        Returns:
            One sum a number, the same in every process.
        """
        if self._accelerator is None:
            return list(numbers)
        packed = torch.tensor(numbers, dtype=torch.float64, device=device)
        return [float(x) for x in self._accelerator.reduce(packed, "sum")]

    def same(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers.

        Args:
            module: a module of the same tensors in every process.
        """
        if self._accelerator is None:
            return
        from accelerate.utils import broadcast

        for tensor in module.state_dict().values():
            tensor.copy_(broadcast(tensor, 0))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
