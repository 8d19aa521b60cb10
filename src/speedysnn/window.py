"""The streaming state of a layer of neurons: a window of T inputs that come in while the last one's outputs go out."""

from collections.abc import Callable

import torch
from torch import Tensor

from speedysnn.errors import InputError

Fire = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Window:
    """What a neuron keeps between ticks: the sum of its inputs, and the spikes it has answered.

    At output step t it fires on (t/k) S[k], with S[k] the input summed over k = min(t + lookahead, T) steps.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._complete: Tensor | None = None
        self._count: Tensor | None = None
        self._dtype: torch.dtype | None = None
        self._arrived = 0
        self._emitted = 0

    def tick(self, x: Tensor | None, timesteps: int, lookahead: int, fire: Fire) -> Tensor | None:
        """Take the input of the next step, if there is one, and answer, or None while looking ahead.

        Args:
            x: (B, ...), or None.
            timesteps: T.
            lookahead: D in steps, 0 to T.
            fire: (paced sum, spikes so far) -> (spikes, what they stand for).

        Raises:
            InputError: the shape changed within a window.
        """
        if self._complete is not None:  # the last window's outputs go on while the next one's inputs arrive
            out = self._emit(self._complete, timesteps, lookahead, fire)
            if x is not None:
                self._arrive(x, timesteps)
            return out
        if x is None:
            return None
        self._arrive(x, timesteps)
        arrived = self._arrived if self._complete is None else timesteps
        total = self._sum if self._complete is None else self._complete
        if total is None or arrived - lookahead <= self._emitted:
            return None
        return self._emit(total, timesteps, lookahead, fire)

    def _arrive(self, x: Tensor, timesteps: int) -> None:
        self._dtype = x.dtype
        value = x.to(torch.promote_types(x.dtype, torch.float32))
        if self._sum is not None and self._sum.shape != value.shape:
            raise InputError(
                f"step: expected the shape {tuple(self._sum.shape)} of the steps before, got {tuple(value.shape)}; "
                "call reset() before another batch"
            )
        self._sum = value if self._sum is None else self._sum + value
        self._arrived += 1
        if self._arrived == timesteps:
            self._complete, self._sum, self._arrived = self._sum, None, 0

    def _emit(self, total: Tensor, timesteps: int, lookahead: int, fire: Fire) -> Tensor:
        t = self._emitted + 1
        k = min(t + lookahead, timesteps)
        paced = total if k == t else total * (t / k)
        count = torch.zeros_like(total) if self._count is None else self._count
        spikes, out = fire(paced, count)
        self._count, self._emitted = count + spikes, t
        if t == timesteps:
            self._count, self._complete, self._emitted = None, None, 0
        return out.to(self._dtype)
