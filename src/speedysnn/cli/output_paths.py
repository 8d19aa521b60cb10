"""Output paths, refused before any work: nothing is replaced unasked, and never what no command here wrote."""

import os
from contextlib import ExitStack
from pathlib import Path

from speedysnn import artifact
from speedysnn.errors import ArtifactError, InputError
from speedysnn.files.atomic import claimed, try_writing

REPORT, RUN = "noise.json", "run.safetensors"
ELSEWHERE = "choose another name"
AGAIN = f"{ELSEWHERE}, or pass --overwrite"
_claims = ExitStack()


def claim(path: Path, option: str = "") -> None:
    """Hold an output until `release`, so that a second run into it is refused.

    Processes of one run (`accelerate launch`) share what their first one holds.

    Raises:
        ArtifactError: another run is writing there.
    """
    if os.environ.get("RANK", "0") in ("", "0"):
        _claims.enter_context(claimed(path, option, lend=True))


def release() -> None:
    """Let go of every output that was claimed."""
    _claims.close()


def check_network(path: Path, overwrite: bool) -> None:
    """Refuse an output network that is in the way or cannot be written.

    Raises:
        ArtifactError: something is there that may not be replaced.
        InputError: it lies below a file, or where nothing can be written.
    """
    if (path / artifact.NETWORK).is_file() and not overwrite:
        raise ArtifactError(f"{path}: a network is saved there already; {AGAIN}")
    artifact.check_target(path, overwrite)
    _check_parent(path)
    claim(path)


def check_report(path: Path, overwrite: bool) -> None:
    """Refuse a report folder that is a file, holds an earlier report (unless told), or anything else.

    Raises:
        InputError: something is there that may not be replaced, or nothing can be written there.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: a file is there; give a folder for the report")
    if path.is_dir() and any(path.iterdir()):
        if not (path / REPORT).is_file():
            raise InputError(f"{path}: the folder holds other files; give a new or empty folder for the report")
        if not overwrite:
            raise InputError(f"{path}: a report is there already; {AGAIN}")
    _check_parent(path / REPORT)
    claim(path)


def check_json(target: str | None, overwrite: bool, other: Path | None = None) -> None:
    """Refuse a JSON target that would replace something unasked or cannot be written; `other` is the command's output.

    Raises:
        InputError: a folder, a device, a file, another output or a saved network is there, or its folder is missing.
    """
    if target is None or target == "-":
        return
    path = Path(target)
    if other is not None and path.resolve() == other.resolve():
        raise InputError(f"--json {path}: that is the output too; {ELSEWHERE}")
    check_file(path, "--json", overwrite, ", or - for standard output")


def check_file(path: Path, option: str, overwrite: bool, instead: str = "") -> None:
    """Refuse a file's path likewise; `instead` is what else may be given.

    Raises:
        InputError: a folder, a device, a file or a saved network is there, or its folder is missing.
    """
    if path.is_dir():
        raise InputError(f"{option} {path}: a folder is there; give a file name{instead}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path}: its folder does not exist")
    if (path.absolute().parent / artifact.NETWORK).is_file():
        raise InputError(f"{option} {path}: its folder is a saved network, which must stay as it is; {ELSEWHERE}")
    if path.exists() and not path.is_file():
        raise InputError(f"{option} {path}: that is no plain file; give a file name{instead}")
    if path.exists() and not overwrite:
        raise InputError(f"{option} {path}: a file is there already; {AGAIN}")
    _check_parent(path, f"{option} ")


def check_run(folder: Path | None, output: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder for a run's state that is in the way, or a run that would be lost for want of `--resume`.

    Raises:
        InputError: it is a file, a saved network or the output, holds an earlier run, or cannot be written.
    """
    if folder is None:
        if resume:
            raise InputError("--resume: expected --run-dir, the folder of the run to go on with")
        return
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--run-dir {folder}: a file is there; give a folder")
    if (folder / artifact.NETWORK).is_file():
        raise InputError(f"--run-dir {folder}: a network is saved there; give another folder")
    if output.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise InputError(f"--run-dir {folder}: it is, or lies in, the output {output}; give another folder")
    if (folder / RUN).is_file() and not (resume or overwrite):
        raise InputError(
            f"--run-dir {folder}: an earlier run is there; pass --resume to go on with it, or --overwrite to begin anew"
        )
    _check_parent(folder / RUN, "--run-dir ")
    claim(folder, "--run-dir ")


def _check_parent(path: Path, option: str = "") -> None:
    """Refuse a path whose nearest existing folder is a file, or cannot be written, by trying."""
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{option}{path}: {parent.name} is a file, not a folder")
    try:
        try_writing(parent)
    except OSError as err:
        where = "the folder" if parent == path.absolute().parent else f"{parent.name or parent}"
        raise InputError(f"{option}{path}: {where} cannot be written to ({err.strerror or err})") from None
