"""The running average of a network's state over training steps, which is judged and kept in place of the last one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Average:
    """m <- d m + (1 - d) p after every step n, d = min(decay, (1 + n) / (10 + n)) (Polyak and Juditsky 1992).

    Attributes:
        values: m, by name of parameter or buffer; thresholds are averaged as log theta.
        steps: n.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    @torch.no_grad()
    def update(self, module: nn.Module, decay: float) -> None:
        """Take in the present state; with decay 0 no average is kept, and the state is judged as it is."""
        if not decay:
            return
        self.steps += 1
        share = 1 - min(decay, (1 + self.steps) / (10 + self.steps))
        present = _floating(module)
        if not self.values:
            self.values = {name: value.clone() for name, value in present.items()}
        torch._foreach_lerp_([self.values[name] for name in present], list(present.values()), share)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module holds the average; its own state comes back afterwards."""
        present = _floating(module) if self.values else {}
        own = {name: value.clone() for name, value in present.items()}
        with torch.no_grad():
            try:
                for name, value in present.items():
                    value.copy_(self.values[name])
                yield
            finally:
                for name, value in present.items():
                    value.copy_(own[name])


def _floating(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.state_dict().items() if value.is_floating_point()}
