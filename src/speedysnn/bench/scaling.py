"""How time and memory grow: with images, steps, depth and width.

Networks to time, with weights of their own size and thresholds calibrated on the images given.

A figure of benchmarks: bars of each contestant's time, lines where something grows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor, nn

from speedysnn import convert
from speedysnn.bench import Call, Case, add_peaks, rows_of
from speedysnn.bench.cases import ann, best_pass
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork


class _Block(nn.Module):
    """Two convolutions and a shortcut without weights, which takes every second place and pads channels with zeros."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(outside), nn.ReLU()
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(outside), nn.ReLU()
        self.stride, self.more = stride, outside - inside

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.more:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        activated: Tensor = self.relu2(out + x)
        return activated


def resnet20(width: int = 16, blocks: int = 3) -> nn.Module:
    """The CIFAR ResNet (He et al. 2016) of 6 * blocks + 2 layers, random weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inside = width
    for stage in range(3):
        for block in range(blocks):
            outside = width * 2**stage
            layers.append(_Block(inside, outside, 2 if stage and not block else 1))
            inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10))


def resnet18() -> nn.Module:
    """The ResNet-18 of torchvision with an average pool in place of the max-pool, which peers do not compute alike."""
    model: nn.Module = torchvision.models.resnet18(weights=None)
    model.maxpool = nn.AvgPool2d(2)
    return model


def digits() -> nn.Module:
    """Four convolutions and two linear layers for 8x8 images."""
    layers: list[nn.Module] = []
    for inside, outside in ((1, 16), (16, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
        if outside != inside and inside > 1:
            layers.append(nn.AvgPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "digits": (digits, (1, 8, 8)),
    "resnet20": (resnet20, (3, 32, 32)),
    "resnet18": (resnet18, (3, 224, 224)),
}


def make(
    name: str, steps: int, batch: int, pixels: int | None = None, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[SpikingNetwork, Tensor]:
    """A converted network and seeded images for it.

    Raises:
        InputError: no network has that name.
    """
    if name not in NETWORKS:
        raise InputError(f"network: expected one of {', '.join(NETWORKS)}, got {name!r}")
    build, shape = NETWORKS[name]
    shape = shape if pixels is None else (shape[0], pixels, pixels)
    return converted(build, shape, steps, batch, seed, device)


def converted(
    build: Callable[[], nn.Module], shape: tuple[int, int, int], steps: int, batch: int, seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[SpikingNetwork, Tensor]:  # fmt: skip
    """The same of what `build` makes."""
    torch.manual_seed(seed)
    model = build().eval()
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():  # statistics that fit, so that activity neither dies out nor explodes
        model.train()
        model(x[: min(16, batch)])
    snn = convert.to_spiking(model.eval(), x[: min(16, batch)], steps, correct="none")
    return snn.to(device), x.to(device)


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


DPI = 130
_BLUE, _GREY = "#0072b2", "#bbbbbb"
_LINES: Mapping[str, dict[str, Any]] = {
    SOURCE: {"color": "#000000", "linestyle": (0, (5, 2)), "marker": "s"},
    FULL: {"color": "#e69f00", "marker": "o"},
}
_HEAD = "Median times, less is better; in brackets: times faster than the first row"
_IDEALS = {"images": "ideal: flat", "steps T": "ideal: flat; full look-ahead: 1/T"}
Row = Mapping[str, Any]


def draw(cases: Sequence[Mapping[str, Any]], titles: Sequence[str] = ()) -> Figure:
    """Every case of `Case`, as a dictionary, below the one before; titles are their names unless given."""
    heights = [3.2 if grows(case) else 0.75 + 0.24 * len(case["rows"]) for case in cases]
    figure = Figure(figsize=(9, 0.4 + sum(heights)), layout="constrained")
    if not all(map(grows, cases)):
        figure.suptitle(_HEAD, fontsize=9, x=0.01, ha="left")
    parts = figure.subfigures(len(cases), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, case, title in zip(parts, cases, titles or [str(case["name"]) for case in cases], strict=True):
        if not grows(case):
            axes = part.subplots()
            _bars(axes, case["rows"])
            axes.set_title(title, fontsize=9, loc="left")
            continue
        part.suptitle(title, fontsize=9, x=0.01, ha="left")
        alongs = list(dict.fromkeys(row["along"] for row in case["rows"]))
        for axes, along in zip(part.subplots(1, len(alongs), squeeze=False)[0], alongs, strict=True):
            _lines(axes, [row for row in case["rows"] if row["along"] == along], along)
    return figure


def grows(case: Mapping[str, Any]) -> bool:
    """Whether a case shows how times grow along something."""
    return all("along" in row for row in case["rows"])


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    names, times = [row["name"] for row in rows], [1e3 * row["median_s"] for row in rows]
    axes.barh(names, times, color=[_BLUE if name.startswith(OURS) else _GREY for name in names])
    for i, (row, time) in enumerate(zip(rows, times, strict=True)):
        shown = f"{time:,.{0 if time >= 100 else 1 if time >= 1 else 3}f}"
        axes.text(time, i, f" {shown} ms ({row['base_over_this']:.2f}x)", va="center", fontsize=8)
    axes.set_xlim(0, 1.3 * max(times))
    axes.invert_yaxis()
    axes.set_xlabel("ms", fontsize=8, labelpad=1)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(axes: Axes, rows: Sequence[Row], along: str) -> None:
    for name in dict.fromkeys(row["line"] for row in rows):
        own = [row for row in rows if row["line"] == name]
        style = _LINES.get(name, {"color": _BLUE, "marker": "o"})
        axes.plot([row["at"] for row in own], [row["us_per_image_step"] for row in own], label=name, **style)
    places = sorted({row["at"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places], minor=False)
    axes.set_xticks([], minor=True)
    times = [row["us_per_image_step"] for row in rows]
    if max(times) > 10 * min(times):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.15 * max(times))
    axes.set_xlabel(along, fontsize=8)
    axes.set_ylabel("µs per image and step", fontsize=8)
    axes.set_title(_IDEALS.get(along, "ideal: no more than T x ANN"), fontsize=8, loc="left")
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
