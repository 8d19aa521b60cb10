"""Files of a checkpoint that was saved as a folder: one file of weights, or shards with an index."""

import json
from pathlib import Path

from speedysnn.errors import SourceError

WHOLE = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"


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
