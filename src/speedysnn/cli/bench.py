"""`speedysnn bench`: what a network costs beside its source and beside other simulators."""

import platform
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from speedysnn.cli import process
from speedysnn.cli.options import Device, JsonFile, Overwrite, device_of, network_of
from speedysnn.cli.output import check_file, check_json, note, say, table, write_json
from speedysnn.errors import InputError
from speedysnn.files.atomic import replace_file

CASES = ("neuron", "inference", "training", "measuring", "scaling", "sizes")
KEPT = ", freed memory kept"


def command(
    cases: Annotated[list[str] | None, typer.Argument(help=f"Which of {', '.join(CASES)}; all by default.")] = None,
    network: Annotated[str, typer.Option("--network", help="digits, resnet20, resnet18 or a NET.snn.")] = "resnet20",
    timesteps: Annotated[int, typer.Option("--timesteps", "-T", min=1, help="Steps.")] = 8,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images.")] = 256,
    pixels: Annotated[int | None, typer.Option("--pixels", min=8, help="Height and width of the images.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds, all contestants in turn in each.")] = 5,
    neurons: Annotated[int, typer.Option("--neurons", min=1, help="Neurons of the single layer.")] = 2_000_000,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Time torch.compile too (needs a C++ compiler), on a GPU CUDA graphs.")
    ] = False,
    device: Device = "cpu",
    json: JsonFile = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Also draw the times into this PNG file.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Time a network against T passes of its source, and against other simulators where they are installed.

    Contestants run in turn in one process; ratios are taken round by round, so that other load hits all alike. Of the
    layer of neurons all do so twice: as in a Python process of one's own, and with freed memory kept, as commands do.

    \b
    Example: speedysnn bench
             speedysnn bench inference --network resnet18 --pixels 64 -T 8 --json speed.json --figure speed.png
    """  # noqa: D301 - \b keeps the lines apart
    chosen = tuple(cases or CASES)
    unknown = [case for case in chosen if case not in CASES]
    if unknown:
        raise InputError(f"bench: expected some of {', '.join(CASES)}, got {', '.join(unknown)}")
    place = device_of(device)
    check_json(json, overwrite, figure)
    if figure is not None:
        check_file(figure, "--figure", overwrite)
    from speedysnn.bench import Case

    found: list[Case] = []
    for case, kept in _in_order(chosen):
        if kept:
            process.keep_freed_memory()
            if case == "neuron" and not process.kept():
                continue
        note(f"timing {case}{KEPT * process.kept()}")
        found.append(_run(case, network, timesteps, batch, pixels, rounds, neurons, compiled, place))
        found[-1].name += KEPT * (case == "neuron" and kept)
        if json != "-":
            _show(found[-1])
    data = [asdict(case) for case in found]
    write_json(json, {"machine": machine(place), "cases": data})
    if figure is not None:
        from speedysnn.analysis.report.style import png
        from speedysnn.bench.scaling import DPI, draw

        replace_file(figure, png(draw(data), DPI))


def _in_order(chosen: Collection[str]) -> list[tuple[str, bool]]:
    """The cases and whether freed memory is kept, which cannot be taken back."""
    return [("neuron", False)] * ("neuron" in chosen) + [(case, True) for case in CASES if case in chosen]


def _run(
    case: str,
    network: str,
    steps: int,
    batch: int,
    pixels: int | None,
    rounds: int,
    neurons: int,
    compiled: bool,
    device: torch.device,
) -> Any:
    from speedysnn.bench import cases, scaling
    from speedysnn.bench.cases import inference

    if case == "neuron":
        return cases.neuron(neurons, steps, rounds, device)
    if case == "sizes":
        return scaling.sizes(steps, batch, rounds, device)
    snn, x = _network(network, steps, batch, pixels, device)
    if case == "inference":
        return inference(snn, x, rounds, compiled=compiled)
    chosen = {"training": cases.training, "measuring": cases.measuring, "scaling": scaling.scaling}[case]
    return chosen(snn, x, rounds)


def _network(name: str, steps: int, batch: int, pixels: int | None, device: torch.device) -> Any:
    from speedysnn.bench.scaling import make

    if not name.endswith(".snn"):
        return make(name, steps, batch, pixels, device=device)
    snn = network_of(Path(name)).to(device)
    snn.timesteps = steps
    shape = snn.input_shapes[0] if pixels is None else (*snn.input_shapes[0][:-2], pixels, pixels)
    return snn, torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)


def machine(device: torch.device) -> dict[str, Any]:
    """The kind of machine and of GPU, the versions of what was timed, and whether freed memory is kept."""
    from speedysnn.bench.simulators import facts

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"machine": platform.machine(), "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(), "accelerator": gpu, "freed_memory_kept": process.kept(),
            "packages": facts()}  # fmt: skip


def _show(case: Any) -> None:
    rows = []
    for row in case.rows:
        peak = row.get("peak_bytes")
        rows.append((row["name"], f"{1e3 * row['median_s']:.1f}", f"{1e3 * row['best_s']:.1f}",
                     f"{row['base_over_this']:.2f}", "" if peak is None else f"{peak / 2**20:,.0f}"))  # fmt: skip
    columns = ("contestant", "median ms", "best ms", "ratio", "peak MiB")
    table(f"{case.name}; ratio: times faster than '{case.base}', median of the rounds", columns, rows)
    for line in case.notes:
        say(line)
