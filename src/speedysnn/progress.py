"""What a terminal shows of long work: a bar, plain lines elsewhere, nothing unless asked; and names that fit it."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import TypeVar

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
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            for item in items:
                yield item
                bar.update(task, advance=1, description=label if status is None else f"{label} {status()}")
        return
    begin = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= _EVERY_S:
            last = now
            of = f"/{total}" if total else ""
            left = f", about {(now - begin) / done * (total - done):.0f} s left" if total else ""
            words = "" if status is None else f", {status()}"
            sys.stderr.write(f"{label}: {done}{of} after {now - begin:.0f} s{left}{words}\n")
            sys.stderr.flush()


def shortened(name: str, width: int) -> str:
    """A name in at most `width` characters: cut in the middle, for its end tells layers apart."""
    if len(name) <= width:
        return name
    if width < 2:
        return name[len(name) - width :]
    end = -(-(width - 1) * 2 // 3)  # two thirds
    return f"{name[: width - 1 - end]}…{name[len(name) - end :]}"
