"""The option --device: where a command computes."""

from typing import Annotated

import torch
import typer

from speedysnn.errors import InputError

Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda or cuda:N.")]


def device_of(text: str) -> torch.device:
    """The device named.

    Raises:
        InputError: another word, or a device that is not there.
    """
    kind, colon, number = text.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal())):
        raise InputError(f"--device: expected cpu, cuda or cuda:N, got {text!r}")
    if kind == "cpu":
        return torch.device(kind)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= there:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise InputError(
            f"--device: got {text!r}, but torch {torch.__version__} ({built}) finds {there} GPU{'s' * (there != 1)}; "
            "take --device cpu, or install a driver and a torch that fit"
        )
    return torch.device(text)
