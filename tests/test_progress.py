"""Progress counts images, not passes, so that a measurement of one pass shows how far it is; no figure depends on it."""

import io
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from speedysnn import analysis, convert, display
from speedysnn.display import counting, scaled, track
from speedysnn.network import SpikingNetwork

X = torch.rand(12, 4, generator=torch.Generator().manual_seed(1))
MEASUREMENTS = {
    "measuring noise": lambda snn, **more: analysis.measure_noise(snn, X, **more).layers,
    "evaluating": lambda snn, **more: analysis.evaluate(snn, X, **more).to_json(),
    "sweeping": lambda snn, **more: analysis.sweep(snn, X, (1, 2, 4), recalibrate=False, **more),
    "moving knobs": lambda snn, **more: analysis.knobs(snn, X, timesteps=(2, 8), theta_scale=(0.5,), **more),
    "measuring sensitivity": lambda snn, **more: analysis.measure_sensitivity(snn, X, **more).table,
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def converted() -> SpikingNetwork:
    return convert.to_spiking(network(), X, timesteps=4)


class Terminal(io.StringIO):
    """Standard error on a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is told in a line of its own."""
    monkeypatch.setattr(display, "_EVERY_S", 0.0)


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself, since pytest sets standard error again after its fixtures."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    return out


def counts(text: str, label: str) -> list[tuple[int, int]]:
    """(done, total) of every line."""
    return [(int(a), int(b)) for a, b in re.findall(rf"^{label}: (\d+)/(\d+) after", text, re.MULTILINE)]


@pytest.mark.parametrize("label", MEASUREMENTS)
def test_a_measurement_of_one_pass_counts_its_images(label: str, lines: None, capsys) -> None:
    measure, snn = MEASUREMENTS[label], converted()
    silent: Any = measure(snn)
    capsys.readouterr()
    shown: Any = measure(snn, progress=True)
    found = counts(capsys.readouterr().err, label)
    assert found[-1] == (12, 12)
    assert found == sorted(found)
    assert len(found) > 1 or label == "measuring sensitivity"  # which takes a piece of the images as a whole
    assert silent == shown if isinstance(silent, dict) else silent.equals(shown)


@pytest.mark.parametrize("staircase", [False, True])
def test_the_check_against_the_source_counts_the_two_networks(staircase: bool, lines: None, capsys) -> None:
    class Staircase(nn.Module):
        """An activation trained with quantization, as QCFS has it."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.t = nn.Parameter(torch.tensor([2.0])), 4

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.clamp(x / self.up, 0, 1)
            return torch.floor(x * self.t + 0.5) / self.t * self.up

    net = network()
    if staircase:
        net[1], net[3] = Staircase(), Staircase()
    convert.to_spiking(net, X, timesteps=4, progress=True)
    assert counts(capsys.readouterr().err, "checking against the source") == [(1, 2), (2, 2)]


@pytest.mark.parametrize("total", [1, None])
def test_work_in_one_piece_is_named_and_not_counted(total: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with counting("working", total=total):
        pass
    assert "working" in terminal.getvalue()
    assert not re.search(r"\d/[\d?]", terminal.getvalue())


def test_a_bar_shows_done_and_total(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with counting("working", total=4) as done:
        done(1)
        done(2)
    assert "3/4" in terminal.getvalue()


def test_work_of_unknown_size_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    assert list(track((c for c in "abc"), "working")) == list("abc")
    assert "working 3" in terminal.getvalue()


def test_several_threads_add_up_to_whole_numbers(lines: None, capsys) -> None:
    with counting("working", total=100) as done, ThreadPoolExecutor(8) as pool:
        list(pool.map(scaled(done, 1 / 3), [1.0] * 300))
    found = counts(capsys.readouterr().err, "working")
    assert len(found) == 300
    assert max(found) == (100, 100)


def test_nothing_is_shown_unless_asked(lines: None, capsys) -> None:
    with counting("working", total=2, enabled=False) as done:
        done(1)
    assert capsys.readouterr().err == ""
