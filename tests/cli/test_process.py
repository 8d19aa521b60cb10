"""What is done with freed memory: by a program only, and by `analyze` only where a limit was given."""

import json
import shlex
import sys

import pytest

from speedysnn.cli import bench, process
from speedysnn.cli.main import main, run

ANALYZE = "analyze net.snn -d digits --limit 8 -o report"


@pytest.fixture
def told(monkeypatch):
    """Thresholds that glibc was told, in turn."""
    out = []
    monkeypatch.setattr(process, "_set", lambda *given: out.append(given))
    monkeypatch.setattr(process, "_program", False)
    monkeypatch.setattr(process, "_kept", False)
    return out


def test_a_call_from_python_changes_no_setting_of_its_process(there, told):
    assert run(shlex.split(f"{ANALYZE} --memory 64")) == 0
    assert told == []


def test_a_user_may_leave_it_to_the_system(there, told, monkeypatch):
    monkeypatch.setenv(process.VARIABLE, "system")
    process.own_process()
    process.keep_freed_memory()
    assert not process.kept()
    assert told == []


@pytest.mark.parametrize(
    ("option", "expected"), [("", [process._KEEP]), ("--memory 64", [process._KEEP, process._HAND_BACK])]
)
def test_a_program_keeps_freed_memory_until_a_limit_is_given(there, told, monkeypatch, option, expected):
    monkeypatch.setattr("sys.argv", ["speedysnn", *shlex.split(f"{ANALYZE} {option}")])
    monkeypatch.setattr(sys.modules["speedysnn.cli.main"], "leave_at_once", lambda code: None)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert told == expected


@pytest.mark.parametrize(("program", "setting", "kept"), [(True, "", [False, True]), (True, "system", [False]), (False, "", [False])])
def test_the_bench_times_neurons_as_in_a_process_of_ones_own_first(told, monkeypatch, capsys, program, setting, kept):
    monkeypatch.setenv(process.VARIABLE, setting)
    monkeypatch.setattr("speedysnn.bench.LEAST", 0.0)  # one call a round
    if program:
        process.own_process()
    timed, time = [], bench._run
    monkeypatch.setattr(bench, "_run", lambda *given: timed.append(process.kept()) or time(*given))
    assert run(shlex.split("bench neuron --neurons 100 -T 2 --rounds 1 --json -")) == 0
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert timed == kept == [case["name"].endswith("freed memory kept") for case in cases]
    assert told == [process._KEEP] * sum(kept)
