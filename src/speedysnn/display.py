"""What a terminal shows of long work: a bar, plain lines elsewhere, nothing unless asked; and names that fit it.

What a notebook shows for a network, a noise report or a run: a line of facts and a table, all text escaped.

Strict JSON: no NaN, no Infinity, no numpy.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from operator import length_hint
from typing import Any, TypeVar

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

_EVERY_S = 15.0


def track(
    items: Iterable[T], label: str, *, total: int | None = None, enabled: bool = True,
    status: Callable[[], str] | None = None,
) -> Iterator[T]:  # fmt: skip
    """The items, with progress on stderr: a bar on a terminal, a line every 15 seconds elsewhere.

    `total` is `operator.length_hint` of the items where it is not given; with it the time left is shown too.
    `status` gives a few words on where the work stands, shown beside the count.
    """
    if not enabled:
        yield from items
        return
    if total is None:
        total = length_hint(items) or None
    with counting(label, total=total, status=status) as done:
        for item in items:
            yield item
            done(1)


Done = Callable[[float], None]


@contextmanager
def counting(
    label: str, *, total: int | None = None, enabled: bool = True, status: Callable[[], str] | None = None
) -> Iterator[Done]:
    """Progress of work that says itself how much is done, with `total` and `status` as in `track`.

    Work in one piece, or of unknown size, is shown by its name and the time it takes: "0/1" says nothing.

    Yields:
        A function to call with what was done since the last call, as images; fractions count, and any thread may call.
    """
    if not enabled:
        yield no_progress
    elif sys.stderr.isatty():
        with _on_terminal(label, None if total == 1 else total, status) as done:
            yield done
    else:
        yield _in_lines(label, total, status)


def no_progress(_: float) -> None:
    """Show nothing of what is done."""


def scaled(done: Done, share: float) -> Done:
    """Progress of a part of the work: what is done counts by the part's share of the whole."""
    return lambda amount: done(amount * share)


@contextmanager
def _on_terminal(label: str, total: int | None, status: Callable[[], str] | None) -> Iterator[Done]:
    """A bar where it is known how much there is to do, else a count once something is done."""
    known = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), *(known if total else (TimeElapsedColumn(),)))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, sums = bar.add_task(label, total=total), _Sum()

        def done(amount: float) -> None:
            completed = sums.add(amount)
            words = [label, *([] if total else [f"{completed:.0f}"]), *([] if status is None else [status()])]
            bar.update(task, completed=completed, description=" ".join(words))

        yield done


def _in_lines(label: str, total: int | None, status: Callable[[], str] | None) -> Done:
    """A line every 15 seconds."""
    sums, begin, writing = _Sum(), time.monotonic(), threading.Lock()
    last = begin

    def done(amount: float) -> None:
        nonlocal last
        with writing:  # the time is read inside, so that no thread comes with an earlier one than the last line's
            completed, now = sums.add(amount), time.monotonic()
            if now - last < _EVERY_S or not completed:
                return
            last = now
            of = f"/{total}" if total else ""
            left = f", about {(now - begin) / completed * (total - completed):.0f} s left" if total else ""
            words = "" if status is None else f", {status()}"
            sys.stderr.write(f"{label}: {int(completed)}{of} after {now - begin:.0f} s{left}{words}\n")
            sys.stderr.flush()

    return done


class _Sum:
    """How much is done, added up by several threads; thirds of whole numbers come to whole numbers."""

    def __init__(self) -> None:
        self._sum, self._lock = 0.0, threading.Lock()

    def add(self, amount: float) -> float:
        """Add to the sum and return it."""
        with self._lock:
            self._sum += amount
            return round(self._sum, 6)


def shortened(name: str, width: int) -> str:
    """A name in at most `width` characters: cut in the middle, for its end tells layers apart."""
    if len(name) <= width:
        return name
    if width < 2:
        return name[len(name) - width :]
    end = -(-(width - 1) * 2 // 3)  # two thirds
    return f"{name[: width - 1 - end]}…{name[len(name) - end :]}"


def shortened_path(path: str, width: int) -> str:
    """Shorten a layer's path to at most `width` characters so that it can still be told from its neighbours'.

    Modules from the left are cut to their first letter and their number until the path fits; of what is then still
    too long, the end is kept.

    Args:
        path: names of modules with dots between them.
        width: characters.

    Returns:
        The path itself where it fits.

    Example:
        >>> from speedysnn.display import shortened_path
        >>> shortened_path("features.denseblock3.denselayer13.relu2", 30)
        'f…d…3.denselayer13.relu2'
    """
    short, rest = "", path
    while len(short + rest) > width and "." in rest:
        module, _, rest = rest.partition(".")
        number = module[len(module.rstrip("0123456789")) :]
        short += min(f"{module}.", f"{module[:1]}…{number}." if number else f"{module[:1]}…", key=len)
    short += rest
    return short if len(short) <= width else shortened(short, 1) if width < 2 else f"…{short[1 - width :]}"


def block(title: str, sentences: Sequence[str], table: pd.DataFrame, most: int = 40) -> str:
    """HTML of a title, sentences and the first `most` rows of a table; numbers to four digits."""
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    shown = table.head(most).to_html(index=False, escape=True, border=0, na_rep="-", float_format="{:.4g}".format)
    left = len(table) - most
    more = f"<p>and {left} more rows</p>" if left > 0 else ""
    return f"<div><strong>{escape(title)}</strong>{lines}{shown}{more}</div>"


def plain(value: Any) -> Any:
    """A figure as JSON data: infinities as the words "inf" and "-inf", NaN and what was not measured as None.

    Rows of figures are taken figure by figure.
    """
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return None
    return "inf" if value > 0 else "-inf"
