"""An ONNX file opened: checked by the package onnx, or a message that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from speedysnn._files import DOWNLOAD
from speedysnn.errors import SourceError


def read(file: Path, how: Callable[[Path], Any]) -> Any:
    """What `how` makes of a file, its errors as ours."""
    try:
        return how(file)
    except ImportError:
        raise SourceError(f'network {file} needs the package onnx: pip install "speedysnn[onnx]"') from None
    except Exception as err:  # a damaged file ends in errors of several libraries
        reason = str(err).strip().partition("\n")[0][:200]
        raise SourceError(
            f"network {file} is cut short, damaged, or no ONNX file ({type(err).__name__}: {reason}); {DOWNLOAD}, "
            "with the files of external data beside it"
        ) from None


def checked(file: Path) -> Any:
    """The model in a file that the package onnx finds well formed."""
    import onnx

    model = onnx.load(str(file))
    onnx.checker.check_model(model)
    return model


def require_known(file: Path, model: Any, known: Container[str]) -> None:
    """Refuse operators that are not known.

    Args:
        file: named in the message.
        model: the opened model.
        known: the names of the operators that are read.

    Raises:
        SourceError: there are others; names them all.
    """
    unknown = {
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        for node in model.graph.node
        if node.domain not in ("", "ai.onnx") or node.op_type not in known
    }
    if unknown:
        hint = "; give the network before it was quantized" if any("Quantize" in name for name in unknown) else ""
        raise SourceError(
            f"network {file} has operators that are not read from ONNX: {', '.join(sorted(unknown))}; give the PyTorch "
            f"network itself, or export it without them{hint}"
        )
