"""Read the weights in a checkpoint: one file, or a folder of shards; no code in it is run.

Weights are found whatever usual key they lie below, prefixes that every name has are removed, and what is damaged, not
finite or more than data is refused with a message that says what to do.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speedysnn.errors import SourceError
from speedysnn.files import DOWNLOAD, checksum, expanded, require_file, require_unpacks, start_of

NETWORKS = (".pt2", ".onnx")
_TORCH_STARTS = (b"PK", b"\x80")  # a zip archive, or a pickle as before torch 1.6
# What torch.load raises on a damaged file depends on where it is damaged.
_TORCH_ERRORS = (RuntimeError, EOFError, OSError, struct.error, ValueError, LookupError, AttributeError, TypeError,
                 ArithmeticError, AssertionError, MemoryError, SystemError)  # fmt: skip

WHOLE = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"

# Where training scripts keep the weights, best first: plain weights before averaged ones.
PLAIN = ("state_dict", "model_state_dict", "model", "net", "network", "params")
AVERAGED = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "params_ema")
NESTED = PLAIN + AVERAGED
PART = "::"  # FILE::KEY names the part of a file to take
PREFIXES = ("module.", "_orig_mod.", "model.")
_COMPILED = "_orig_mod"
_REPEATED = 2**20  # values that a tensor may have without holding them, as an expanded one

_DEEPEST = 4  # `NESTED` keys one below the other

_T = TypeVar("_T")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one file.

    Attributes:
        path: the file, or the folder of shards.
        weights: tensors by name, on the CPU.
        sha256: of the file, or of all shards in order.
        notes: which part of the file was taken, and how its keys were changed.
    """

    path: Path
    weights: dict[str, Tensor] = field(repr=False)
    sha256: str
    notes: tuple[str, ...] = ()


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint file, by name, on the CPU.

    Reads .safetensors, anything `torch.save` wrote as long as it holds only data, and a folder as accelerate and
    transformers save it, sharded or not. Weights below one of the usual keys (`NESTED`) are found, plain ones before
    averaged ones, and prefixes that every key has (`PREFIXES`) removed.

    Args:
        path: the file or folder; `FILE::KEY` takes the part of the file below KEY.

    Returns:
        Tensors by name.

    Raises:
        SourceError: missing, empty, damaged, not a checkpoint, holds code, no tensors, or NaN or infinity.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from speedysnn.sources import read_checkpoint
        >>> file = Path(tempfile.mkdtemp()) / "run.pth"
        >>> torch.save({"epoch": 3, "state_dict": {"module.fc.weight": torch.ones(2, 4)}}, file)
        >>> {name: tuple(value.shape) for name, value in read_checkpoint(file).items()}
        {'fc.weight': (2, 4)}
    """
    return open_checkpoint(path).weights


def open_checkpoint(path: str | Path) -> Checkpoint:
    """As `read_checkpoint`, together with the file's sha256 and notes on what was taken from it.

    Args:
        path: as for `read_checkpoint`.

    Returns:
        The weights and where they came from.

    Raises:
        SourceError: as `read_checkpoint`.

    Example:
        >>> from speedysnn.assets import asset_path, weights_name
        >>> from speedysnn.sources import open_checkpoint
        >>> opened = open_checkpoint(asset_path(weights_name("avg")))
        >>> tuple(opened.weights["fc2.weight"].shape), opened.notes
        ((10, 64), ())
    """
    try:
        return _opened(path)
    except OSError as err:
        raise SourceError(f"checkpoint {path} cannot be read: {err.strerror or err}; check the path") from err


def _opened(path: str | Path) -> Checkpoint:
    file, part = _split_part(path)
    if file.is_dir() and (parts := shards(file)):
        content: Any = {}
        for shard in parts:
            content.update(_tensors(read_content(shard)))
        files = parts
    else:
        content, files = read_content(file), [file]
    weights, notes = _find_weights(file, _part(file, content, part))
    _require_dense(file, weights)
    if len(files) > 1:
        notes.append(f"put together from {len(files)} files")
    weights, prefixes = strip_prefixes(weights)
    if prefixes:
        notes.append(f"removed {', '.join(map(repr, prefixes))} from the front of every key")
    _require_finite(file, weights)
    return Checkpoint(file, weights, checksum(files), tuple(notes))


def _split_part(path: str | Path) -> tuple[Path, str]:
    whole = expanded(path)
    head, mark, key = str(whole).rpartition(PART)
    return (Path(head), key) if mark and not whole.exists() else (whole, "")


def _part(file: Path, content: Any, key: str) -> Any:
    if not key:
        return content
    if not isinstance(content, Mapping) or key not in content:
        raise SourceError(f"checkpoint {file} has no part {key!r}: {_described(content)}")
    return content[key]


def _find_weights(file: Path, content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors at the top level, or below the first of `NESTED` that holds any, however deep."""
    notes: list[str] = []
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            break
        found = [key for key in NESTED if _holds_tensors(content.get(key))]
        if not found:
            break
        if len(found) > 1:
            others = ", ".join(map(repr, found[1:]))
            notes.append(f"took {found[0]!r}, not {others} (for those write {file.name}{PART}{found[1]})")
        elif found[0] in AVERAGED:
            notes.append(f"took the averaged weights {found[0]!r}, the only ones there")
        content = content[found[0]]
    weights = _tensors(content)
    if not weights:
        raise SourceError(
            f"checkpoint {file} holds no weights: {_described(content)}; expected a dict from names to tensors, "
            f"alone or below one of {', '.join(map(repr, NESTED))}; save model.state_dict()"
        )
    return weights, notes


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    return {str(key): value.detach() for key, value in content.items() if isinstance(value, Tensor)}


