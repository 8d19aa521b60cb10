"""How time and memory grow: with images, steps, depth and width."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from speedysnn.bench.case import Call, Case, rows_of
from speedysnn.bench.inference import ann, best_pass
from speedysnn.bench.networks import converted, resnet20
from speedysnn.bench.peak import add_peaks
from speedysnn.network import SpikingNetwork

OURS, FULL, SOURCE = "speedysnn", "speedysnn, full look-ahead", "T x ANN"
FEW, LAYERS, CHANNELS = 64, 20, 16  # images while something else grows; the network while its other size does


@dataclass(frozen=True)
class Point:
    """Where a call stands in a figure.

    Attributes:
        line: which line it belongs to.
        along: what grows.
        at: how large that is.
        images: of the call.
        steps: likewise.
    """

    line: str
    along: str
    at: int
    images: int
    steps: int


def scaling(
    snn: SpikingNetwork, x: Tensor, rounds: int, batches: Sequence[int] = (32, 128, 512, 2048),
    steps: Sequence[int] = (1, 2, 4, 8, 16, 32),
) -> Case:  # fmt: skip
    """Time an image against the batch and against T, and with full look-ahead."""
    before = snn.timesteps

    def images(count: int) -> Tensor:
        return x.repeat(-(-count // len(x)), *[1] * (x.ndim - 1))[:count]

    def at(steps: int, batch: Tensor, delay: Any) -> None:
        snn.timesteps = steps
        snn.set_delay(delay)
        snn(batch)

    few, ends = images(FEW), (min(steps), max(steps))
    calls: dict[str, tuple[Call, Point]] = {}
    for n in batches:
        calls[f"T={before}, batch {n}"] = partial(at, before, images(n), 0), Point(OURS, "images", n, n, before)
    for t in steps:
        calls[f"T={t}, batch {FEW}"] = partial(at, t, few, 0), Point(OURS, "steps T", t, FEW, t)
    for t in ends:
        full = partial(at, t, few, "full"), Point(FULL, "steps T", t, FEW, t)
        calls[f"T={t}, full look-ahead, batch {FEW}"] = full
    with snn.preserved("timesteps", "delay"):
        return _case("scaling", calls, rounds, x.device)


def sizes(
    steps: int, batch: int, rounds: int, device: torch.device | str = "cpu",
    layers: Sequence[int] = (8, 20, 32, 56), channels: Sequence[int] = (8, 16, 32, 64),
) -> Case:  # fmt: skip
    """CIFAR ResNets, deeper and deeper and wider and wider, beside T passes of their sources; at most `FEW` images."""
    few, calls, notes = min(batch, FEW), dict[str, tuple[Call, Point]](), list[tuple[str, str, str]]()
    grown = [("layers", depth, depth, CHANNELS) for depth in layers]
    grown += [("channels at first", width, LAYERS, width) for width in channels]
    for along, at, depth, width in grown:
        build = partial(resnet20, width, (depth - 2) // 6)
        snn, x = converted(build, (3, 32, 32), steps, few, device=device)
        with torch.no_grad():
            size = best_pass(partial(_once, snn, x), x)
        what = f"{at} {along.split()[0]}"
        source, ours = f"{what}, {steps} x ANN, {size} at a time", f"{what}, speedysnn"
        calls[source] = partial(ann, snn, x, size, steps), Point(SOURCE, along, at, few, steps)
        calls[ours] = partial(snn, x), Point(OURS, along, at, few, steps)
        notes.append((what, source, ours))
    case = _case(f"sizes, T={steps}, batch {few}", calls, rounds, torch.device(device))
    median = {row["name"]: row["median_s"] for row in case.rows}
    case.notes = [f"{what}: {median[a] / median[b]:.2f} times as fast as {steps} x ANN" for what, a, b in notes]
    return case


def _once(snn: SpikingNetwork, x: Tensor, size: int) -> None:
    ann(snn, x, size, 1)


def _case(name: str, entries: Mapping[str, tuple[Call, Point]], rounds: int, device: torch.device) -> Case:
    calls = {label: call for label, (call, _) in entries.items()}
    with torch.no_grad():
        rows = rows_of(calls, rounds, device)
        add_peaks(rows, calls, device)
    for row, (_, point) in zip(rows, entries.values(), strict=True):
        each = row["median_s"] / point.images * 1e6
        row |= asdict(point) | {"us_per_image": each, "us_per_image_step": each / point.steps}
    return Case(name, next(iter(calls)), rows)
