"""`speedysnn inspect`: how every operator of a network would be converted."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

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
    data_of,
    model_of,
)
from speedysnn.cli.output import check_json, say, table, write_json
from speedysnn.convert import Report, Row
from speedysnn.convert import inspect as inspect_network
from speedysnn.data.batches import iter_batches
from speedysnn.errors import InputError

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
    """  # noqa: D301 - \b keeps the lines apart
    check_json(json, overwrite)
    if (data is None) == (input_shape is None):
        raise InputError("give the example input: either --data, or --input-shape such as 3,32,32")
    example = torch.randn(2, *_shape(input_shape)) if input_shape else _images(str(data), normalize)
    source = model_of(model, checkpoint, num_classes)
    kept = tuple(keep_analog or ())
    report = inspect_network(source.model, example, allow_hybrid=allow_hybrid, keep_analog=kept)
    write_json(json, report.to_json())
    if json != "-":
        _show(report, problems)
    return 0 if report.supported else 1


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
