"""What commands print and where they write: tables that fit the terminal, one-line errors, JSON, and output paths.

Paths are refused before any work: nothing is replaced unasked, and never what no command here wrote.
"""

import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from speedysnn import artifact
from speedysnn.display import shortened, shortened_path
from speedysnn.errors import ArtifactError, InputError
from speedysnn.files.atomic import claimed, replace_file, try_writing

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)
GAP = 2  # characters between two columns
LEAST_TEXT = 8  # characters that a shortened text keeps in the narrowest terminal
LEAST_PATH = 18  # and a path of a layer, which tells it from its neighbours then


def fail(message: str, code: int) -> int:
    """Print one error on stderr and give the exit code back.

    Returns:
        The exit code.
    """
    text = escape(" ".join(message.split("\r")).strip())
    err.print(f"[bold red]error:[/] {text}", soft_wrap=True)
    return code


def note(message: str) -> None:
    """Print one line about what is happening on stderr."""
    err.print(escape(message), style="dim", soft_wrap=True)


def say(message: str = "", style: str = "") -> None:
    """Print one line of a result on stdout."""
    out.print(escape(message), style=style, soft_wrap=True)


def cell(value: Any, digits: int = 2) -> str:
    """Write a value as a table shows it: a dash for what is not known.

    Returns:
        Text that rich prints as it is.

    Example:
        >>> from speedysnn.cli.output import cell
        >>> cell(1.2345), cell(None), cell("net[0]")
        ('1.23', '-', 'net[0]')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        text = f"{value:.{digits}f}"
        return text if float(text) else text.removeprefix("-")  # not -0.00
    return escape(str(value))


def typed(*words: object) -> str:
    """Join the words of a command as a shell takes them.

    Returns:
        The words quoted where a shell needs it.
    """
    return shlex.join(str(word) for word in words)


def percent(value: Any) -> str:
    """Write a fraction in per cent.

    Returns:
        Two digits after the point, or a dash.
    """
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Print a table on stdout.

    Columns with nothing in them are left out. Where the terminal is too narrow, the columns stand closer, the numbers'
    headers take a line a word, and the longest texts are shortened in the middle: no row ever takes a second line.

    Args:
        title: a line above the table.
        columns: the headers.
        rows: a cell a column, in rich's markup.
        left: how many of the first columns are text; the others are numbers, which stay whole.
    """
    cells = [[Text.from_markup(text) for text in row] for row in rows]
    kept = [i for i in range(len(columns)) if not cells or any(row[i].plain for row in cells)]
    widths = {i: max((row[i].cell_len for row in cells), default=0) for i in kept}
    narrow = sum(max(width, len(columns[i])) + GAP for i, width in widths.items()) - GAP > out.width
    headers = {i: columns[i].replace(" ", "\n") if narrow and i >= left else columns[i] for i in kept}
    rooms = _text_widths(headers, widths, left) if narrow else dict.fromkeys(kept, out.width)
    grid = Table(box=None, pad_edge=False, collapse_padding=narrow)
    for i in kept:
        grid.add_column(headers[i], justify="left" if i < left else "right", no_wrap=not (narrow and i >= left),
                        min_width=widths[i] if i >= left else None)  # fmt: skip
    for row in cells:
        grid.add_row(*(_cut(row[i], rooms[i], i) if i < left else row[i] for i in kept))
    say(title, "bold")
    out.print(grid)


def _text_widths(headers: Mapping[int, str], widths: Mapping[int, int], left: int) -> dict[int, int]:
    """Find how wide each text may be so that all columns fit: the widest gives way first, paths of layers last."""
    words = {i: max(map(len, header.split()), default=0) for i, header in headers.items()}
    numbers = sum(max(words[i], widths[i]) + 1 for i in headers if i >= left)
    rooms = {i: max(len(headers[i]), widths[i]) for i in headers if i < left}
    while sum(rooms.values()) + len(rooms) + numbers - 1 > out.width:
        wide = [i for i in rooms if rooms[i] > (LEAST_TEXT if i else LEAST_PATH)]
        wide = wide or [i for i in rooms if rooms[i] > LEAST_TEXT]
        if not wide:
            break
        rooms[max(wide, key=rooms.__getitem__)] -= 1
    return rooms


def _cut(text: Text, width: int, column: int) -> Text:
    """Shorten a text in its own style; the first column holds paths of layers."""
    if text.cell_len <= width:
        return text
    shorter = shortened_path if column == 0 and " " not in text.plain else shortened
    return Text(shorter(text.plain, width), style=text.spans[0].style if text.spans else "")


def strict(value: Any) -> Any:
    """Make JSON data without NaN or infinity.

    Returns:
        The data with None for NaN, and "inf" and "-inf" for infinities.

    Example:
        >>> from speedysnn.cli.output import strict
        >>> strict({"loss": float("nan"), "sqnr": [float("inf"), 1.5]})
        {'loss': None, 'sqnr': ['inf', 1.5]}
    """
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if hasattr(value, "item") and not isinstance(value, str | int | float | bool):
        return strict(value.item())
    return value


def write_json(target: str | None, data: Any) -> None:
    """Write JSON to a file in one step, or to standard output for "-"; nothing for None."""
    if target is None:
        return
    text = json.dumps(strict(data), indent=1, allow_nan=False)
    if target == "-":
        sys.stdout.write(text + "\n")
        return
    replace_file(Path(target), (text + "\n").encode())


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
