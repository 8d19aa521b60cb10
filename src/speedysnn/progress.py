"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing unless asked."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
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

    `status` gives a few words on where the work stands, shown beside the count.
    """
    if not enabled:
        yield from items
        return
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
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
