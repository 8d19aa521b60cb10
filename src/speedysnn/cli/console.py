"""What commands print: tables that fit the terminal, one-line errors, and strict JSON."""

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
from rich.text import Text

from speedysnn.display import shortened, shortened_path
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
        >>> from speedysnn.cli.console import cell
        >>> cell(1.2345), cell(None), cell("net[0]")
        ('1.23', '-', 'net[0]')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
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
    room = _text_width(headers, widths, left) if narrow else out.width
    grid = Table(box=None, pad_edge=False, collapse_padding=narrow)
    for i in kept:
        grid.add_column(headers[i], justify="left" if i < left else "right", no_wrap=not (narrow and i >= left),
                        min_width=widths[i] if i >= left else None)  # fmt: skip
    for row in cells:
        grid.add_row(*(_cut(row[i], room, i) if i < left else row[i] for i in kept))
    say(title, "bold")
    out.print(grid)


def _text_width(headers: Mapping[int, str], widths: Mapping[int, int], left: int) -> int:
    """Find how wide a text may be so that all columns fit; texts that are shorter leave their room to longer ones."""
    words = {i: max(map(len, header.split()), default=0) for i, header in headers.items()}
    numbers = sum(max(words[i], widths[i]) + 1 for i in headers if i >= left)
    texts = [max(len(headers[i]), widths[i]) for i in headers if i < left]
    room = max([LEAST_TEXT, *texts])
    while room > LEAST_TEXT and sum(min(width, room) + 1 for width in texts) + numbers - 1 > out.width:
        room -= 1
    return room


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
        >>> from speedysnn.cli.console import strict
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
