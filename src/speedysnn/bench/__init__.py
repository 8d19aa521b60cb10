"""Benchmarks: what a network costs beside its source and other simulators; a benchmark's rows and how they are timed.

Time several things A B A B in one process: noise of the machine hits all of them alike.

Peak memory of a call: the high-water mark of the process, or of torch's memory on a GPU, reset before it.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from speedysnn.torch_utils import malloc_trim

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


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object], device: torch.device | None = None) -> int | None:
    """Bytes that a call adds at its peak to what the process holds before it; None where the system does not say.

    What earlier calls freed is given back to the system first, so that it does not hide what this one takes.
    """
    gc.collect()
    if device is not None and device.type == "cuda":
        return _on_gpu(call, device)
    malloc_trim()  # a benchmark's process is its own
    try:
        _CLEAR.write_text("5", encoding="ascii")
        before = _field("VmRSS")
    except OSError:
        return None
    call()
    return _field("VmHWM") - before


def add_peaks(
    rows: Sequence[dict[str, Any]], calls: Mapping[str, Callable[[], object]], device: torch.device
) -> None:  # fmt: skip
    """Call each row's contestant once more and note its peak."""
    for row in rows:
        row["peak_bytes"] = peak_bytes(calls[row["name"]], device)


def _on_gpu(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


def _field(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
