"""Tables on narrow terminals, and progress in plain lines."""

import re

import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

from speedysnn import display
from speedysnn.cli import output as console
from speedysnn.convert.calibrate import batches_in
from speedysnn.display import shortened, shortened_path, track


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


def test_shortened_paths_of_a_deep_network_stay_apart() -> None:
    paths = [f"features.denseblock{i}.denselayer{j}.relu{k}" for i in (3, 4) for j in range(1, 25) for k in (1, 2)]
    for width in (18, 25, 32, 40):
        short = [shortened_path(path, width) for path in paths]
        assert len(set(short)) == len(paths)
        assert max(map(len, short)) <= width
    assert shortened_path("layer1.0.relu", 20) == "layer1.0.relu"
    assert all(len(shortened_path(paths[0], width)) <= width for width in range(1, 40))


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_row_of_a_wide_table_takes_a_second_line_and_colours_are_not_cut(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "out", Console(highlight=False, width=width))
    rows = [(f"features.denseblock3.denselayer{i}.relu2", "torch.nn.ReLU", "[green]neuron[/]",
             "torchvision/models/densenet.py:80", "12,544", "1,204,224") for i in range(1, 5)]  # fmt: skip
    console.table("wide", ("layer", "operator", "treatment", "source", "neurons", "operations"), rows, left=4)
    shown = [line for line in capsys.readouterr().out.splitlines() if "relu2" in line]
    assert len(shown) == len(rows)
    assert all("[" not in line and "12,544" in line for line in shown)


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


def test_batches_of_calibration_data_are_counted_before_any_is_read() -> None:
    x = torch.zeros(130, 2)
    assert batches_in(x) == batches_in((x, torch.zeros(130))) == batches_in({"image": x}) == 3
    assert batches_in(TensorDataset(x)) == 3
    assert batches_in(DataLoader(TensorDataset(x), batch_size=10)) == 13
    assert batches_in([x, x]) == 2
    assert batches_in(iter([x])) is None
