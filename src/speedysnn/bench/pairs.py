"""Time several things A B A B in one process: noise of the machine hits all of them alike."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

LEAST, MOST = 0.1, 100  # seconds that a contestant is timed for in a round, and calls
SHORT = 2.0  # seconds of a call that the work before it may still weigh on


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant, round by round.

    Attributes:
        name: what was timed.
        seconds: one value a round.
        ratios: the base's seconds over these, round by round: how many times faster than the base.
    """

    name: str
    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Median over the rounds of base over this."""
        return statistics.median(self.ratios)

    def row(self) -> dict[str, Any]:
        """The figures as JSON data."""
        return {"name": self.name, "median_s": self.median, "best_s": min(self.seconds), "worst_s": max(self.seconds),
                "base_over_this": self.ratio, "rounds": len(self.seconds)}  # fmt: skip


def paired(
    contestants: Mapping[str, Callable[[], object]], base: str, rounds: int = 5, device: str = "cpu"
) -> dict[str, Timing]:
    """Run every contestant twice to warm up, then all of them in turn, `rounds` times.

    What is over sooner than `LEAST` is called again and again for so long, and its mean counts, and what is over sooner
    than `SHORT` is called once before it is timed: after the others, which fill the memory, it would find cold caches
    and pages that the system has taken, which is not how short work is done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for call in contestants.values():
        call()
    took = {name: _took(call, device) for name, call in contestants.items()}
    times = {name: max(1, min(MOST, round(LEAST / max(own, 1e-9)))) for name, own in took.items()}
    for _ in range(rounds):
        for name, call in contestants.items():
            gc.collect()
            if took[name] < SHORT:
                call()
            _synchronize(device)
            begin = time.perf_counter()
            for _ in range(times[name]):
                call()
            _synchronize(device)
            seconds[name].append((time.perf_counter() - begin) / times[name])
    return {
        name: Timing(name, tuple(own), tuple(b / s for b, s in zip(seconds[base], own, strict=True)))
        for name, own in seconds.items()
    }


def _took(call: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    _synchronize(device)
    begin = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - begin


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
