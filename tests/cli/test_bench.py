"""`speedysnn bench`: contestants in turn, equal work only, JSON."""

import json
import time
from pathlib import Path

import pytest
import torch

from speedysnn.bench import cases, networks, pairs, peers
from speedysnn.bench.pairs import paired
from speedysnn.bench.peak import peak_bytes
from speedysnn.cli.main import run


def test_contestants_take_turns_and_ratios_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "LEAST", 0.0)
    order: list[str] = []
    timings = paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, "a", rounds=3)
    assert order == ["a", "b"] * 5  # twice to warm up
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
    assert 2 + 2 < len(made) <= 2 + 10
    assert 0.002 <= timing.median < 0.02  # a call's, not the round's


def test_peak_memory_of_a_call() -> None:
    found = peak_bytes(lambda: torch.ones(2**24).sum())
    if found is None:
        pytest.skip("the system does not say")
    assert 2**26 * 0.9 <= found <= 2**26 * 1.5


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


def test_scaling_leaves_the_network_as_it_was() -> None:
    snn, x = networks.make("digits", 2, 4)
    case = cases.scaling(snn, x, 1, batches=(2, 4))
    assert {"T=2, batch 4", "T=32, full look-ahead, batch 64"} <= {row["name"] for row in case.rows}
    assert snn.timesteps == 2
    assert {neuron.delay for neuron in snn.neurons.values()} == {0}


def test_peers_that_compute_something_else_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 10)

    snn, x = networks.make("digits", 2, 4)
    monkeypatch.setattr(peers, "PEERS", {"wrong": ("torch", lambda _: Wrong()), "absent": ("no-such-package", Wrong)})
    found, lines = peers.available(snn, x)
    assert not found
    assert "left out" in lines[0]
    assert "not installed" in lines[1]


@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_compute_the_same(name: str) -> None:
    package, make = peers.PEERS[name]
    pytest.importorskip(package)
    snn, x = networks.make("digits", 4, 8)
    with torch.no_grad():
        for _ in range(2):  # nothing of a run stays behind
            torch.testing.assert_close(make(snn)(x), snn(x), rtol=1e-3, atol=1e-3)
        peer = make(snn)
        torch.testing.assert_close(peer(x), peer(x))
    peer(x).sum().backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in snn.parameters())
