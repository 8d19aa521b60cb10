"""What commands print: tables, one-line errors, JSON."""

import json
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from speedysnn.display import shortened
from speedysnn.files.atomic import replace_file

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)
GAP = 2  # characters between two columns
LEAST_TEXT = 8  # characters that a shortened text keeps in the narrowest terminal


def fail(message: str, code: int) -> int:
    """Print one error on stderr and give the exit code back.

    Returns:
        The exit code.
    """
    text = escape(" ".join(message.split("\r")).strip())
    err.print(f"[bold red]error:[/] {text}", soft_wrap=True)
    return code


def note(message: str) -> None:
    """One line about what is happening, on stderr."""
    err.print(escape(message), style="dim", soft_wrap=True)


def say(message: str = "", style: str = "") -> None:
    """One line of result on stdout."""
    out.print(escape(message), style=style, soft_wrap=True)


def cell(value: Any, digits: int = 2) -> str:
    """A value as a table shows it: a dash for what is not known.

    Returns:
        Text that rich prints as it is.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return escape(str(value))


def typed(*words: object) -> str:
    """Words of a command as a shell takes them.

    Returns:
        The words quoted where a shell needs it.
    """
    return shlex.join(str(word) for word in words)


def percent(value: Any) -> str:
    """A fraction in per cent.

    Returns:
        Two digits after the point, or a dash.
    """
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """A table on stdout; the first `left` columns are text, the others numbers.

    Columns with nothing in them are left out. Where the terminal is too narrow, the columns stand closer, the numbers'
    headers take a line a word, and texts are shortened in the middle: no row ever takes a second line.
    """
    cells = [list(row) for row in rows]
    kept = [i for i in range(len(columns)) if not cells or any(row[i] for row in cells)]
    widths = [max(len(text) for text in (columns[i], *(row[i] for row in cells))) + GAP for i in kept]
    narrow = sum(widths) - GAP > out.width
    grid = Table(box=None, pad_edge=False, collapse_padding=narrow)
    headers = {i: columns[i].replace(" ", "\n") if narrow and i >= left else columns[i] for i in kept}
    room = _room_of_texts(headers, cells, left) if narrow else out.width
    for i in kept:
        grid.add_column(headers[i], justify="left" if i < left else "right", no_wrap=not (narrow and i >= left),
                        min_width=max((len(row[i]) for row in cells), default=0) if i >= left else None)  # fmt: skip
    for row in cells:
        grid.add_row(*(shortened(row[i], room) if i < left else row[i] for i in kept))
    say(title, "bold")
    out.print(grid)


def _room_of_texts(headers: Mapping[int, str], cells: Sequence[Sequence[str]], left: int) -> int:
    """Characters that each column of text may take beside the numbers, which stay whole."""
    numbers = [i for i in headers if i >= left]
    words = {i: max(map(len, headers[i].split()), default=0) for i in numbers}
    taken = sum(max(words[i], *(len(row[i]) for row in cells)) + 1 for i in numbers) if cells else 0
    texts = max(1, len(headers) - len(numbers))
    return max(LEAST_TEXT, (out.width - taken) // texts - (texts > 1))


def strict(value: Any) -> Any:
    """JSON data without NaN or infinity: null for NaN, "inf" and "-inf"."""
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
