"""One benchmark: its rows, and how they are timed side by side."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from speedysnn.bench.pairs import paired

Call = Callable[[], object]


@dataclass
class Case:
    """One benchmark's rows.

    Attributes:
        name: what was measured.
        base: the contestant that the ratios are over.
        rows: figures of each contestant.
        notes: what was left out, and how well outputs agreed.
    """

    name: str
    base: str
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def rows_of(calls: dict[str, Call], rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Figures of each call, ratios over the first."""
    return [timing.row() for timing in paired(calls, next(iter(calls)), rounds, device.type).values()]
