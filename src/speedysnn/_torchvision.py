"""Import torchvision, or say what to install where it does not import."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch

from speedysnn.errors import SourceError

__all__ = ["import_torchvision"]

_INSTALL = "install the torchvision release made for this torch, both from the same index"
_COMMAND = "pip install --upgrade torch torchvision"


def import_torchvision() -> Any:
    """Import torchvision.

    Returns:
        The module torchvision.

    Raises:
        SourceError: torchvision is not installed, or does not fit the installed torch; says what to install.
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
    reason = str(err).strip().partition("\n")[0]
    return SourceError(
        f"torchvision is installed but does not import beside torch {torch.__version__} "
        f"({type(err).__name__}: {reason}); {_INSTALL}: {_COMMAND}. Then start Python again"
    )