def _holds_tensors(content: Any, depth: int = 0) -> bool:
    """Whether it holds tensors, directly or below keys of `NESTED`; the depth is limited, as it may hold itself."""
    return (
        isinstance(content, Mapping)
        and depth < _DEEPEST
        and (bool(_tensors(content)) or any(_holds_tensors(content.get(key), depth + 1) for key in NESTED))
    )


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"it is one {type(content).__name__}"
    keys = [f"{key!r} ({type(value).__name__})" for key, value in content.items()]
    return f"it has the keys {', '.join(keys[:6])}" if keys else "it is an empty dict"


def strip_prefixes(weights: Mapping[str, _T]) -> tuple[dict[str, _T], list[str]]:
    """Remove, again and again, each of `PREFIXES` that every key has; torch.compile's marker also inside keys."""
    removed: list[str] = []
    weights = dict(weights)
    while weights:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) and key != p for key in weights)), None)
        if prefix is None:
            break
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
        removed.append(prefix)
    clean = {".".join(part for part in key.split(".") if part != _COMPILED): value for key, value in weights.items()}
    return clean, removed


def some(names: list[str], shown: int = 3) -> str:
    """A text with the first few names and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _require_dense(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no plain arrays, or claim more values than the file holds."""
    for key, value in weights.items():
        if value.layout != torch.strided or value.is_nested or value.is_quantized or value.device.type != "cpu":
            kind = "quantized" if value.is_quantized else f"{value.layout} on {value.device}"
            raise SourceError(
                f"checkpoint {file}: {key} is no plain array of numbers ({kind}); save dense weights in floating point"
            )
        if value.numel() > _REPEATED and value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise SourceError(
                f"checkpoint {file}: {key} claims {value.numel():,} values, the file holds "
                f"{value.untyped_storage().nbytes():,} bytes for it; {DOWNLOAD}"
            )


def _require_finite(file: Path, weights: Mapping[str, Tensor]) -> None:
    floats = {key: value for key, value in weights.items() if value.is_floating_point()}
    bad = [key for key, value in floats.items() if not bool(value.float().isfinite().all())]
    if bad:
        raise SourceError(
            f"checkpoint {file} holds NaN or infinity in {some(bad)}: its training diverged or the file is damaged; "
            "use an earlier checkpoint"
        )


def shards(folder: Path) -> list[Path]:
    """The files that hold a saved folder's weights, in order; none if it is no such folder.

    Raises:
        SourceError: the index is damaged, or a shard it names is missing or lies elsewhere.
    """
    for name in WHOLE:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}{INDEX}"
        if index.is_file():
            return [_shard(folder, index, shard) for shard in _named(index)]
    return []


def _named(index: Path) -> list[str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(name) for name in names})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as err:
        reason = f"{type(err).__name__}: {err}"
        raise SourceError(f"checkpoint {index} is no index of shards ({reason}); copy it again") from None


def _shard(folder: Path, index: Path, name: str) -> Path:
    if Path(name).name != name:
        raise SourceError(f"checkpoint {index} names a shard outside its folder: {name!r}")
    if not (folder / name).is_file():
        raise SourceError(f"checkpoint {folder}: the shard {name} that {index.name} names is missing; copy it too")
    return folder / name


def read_content(file: Path) -> Any:
    """What a checkpoint file holds, as data alone.

    Raises:
        SourceError: it is missing, no checkpoint, damaged, or holds more than data.
    """
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


def _data_only_types() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Plain data that training scripts store beside weights: numpy scalars and parsed arguments. None runs code."""
    reduced: Any = np.float64(0).__reduce__()
    scalar: Callable[..., Any] = reduced[0]  # its module's name changed with numpy 2
    dtypes = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [argparse.Namespace, np.dtype, *dtypes, *((scalar, name) for name in names)]


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
