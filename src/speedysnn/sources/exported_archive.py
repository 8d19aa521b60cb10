"""The parts of a torch.export archive (.pt2): one program as JSON, and its tensors; no code in it is run."""

from __future__ import annotations

import io
import json
import math
import pickle
import sys
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speedysnn.errors import SourceError
from speedysnn.files import DOWNLOAD, ODD, expanded, reason, require_file, require_unpacks, start_of

# Element types by the number the format gives them.
DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_MODELS, _CONFIGS = "models/", ("weights", "constants")
_REPEATED = 2**20  # values that a tensor may have without holding them
_AGAIN = "save it again with torch.export.save from torch 2.9 or newer"


@dataclass(frozen=True)
class Archive:
    """One exported program: `program` as JSON data, `tensors` by name, on the CPU."""

    path: Path
    program: Mapping[str, Any] = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)


def read_archive(path: str | Path) -> Archive:
    """Read a file that torch.export.save wrote, without torch.export.load, which runs what the file tells it to.

    Raises:
        SourceError: missing, damaged, of another format, or it holds objects that are more than data.
    """
    file = expanded(path)
    require_file(file, "network")
    start_of(file, "network")
    require_unpacks(file, "network")
    try:
        with zipfile.ZipFile(file) as archive:
            parts = _Parts(file, archive)
            return Archive(file, parts.program(), parts.tensors())
    except zipfile.BadZipFile as err:
        raise SourceError(
            f"network {file} is cut short, damaged, or no file torch.export.save wrote ({err}); {DOWNLOAD}"
        ) from None
    except (*ODD, OSError, EOFError, zlib.error) as err:
        raise SourceError(
            f"network {file} is no exported program as expected ({type(err).__name__}: {reason(err)}); {_AGAIN}"
        ) from err


class _Parts:
    """The members of an open archive, below its one folder."""

    def __init__(self, file: Path, archive: zipfile.ZipFile) -> None:
        self.file, self.archive = file, archive
        self.members = {name.partition("/")[2]: name for name in archive.namelist()}
        models = [name for name in self.members if name.startswith(_MODELS) and name.endswith(".json")]
        if len(models) != 1:
            raise SourceError(f"network {file} {self._instead(len(models))}")
        self.name = models[0].removeprefix(_MODELS).removesuffix(".json")
        if self._optional("byteorder", sys.byteorder.encode()).decode() != sys.byteorder:
            raise SourceError(f"network {file} was written in another byte order than this machine's; {_AGAIN} here")

    def _instead(self, models: int) -> str:
        if models:
            return f"holds {models} programs, expected one; save that one alone with torch.export.save"
        names = self.archive.namelist()
        if any("aotinductor" in name for name in names):
            return "holds compiled machine code, no graph; give the file torch.export.save wrote before compiling"
        if any(name.endswith("serialized_exported_program.json") for name in names):
            return f"is an exported program of an older torch; {_AGAIN}"
        if any(name.endswith("constants.pkl") for name in names):
            return "is a TorchScript program; export the network with torch.export instead"
        if any(name.endswith("data.pkl") for name in names):
            return "holds weights alone: name the network, and give this file as its checkpoint"
        return "is a zip archive, but not one that torch.export.save wrote; give the .pt2 file"

    def _optional(self, name: str, default: bytes) -> bytes:
        return self.archive.read(self.members[name]) if name in self.members else default

    def _json(self, name: str) -> Any:
        return json.loads(self.archive.read(self.members[name]))

    def program(self) -> Mapping[str, Any]:
        found = self._json(f"{_MODELS}{self.name}.json")
        if not isinstance(found, Mapping):
            raise ValueError("its graph is no JSON object")
        return found

    def tensors(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for kind in _CONFIGS:
            if f"data/{kind}/{self.name}.pt" in self.members:
                raise SourceError(f"network {self.file} keeps its {kind} as an older torch did; {_AGAIN}")
            config = self._json(f"data/{kind}/{self.name}_{kind}_config.json")["config"]
            out.update({name: self._tensor(kind, name, entry) for name, entry in config.items()})
        return out

    def _tensor(self, kind: str, name: str, entry: Mapping[str, Any]) -> Tensor:
        raw = self.archive.read(self.members[f"data/{kind}/{entry['path_name']}"])
        if entry["use_pickle"]:
            return self._unpickled(name, raw)
        meta = entry["tensor_meta"]
        sizes, strides = ([int(n["as_int"]) for n in meta[key]] for key in ("sizes", "strides"))
        dtype = DTYPES[meta["dtype"]]
        if math.prod(sizes) > max(len(raw) // dtype.itemsize, _REPEATED):
            raise ValueError(f"the tensor {name!r} claims {math.prod(sizes):,} values in {len(raw):,} bytes")
        if not raw:
            return torch.zeros(sizes, dtype=dtype)
        flat = torch.frombuffer(bytearray(raw), dtype=dtype)
        return flat.as_strided(sizes, strides, int(meta["storage_offset"]["as_int"])).clone()

    def _unpickled(self, name: str, raw: bytes) -> Tensor:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as err:
            raise self._no_data(name) from err
        if not isinstance(value, Tensor):
            raise self._no_data(name)
        return value

    def _no_data(self, name: str) -> SourceError:
        return SourceError(
            f"network {self.file} was not opened: its {name!r} is an object and no tensor, and loading that would run "
            "code; export the network without it"
        )
