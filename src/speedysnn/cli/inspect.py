"""`speedysnn inspect`: how every operator of a network would be converted."""

from typing import Annotated

import torch
import typer
from rich.markup import escape

from speedysnn.cli.common import Checkpoint, Classes, JsonFile, Model, Normalize, Overwrite, data_of, model_of
from speedysnn.cli.show import say, table, write_json
from speedysnn.cli.targets import check_json
from speedysnn.convert import Report
from speedysnn.convert import inspect as inspect_network
from speedysnn.errors import InputError

COLOURS = {"exact": "green", "approximate": "yellow", "unsupported": "bold red"}


def command(
    model: Model,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Images for the example input.")] = None,
    normalize: Normalize = None,
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", help="Shape of one input instead of data, such as 3,224,224.")
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
    """  # noqa: D301 - \b keeps the lines apart
    check_json(json, overwrite)
    if (data is None) == (input_shape is None):
        raise InputError("give the example input: either --data, or --input-shape such as 3,32,32")
    example = torch.randn(2, *_shape(input_shape)) if input_shape else _images(str(data), normalize)
    source = model_of(model, checkpoint, num_classes)
    report = inspect_network(source.model, example)
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
    images = data_of(data, "train", normalize, 2, 0)
    return torch.stack([images[i][0] if images.labelled else images[i] for i in range(len(images))])


def _show(report: Report, problems: bool) -> None:
    rows = report.problems if problems else report.rows
    if rows:
        table(
            f"{report.network}: {len(report.rows)} operators",
            ("layer", "operator", "treatment", "why", "what to change", "source"),
            [
                (escape(row.path), escape(row.operator), f"[{COLOURS[row.treatment]}]{row.treatment}[/]",
                 escape(row.why), escape(row.advice), escape(row.source))
                for row in rows
            ],
            left=6,
        )  # fmt: skip
    never = f"; never called: {', '.join(report.never_called)}" if report.never_called else ""
    say(f"{report.activations_found} activation modules found, {report.neurons} neuron layers placed{never}")
    verdict = "everything converts" if report.supported else f"{len(report.problems)} operators cannot be converted"
    say(verdict, "bold green" if report.supported else "bold red")
