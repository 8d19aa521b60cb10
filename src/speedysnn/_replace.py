"""Files that are replaced whole, and sets of files that are replaced together."""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from speedysnn._claims import exchange, scratch_beside

__all__ = ["replace_file", "replace_set"]


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; what a killed write of it left beside it goes.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    target = path.absolute()
    with scratch_beside(target) as scratch:
        (scratch / "new").write_bytes(content)
        (scratch / "new").replace(target)


def replace_set(folder: Path, files: Mapping[str, bytes], own: Collection[str]) -> None:
    """Write files into a folder, so that whoever looks, and a kill at any moment, finds all new or all old.

    That holds for a new folder, and for one with nothing but files named in `own`: the set is made beside it and takes
    its name in one step, and what is not in the set goes. Elsewhere (other things in it, the working folder, a mount
    point) every file is written under another name first and all are renamed then: each is whole, other things stay,
    a full disk changes nothing, and only a kill between two renames leaves new files beside old ones.

    Raises:
        OSError: they cannot be written.
    """
    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if _is_own(target, own):
        try:
            _whole(target, files)
        except OSError:
            if not target.is_dir():
                raise
        else:
            return
    with scratch_beside(target / "files") as scratch:
        _fill(scratch, files)
        for name in files:
            (scratch / name).replace(target / name)


def _is_own(target: Path, own: Collection[str]) -> bool:
    """Whether there is no folder yet, or one that may be replaced as a whole."""
    if not target.exists():
        return True
    here = Path.cwd()
    inside = (path.name in own and path.is_file() and not path.is_symlink() for path in target.iterdir())
    return target.is_dir() and target not in (here, *here.parents) and all(inside)


def _whole(target: Path, files: Mapping[str, bytes]) -> None:
    with scratch_beside(target) as scratch:
        fresh = scratch / "new"
        fresh.mkdir()
        _fill(fresh, files)
        if target.exists():
            shutil.copymode(target, fresh)
            exchange(fresh, target)
        else:
            fresh.replace(target)


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
