"""Read one checkpoint file without running code from it, and say what is wrong with one that cannot be read."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speedysnn._files import DOWNLOAD, require_file, require_unpacks, start_of
from speedysnn.errors import SourceError

NETWORKS = (".pt2", ".onnx")
_TORCH_STARTS = (b"PK", b"\x80")  # a zip archive, or a pickle as before torch 1.6
# What torch.load raises on a damaged file depends on where it is damaged.
_TORCH_ERRORS = (RuntimeError, EOFError, OSError, struct.error, ValueError, LookupError, AttributeError, TypeError,
                 ArithmeticError, AssertionError, MemoryError, SystemError)  # fmt: skip


def read_content(file: Path) -> Any:
    require_file(file, "checkpoint")
    _require_weights_file(file)
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)


def _require_weights_file(file: Path) -> None:
    start = start_of(file, "checkpoint")
    if file.suffix in NETWORKS:
        raise SourceError(
            f"checkpoint {file} is a whole network, not weights alone: give it as the network itself, without a "
            f"checkpoint (MODEL is {file.name})"
        )
    if file.suffix != ".safetensors" and not start.startswith(_TORCH_STARTS):
        raise SourceError(_not_torch(file))


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as err:
        raise SourceError(
            f"checkpoint {file} is not a whole safetensors file ({_first_line(err)}); {DOWNLOAD}, "
            "or rename it if torch.save wrote it"
        ) from err


def _data_only_types() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Plain data that training scripts store beside weights: numpy scalars and parsed arguments. None runs code."""
    reduced: Any = np.float64(0).__reduce__()
    scalar: Callable[..., Any] = reduced[0]  # its module's name changed with numpy 2
    dtypes = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [argparse.Namespace, np.dtype, *dtypes, *((scalar, name) for name in names)]


def _read_torch(file: Path) -> Any:
    require_unpacks(file, "checkpoint")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_data_only_types()):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise SourceError(_refused(file, str(err))) from err
    except _TORCH_ERRORS as err:
        if "TorchScript" in str(err):
            raise SourceError(
                f"checkpoint {file} is a TorchScript program, not weights; load it with torch.jit.load where its "
                "code may run, and save its .state_dict()"
            ) from err
        raise SourceError(
            f"checkpoint {file} is cut short or damaged ({_first_line(err)}), {file.stat().st_size:,} bytes came; "
            f"{DOWNLOAD}, and compare its size or checksum with the publisher's"
        ) from err


def _not_torch(file: Path) -> str:
    return (
        f"checkpoint {file} is not a file torch.save wrote, or it is damaged; expected .pth, .pt or .ckpt from "
        f"torch.save, or .safetensors; {DOWNLOAD}"
    )


def _refused(file: Path, reason: str) -> str:
    name = re.search(r"(?:GLOBAL|Unsupported class) ([A-Za-z_][\w.]*)", reason)
    if name is None:
        return _not_torch(file)
    return (
        f"checkpoint {file} was not opened: besides weights it holds {name[1]}, and loading that would run code. "
        "Where you trust it, load it with the code that made it and save weights alone: "
        "torch.save(model.state_dict(), 'weights.pth')"
    )


def _first_line(err: BaseException) -> str:
    return str(err).strip().partition("\n")[0].partition(". This is an internal")[0] or type(err).__name__
