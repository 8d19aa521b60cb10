"""`speedysnn inspect`: how every operator of a network would be converted."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape

from speedysnn.cli.options import (
    AllowHybrid,
    Checkpoint,
    Classes,
    JsonFile,
    KeepAnalog,
    Model,
    Normalize,
    Overwrite,
    chip_of,
    data_of,
    model_of,
    network_of,
)
from speedysnn.cli.output import check_json, say, table, write_json
from speedysnn.convert import Report, Row, to_spiking
from speedysnn.convert import inspect as inspect_network
from speedysnn.data.batches import iter_batches
from speedysnn.errors import InputError
from speedysnn.integer import PROFILES, Program, is_chip, misfits
from speedysnn.integer import load as load_chip
from speedysnn.integer.profiles import find_profile

COLOURS = {"spiking": "green", "hybrid": "yellow", "unsupported": "bold red"}


def command(
    model: Model,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Images for the example input.")] = None,
    normalize: Normalize = None,
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", help="Shape of one input instead of data, such as 3,224,224.")
    ] = None,
    allow_hybrid: AllowHybrid = False,
    keep_analog: KeepAnalog = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", help=f"List what does not fit a platform instead: {', '.join(PROFILES)}; also NET.snn."
        ),
    ] = None,
    problems: Annotated[bool, typer.Option("--problems", help="List only what cannot be converted.")] = False,
    overwrite: Overwrite = False,
    json: JsonFile = None,
) -> int:
    """Say how every operator would be converted, where it is, and what to change.

    Exit code 0: everything converts; 1: something does not; 2: a mistake in the command.

    \b
    Example: speedysnn inspect torchvision:resnet18 --input-shape 3,64,64
             speedysnn inspect net.py:make -c net.pth -d npz:images.npz --problems
             speedysnn inspect net.py:make --input-shape 3,32,32 --json report.json
             speedysnn inspect digits.snn --profile speck
    """  # noqa: D301 - \b keeps the lines apart
    check_json(json, overwrite)
    if profile is not None and Path(model).is_dir():
        return _platform(_program_of(Path(model), profile), profile, json)
    if (data is None) == (input_shape is None):
        raise InputError("give the example input: either --data, or --input-shape such as 3,32,32")
    example = torch.randn(2, *_shape(input_shape)) if input_shape else _images(str(data), normalize)
    source = model_of(model, checkpoint, num_classes)
    kept = tuple(keep_analog or ())
    if profile is not None:
        snn = to_spiking(source.model, example, timesteps=4, keep_analog=kept)
        find_profile(profile)
        return _platform(chip_of(snn, (8, 16, None), "generic", normalize).program, profile, json)
    report = inspect_network(source.model, example, allow_hybrid=allow_hybrid, keep_analog=kept)
    write_json(json, report.to_json())
    if json != "-":
        _show(report, problems)
    return 0 if report.supported else 1


def _program_of(folder: Path, profile: str) -> Program:
    """The integer network in a folder: a chip, or a spiking network in the bits of the profile."""
    made = find_profile(profile)
    if is_chip(folder):
        return load_chip(folder).program
    bits = (min(8, made.weight_bits), min(32, made.state_bits), "layer" if made.one_scale else "channel")
    return chip_of(network_of(folder), bits, "generic", None).program


def _platform(program: Program, profile: str, json: str | None) -> int:
    """Say what of an integer network does not fit a platform; the exit code."""
    found = misfits(program, profile)
    rows: list[dict[str, Any]] = [vars(item) for item in found]
    write_json(json, {"profile": profile, "sources": list(find_profile(profile).sources), "misfits": rows})
    if json != "-":
        for item in found:
            say(escape(f"{item.layer}: {item.what}; {item.advice}"))
        for source in find_profile(profile).sources:
            say(escape(f"limits from {source}"))
        verdict = f"{len(found)} things do not fit {profile}" if found else f"it fits {profile}"
        say(verdict, "bold red" if found else "bold green")
    return 1 if found else 0


def _shape(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--input-shape: expected whole numbers such as 3,32,32 (without the batch), got {text!r}")
    return [int(part) for part in parts]


def _images(data: str, normalize: str | None) -> torch.Tensor:
    return next(iter_batches(data_of(data, "train", normalize, 2, 0))).inputs[0]


def _show(report: Report, problems: bool) -> None:
    rows = report.problems if problems else report.rows
    if rows:
        table(
            f"{report.network}: {len(report.rows)} operators, read by torch.{report.tracer}",
            ("layer", "operator", "treatment", "source", "neurons", "operations", "state"),
            [
                (escape(row.path), escape(row.operator), f"[{COLOURS[row.treatment]}]{row.treatment}[/]",
                 escape(row.source), f"{row.neurons:,}", f"{row.operations:,}", f"{row.state:,}")
                for row in rows
            ],
            left=4,
        )  # fmt: skip
    for (treatment, accuracy, why, advice), count in _reasons(rows).items():
        said = ", ".join(word for word in (treatment, accuracy) if word)
        say(escape(f"{said}: {count} x {why}") + (escape(f". To do: {advice}") if advice else ""))
    never = f"; never called: {', '.join(report.never_called)}" if report.never_called else ""
    say(f"{report.activations_found} activation modules found, {report.neurons} neuron layers placed{never}")
    total = report.frame[["neurons", "operations", "state"]].sum()
    say(f"one image: {total.neurons:,} neurons, {total.operations:,} operations a step, {total.state:,} values kept")
    say(_verdict(report), "bold green" if report.supported else "bold red")


def _reasons(rows: Sequence[Row]) -> Counter[tuple[str, str, str, str]]:
    """How often each treatment is given for each reason, the first met first."""
    return Counter((row.treatment, row.accuracy, row.why, row.advice) for row in rows)


def _verdict(report: Report) -> str:
    """What can be done with the network, in a line."""
    kinds = report.frame.treatment.value_counts()
    hybrid, unsupported = int(kinds.get("hybrid", 0)), int(kinds.get("unsupported", 0))
    if unsupported:
        return f"{unsupported} operators cannot be converted"
    if hybrid and not report.allow_hybrid:
        return f"{hybrid} operators need an analog unit: it converts with --allow-hybrid"
    return f"everything converts, {hybrid} operators on an analog unit" if hybrid else "everything converts"
