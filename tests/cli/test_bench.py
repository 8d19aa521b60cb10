"""`speedysnn bench`: contestants in turn, equal work only, JSON."""

import json
import time
from pathlib import Path

import pytest
import torch

import speedysnn.bench as pairs
from speedysnn.analysis.report.style import png
from speedysnn.bench import paired, peak_bytes, scaling, simulators
from speedysnn.cli.main import run


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contestants are called once a round, however short they are."""
    monkeypatch.setattr(pairs, "LEAST", 0.0)


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize(("short", "turns"), [(0.0, ["a", "b"] * 3), (9.0, ["a", "a", "b", "b"] * 3)])
def test_contestants_take_turns_and_ratios_are_taken_round_by_round(
    monkeypatch: pytest.MonkeyPatch, short: float, turns: list[str]
) -> None:
    monkeypatch.setattr(pairs, "SHORT", short)
    order: list[str] = []
    timings = paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, "a", rounds=3)
    assert order == ["a", "b"] * 2 + turns  # twice to warm up
    assert len(timings["b"].seconds) == 3
    expected = [a / b for a, b in zip(timings["a"].seconds, timings["b"].seconds, strict=True)]
    assert timings["b"].ratios == pytest.approx(expected)
    assert timings["a"].ratio == 1


def test_short_calls_are_made_again_and_their_mean_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "LEAST", 0.02)
    made: list[float] = []

    def call() -> None:
        made.append(time.perf_counter())
        time.sleep(0.002)

    timing = paired({"a": call}, "a", rounds=1)["a"]
    assert 3 + 2 < len(made) <= 3 + 10  # two to warm up, one in the round
    assert 0.002 <= timing.median < 0.02  # a call's, not the round's


def test_peak_memory_of_a_call() -> None:
    found = peak_bytes(lambda: torch.ones(2**24).sum())
    if found is None:
        pytest.skip("the system does not say")
    assert 2**26 * 0.9 <= found <= 2**26 * 1.5


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize("case", ["inference", "training", "measuring"])
def test_a_small_network_is_timed(case: str, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    words = ["bench", case, "--network", "digits", "-T", "2", "--batch", "8", "--rounds", "1", "--json", str(out)]
    assert run(words) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in found["cases"][0]["rows"]}
    assert all(row["median_s"] > 0 for row in rows.values())
    assert any(name.startswith("speedysnn") or name == "measure_noise" for name in rows)
    assert run(words) == 2  # nothing is overwritten


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "juggling"]) == 2
    assert "expected some of neuron, inference" in capsys.readouterr().err
    assert run(["bench", "inference", "--network", "resnet7"]) == 2
    assert "expected one of digits" in capsys.readouterr().err


@pytest.mark.usefixtures("once")
def test_scaling_leaves_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "FEW", 6)
    snn, x = scaling.make("digits", 2, 4)
    case = scaling.scaling(snn, x, 1, batches=(2, 4))
    assert {"T=2, batch 4", "T=32, full look-ahead, batch 6"} <= {row["name"] for row in case.rows}
    assert snn.timesteps == 2
    assert {neuron.delay for neuron in snn.neurons.values()} == {0}
    batches = [row for row in case.rows if row["along"] == "images"]
    assert [(row["at"], row["steps"]) for row in batches] == [(2, 2), (4, 2)]
    for row in case.rows:
        assert row["us_per_image_step"] == pytest.approx(1e6 * row["median_s"] / row["images"] / row["steps"])


@pytest.mark.usefixtures("once")
def test_sizes_grow_along_depth_and_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "CHANNELS", 4)
    monkeypatch.setattr(scaling, "LAYERS", 8)
    case = scaling.sizes(2, 3, 1, layers=(8, 14), channels=(4, 8))
    found = [(row["line"], row["along"], row["at"], row["images"]) for row in case.rows]
    both, width = ("T x ANN", "speedysnn"), "channels at first"
    wanted = [("layers", 8), ("layers", 14), (width, 4), (width, 8)]
    assert found == [(line, along, at, 3) for along, at in wanted for line in both]
    assert len(case.notes) == 4


def test_a_figure_has_bars_and_lines(tmp_path: Path) -> None:
    bars = {"name": "one", "rows": [{"name": "speedysnn", "median_s": 0.002, "base_over_this": 1.0}]}
    rows = [
        {"name": f"{line} {at}", "median_s": 1.0, "base_over_this": 1.0, "line": line, "along": along, "at": at,
         "us_per_image_step": float(at)}
        for along in ("images", "layers") for line in ("speedysnn", "T x ANN") for at in (2, 64)
    ]  # fmt: skip
    made = scaling.draw([bars, {"name": "two", "rows": rows}])
    assert [len(axes.lines) for axes in made.axes] == [0, 2, 2]
    assert [axes.get_xlabel() for axes in made.axes] == ["ms", "images", "layers"]
    assert "2.0 ms (1.00x)" in made.axes[0].texts[0].get_text()
    assert png(made, scaling.DPI).startswith(b"\x89PNG")


@pytest.mark.usefixtures("once")
def test_a_figure_is_written_and_not_over_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.png"
    words = ["bench", "neuron", "--neurons", "100", "-T", "2", "--rounds", "1", "--figure", str(out)]
    assert run(words) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert run(words) == 2
    assert f"--figure {out}: a file is there already" in capsys.readouterr().err
    assert run([*words, "--json", str(out), "--overwrite"]) == 2
    assert "that is the output too" in capsys.readouterr().err


def test_peers_that_compute_something_else_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 10)

    snn, x = scaling.make("digits", 2, 4)
    monkeypatch.setattr(simulators, "PEERS", {"wrong": ("torch", lambda _: Wrong()), "absent": ("no-such-package", Wrong)})
    found, lines = simulators.available(snn, x)
    assert not found
    assert "left out" in lines[0]
    assert "not installed" in lines[1]


@pytest.mark.parametrize("name", simulators.PEERS)
def test_peers_compute_the_same(name: str) -> None:
    package, make = simulators.PEERS[name]
    pytest.importorskip(package)
    snn, x = scaling.make("digits", 4, 8)
    with torch.no_grad():
        for _ in range(2):  # nothing of a run stays behind
            torch.testing.assert_close(make(snn)(x), snn(x), rtol=1e-3, atol=1e-3)
        peer = make(snn)
        torch.testing.assert_close(peer(x), peer(x))
    peer(x).sum().backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in snn.parameters())
