"""Ctrl-C reaches the tests' processes also where the suite runs in the background, which ignores it."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Python's own handler, which children that are started meanwhile do not ignore either."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
