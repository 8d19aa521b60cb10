"""Import torchvision even where its compiled operators do not load, as with a CUDA build beside a CPU-only torch."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from typing import Any

import torch

from speedysnn.errors import SourceError

__all__ = ["import_torchvision"]

# Operators that torchvision's Python side expects to exist on import. A schema without a kernel is enough: calling
# one still fails, and only detection models do.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_MISSING = re.compile(r"operator torchvision::\w+ does not exist")
_kept_alive: list[torch.library.Library] = []  # a schema lives as long as the library object that defined it


def import_torchvision() -> Any:
    """The torchvision module, imported with stand-in operator schemas where the compiled ones are missing.

    Raises:
        SourceError: torchvision is not installed, or does not fit the installed torch.
    """
    try:
        return _import()
    except ModuleNotFoundError as err:
        if err.name != "torchvision":
            raise _unusable(err) from err
        raise SourceError("torchvision is not installed; install it beside torch: pip install torchvision") from None
    except RuntimeError as err:
        if not _MISSING.search(str(err)):
            raise _unusable(err) from err
    except (ImportError, OSError, AttributeError) as err:
        raise _unusable(err) from err
    _define_schemas()
    _forget()
    try:
        return _import()
    except Exception as err:
        raise _unusable(err) from err


def _import() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension", category=UserWarning)
        try:
            return importlib.import_module("torchvision")
        except BaseException:
            _forget()
            raise


def _forget() -> None:
    """Drop the modules a failed import left behind, or the next one would find them half filled."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def _define_schemas() -> None:
    if _kept_alive:
        return
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    _kept_alive.append(library)


def _unusable(err: BaseException) -> SourceError:
    reason = str(err).strip().partition("\n")[0]
    return SourceError(
        f"torchvision is installed but does not import beside torch {torch.__version__} "
        f"({type(err).__name__}: {reason}); install the torchvision release made for this torch, "
        "both from the same index: pip install --upgrade torch torchvision"
    )
