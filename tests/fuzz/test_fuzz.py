"""Mutated artifacts, checkpoints, programs, data and specs: each loads or is refused in words, and nothing else happens.

A second or two a target here; `python -m tests.fuzz.campaign` runs thousands, each target in a process of its own.
"""

import os
import random
import time
from pathlib import Path

import pytest

from tests.fuzz import campaign, guard, material, targets

SECONDS, CASES = 1.5, 100


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return material.make(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("target", targets.TARGETS)
def test_no_failure_without_a_message(target: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if target == "onnx":
        pytest.importorskip("onnx")
    monkeypatch.chdir(good)
    before, begin, kinds = sorted(good.iterdir()), time.monotonic(), set()
    for number in range(CASES):
        call = targets.TARGETS[target](random.Random(f"{target} suite {number}"), good, tmp_path / "work")
        kind, message = guard.outcome(call)
        assert kind != "failed", f"case {number}: {message}"
        kinds.add(kind)
        if time.monotonic() - begin > SECONDS and number > 20:
            break
    assert "refused" in kinds
    assert sorted(good.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] in ([], ["work"])


def test_the_guard_sees_what_it_is_there_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert guard.outcome(lambda: None) == ("loaded", "")
    for call in (lambda: os.mkdir("x"), lambda: Path("y").write_text("y"), lambda: os.system("true")):  # noqa: PTH102
        assert guard.outcome(call)[1].startswith("it acted"), call
    assert guard.outcome(lambda: 1 / 0)[0] == "failed"
    assert guard.outcome(lambda: list(tmp_path.iterdir()))[0] == "loaded"


@pytest.mark.nightly
@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_campaign_of_ten_thousand(target: str) -> None:
    if target == "onnx":
        pytest.importorskip("onnx")
    found = campaign.campaign(target, 10_000, seed=1)
    assert not found.get("failed"), found
