"""Tables on narrow terminals, and progress in plain lines."""

import re

import pytest
from rich.console import Console

from speedysnn import display
from speedysnn.cli import console
from speedysnn.display import shortened, track


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_table_never_breaks_a_name(width: int, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(console, "out", Console(highlight=False, soft_wrap=False, width=width))
    names = [f"features.denseblock4.denselayer{i}.a_rather_long_name.relu{i}" for i in range(20)]
    columns = ("layer", "SQNR dB", "quantized", "floor", "gain")
    console.table("title", columns, [(name, "12.3", "4.5", "16.7", "0.123") for name in names])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if "12.3" in line]
    assert len(rows) == 20
    assert max(map(len, lines)) <= width
    for i, row in enumerate(rows):
        assert re.search(rf"relu{i} +12\.3", row), row
        assert row.rstrip().endswith("0.123")
    assert not [line for line in lines if "relu" in line and "12.3" not in line]


def test_a_name_is_shortened_in_the_middle() -> None:
    assert shortened("short", 10) == "short"
    assert shortened("features.denseblock4.relu2", 12) == "fea…k4.relu2"
    assert all(len(shortened("features.denseblock4.relu2", width)) == width for width in range(1, 26))


def test_plain_lines_tell_how_many_and_how_long(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))

    class Items:
        def __iter__(self):
            return iter("abcd")

        def __length_hint__(self) -> int:
            return 4

    assert list(track(Items(), "working")) == list("abcd")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "working: 1/4 after 20 s, about 60 s left"
    assert lines[-1] == "working: 4/4 after 80 s, about 0 s left"
