"""Networks by name, as 'torchvision:resnet18', 'FILE.py:FUNCTION' or 'net.pt2', with the weights of a checkpoint.

`MODELS` is the table of kinds of names and `FILES` that of files which hold a whole network; `load_model` looks a text
up in them.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speedysnn.errors import InputError, SourceError
from speedysnn.files import FILE, MODULE, UserFunction, closest, kind_of, reason
from speedysnn.sources.checkpoint import open_checkpoint as open_checkpoint
from speedysnn.sources.checkpoint import read_checkpoint as read_checkpoint
from speedysnn.sources.exported import load_program as load_program
from speedysnn.sources.onnx_reader import load_onnx as load_onnx
from speedysnn.sources.state_dict import load_weights as load_weights

_INSTALL = "install the torchvision release made for this torch, both from the same index"
_COMMAND = "pip install --upgrade torch torchvision"

# With weights=None these two warn that their slow initialisation will change one day.
_EXTRA_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}


@dataclass(frozen=True)
class Source:
    """A network and where it came from.

    Attributes:
        model: the network, in evaluation mode.
        spec: the text that named it.
        checkpoint: the file of its weights, None where none was given.
        sha256: of that file, or of the file that holds the whole network.
        notes: how the file was read, in sentences for the user.
    """

    model: nn.Module = field(repr=False)
    spec: str
    checkpoint: str | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()


def load_model(spec: str, *, checkpoint: str | Path | None = None, num_classes: int | None = None) -> Source:
    """Build the network a text names, with a checkpoint's weights if one is given, in evaluation mode.

    Nothing is ever downloaded: without a checkpoint a torchvision network has random weights.

    Args:
        spec: 'torchvision:NAME', 'FILE.py:FUNCTION' or 'package.module:FUNCTION', the function returns an nn.Module;
            or the path of a whole network: a .pt2 file of torch.export.save, or an .onnx file.
        checkpoint: a file of weights, see `read_checkpoint`.
        num_classes: outputs of the last layer, where the network can be asked for them.

    Returns:
        A `Source`: the network as `model`, and where it and its weights came from.

    Raises:
        InputError: the text names no kind of source, or num_classes is below 1.
        SourceError: the network cannot be built, or the checkpoint cannot be read or does not fit.

    Example:
        >>> from speedysnn.assets import asset_path, weights_name
        >>> from speedysnn.sources import load_model
        >>> weights = asset_path(weights_name("avg"))
        >>> source = load_model("speedysnn.assets.digits:avg_net", checkpoint=weights)
        >>> source.model.fc2
        Linear(in_features=64, out_features=10, bias=True)
        >>> len(source.sha256), source.model.training
        (64, False)
    """
    if num_classes is not None and num_classes < 1:
        raise InputError(f"num_classes must be at least 1, not {num_classes}")
    try:
        return _loaded(spec, checkpoint, num_classes)
    except OSError as err:
        raise SourceError(f"{spec}: {err.strerror or err}; check the path") from err


def _loaded(spec: str, checkpoint: str | Path | None, num_classes: int | None) -> Source:
    if Path(spec).suffix in FILES:
        return _from_file(spec, checkpoint, num_classes)
    kind = kind_of(spec, MODELS)
    if kind not in MODELS:
        raise InputError(_unknown(spec, kind))
    model = MODELS[kind](spec, num_classes)
    if not isinstance(model, nn.Module):
        raise SourceError(f"{spec} returned a {type(model).__name__}, expected a torch.nn.Module: return the network")
    if checkpoint is None:
        return Source(model.eval(), spec)
    opened = open_checkpoint(checkpoint)
    notes = load_weights(model, opened, spec)
    return Source(model.eval(), spec, str(checkpoint), opened.sha256, opened.notes + notes + _published(spec))


def _from_file(spec: str, checkpoint: str | Path | None, num_classes: int | None) -> Source:
    """Read a whole network with its weights from a file; no code in it is run."""
    for name, given in (("checkpoint", checkpoint), ("num_classes", num_classes)):
        if given is not None:
            raise InputError(f"{spec} holds a whole network with its weights: leave out {name} {given}")
    model, sha256, notes = FILES[Path(spec).suffix](spec)
    return Source(model, spec, None, sha256, notes)


def _published(spec: str) -> tuple[str, ...]:
    """A note on what torchvision does besides loading when it loads its own published weights."""
    if spec not in ("torchvision:googlenet", "torchvision:inception_v3"):
        return ()
    return (
        f"{spec}: the weights that torchvision publishes expect transform_input=True, which this network is built "
        "without; for those, give a FILE.py:FUNCTION that builds it so",
    )


def _unknown(spec: str, kind: str) -> str:
    hint = closest(kind, list(MODELS))
    if Path(spec).suffix == ".py":
        hint = f"; name the function in it too: {spec}:FUNCTION"
    elif Path(spec).is_file():
        hint = "; a checkpoint holds weights alone: name the network, and give this file as its checkpoint"
    else:
        names = _torchvision_names(strict=False)
        if spec in names:
            hint = f"; did you mean 'torchvision:{spec}'?"
    forms = ", ".join(repr(known if ":" in known else f"{known}:NAME") for known in MODELS)
    return f"unknown network {spec!r}{hint}; expected {forms}, or a {' or '.join(FILES)} file"


def _torchvision_names(*, strict: bool = True) -> list[str]:
    """The classification networks of torchvision; others return boxes, masks or dicts."""
    try:
        models = import_torchvision().models
    except SourceError:
        if strict:
            raise
        return []
    return [str(name) for name in models.list_models(module=models)]


def _from_torchvision(spec: str, num_classes: int | None) -> Any:
    name = spec.partition(":")[2]
    names = _torchvision_names()
    if name not in names:
        hint = closest(name, names) or f"; there are {', '.join(names)}"
        raise SourceError(f"torchvision has no classification network {name!r}{hint}")
    arguments = dict(_EXTRA_ARGUMENTS.get(name, {}))
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    try:
        return import_torchvision().models.get_model(name, weights=None, **arguments)
    except (TypeError, ValueError, RuntimeError) as err:
        raise SourceError(f"{spec} could not be built with {arguments}: {err}") from err


def _from_function(spec: str, num_classes: int | None) -> Any:
    function = UserFunction(spec, SourceError)
    if num_classes is None:
        return function()
    if not function.accepts("num_classes"):
        raise SourceError(
            f"{spec} takes no argument num_classes, so --num-classes {num_classes} has nowhere to go; "
            "leave it out, or give the function that parameter"
        )
    return function(num_classes=num_classes)


def import_torchvision() -> Any:
    """Import torchvision.

    Returns:
        The module torchvision.

    Raises:
        SourceError: torchvision is not installed, or does not fit the installed torch; says what to install.

    Example:
        >>> from speedysnn.sources import import_torchvision
        >>> import_torchvision().__name__
        'torchvision'
    """
    try:
        return _import()
    except ModuleNotFoundError as err:
        if err.name == "torchvision":
            raise SourceError(f"torchvision is not installed; {_INSTALL}: {_COMMAND}") from None
        raise _unusable(err) from err
    except (ImportError, OSError, RuntimeError, AttributeError) as err:  # what builds that do not fit end in
        raise _unusable(err) from err


def _import() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension", category=UserWarning)
        return importlib.import_module("torchvision")


def _unusable(err: BaseException) -> SourceError:
    return SourceError(
        f"torchvision is installed but does not import beside torch {torch.__version__} "
        f"({type(err).__name__}: {reason(err)}); {_INSTALL}: {_COMMAND}. Then start Python again"
    )


# One row a kind of source: (spec, num_classes) -> what should be an nn.Module.
MODELS: dict[str, Callable[[str, int | None], Any]] = {
    "torchvision": _from_torchvision,
    FILE: _from_function,
    MODULE: _from_function,
}

# One row a kind of file: path -> the network, the file's sha256, notes.
FILES: dict[str, Callable[[str], tuple[nn.Module, str, tuple[str, ...]]]] = {
    ".pt2": load_program,
    ".onnx": load_onnx,
}
