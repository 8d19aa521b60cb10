"""Killed, interrupted, out of disk, read-only, two at a time: what was there is still there, what is there loads."""

import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import speedysnn
from speedysnn.cli.main import run
from speedysnn.convert import to_spiking
from speedysnn.errors import ArtifactError
from speedysnn.files import atomic
from tests.faults import interrupts, trial

FORKS = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer Pythons warn of forks beside threads
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def nothing_lost(found: dict[str, dict[str, list[list[str]]]]) -> None:
    assert found
    for stage, faults in found.items():
        for fault, wrong in faults.items():
            assert not wrong, f"{stage}, {fault}: {wrong[0]}"


@FORKS
def test_a_save_that_is_stopped_anywhere_loses_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "start").mkdir()
    (tmp_path / "save").mkdir()
    speedysnn.save(to_spiking(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(8, 4)), tmp_path / "start" / "net.snn")
    found = {"save": trial.saved(tmp_path / "save", 20, random.Random(1))}
    assert len(found["save"]) == 5
    nothing_lost(found)


@pytest.mark.nightly
@FORKS
@pytest.mark.parametrize("stage", ["convert", "analyze", "finetune", "evaluate"])
def test_a_command_that_is_stopped_anywhere_loses_nothing(stage: str) -> None:
    nothing_lost(trial.trial(10, 1, [stage])["lost"])


@pytest.mark.parametrize(
    ("line", "held"),
    [("convert user.py:make -d digits --limit 8 -o new.snn", "new.snn"),
     ("analyze net.snn -d digits --limit 8 -o new", "new"),
     ("finetune net.snn -d digits -o new.snn --run-dir a/run", "a/run"),
     ("train user.py:make -d digits -o new.snn", "new.snn"),
     ("demo -o new", "new")],
)  # fmt: skip
def test_a_second_run_into_one_folder_is_refused(line: str, held: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic.claimed(tmp_path / held):  # a lock belongs to an open file, so this process can be the other one
        assert run(line.split()) == 2
    assert f"{held}: another run is writing there now" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_claim_ends_with_its_process_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "net.snn"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child == 0:
        held = atomic.claimed(path)
        held.__enter__()
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (path.parent / ".net.snn.lock").exists()
    with atomic.claimed(path):
        with pytest.raises(ArtifactError, match="another run"), atomic.claimed(path):
            pass
        assert (path.parent / ".net.snn.lock").exists()
    assert list(path.parent.iterdir()) == []
    with atomic.claimed(tmp_path / "new" / "deep" / "net.snn"):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_lent_claim_lets_one_call_pass(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with atomic.claimed(path, lend=True):
        with atomic.claimed(path), pytest.raises(ArtifactError, match="another run"), atomic.claimed(path):
            pass
        with pytest.raises(ArtifactError, match="another run"), atomic.claimed(path):
            pass
    with atomic.claimed(path), pytest.raises(ArtifactError, match="another run"), atomic.claimed(path, lend=True):
        pass
    with atomic.claimed(path, lend=True):
        pass
    with atomic.claimed(path), pytest.raises(ArtifactError, match="another run"), atomic.claimed(path):
        pass  # a loan ends with its claim
    assert list(tmp_path.iterdir()) == []


def test_where_no_lock_can_be_made_it_lies_elsewhere(tmp_path: Path, tmp_path_factory, monkeypatch) -> None:
    path, elsewhere = tmp_path / "run", tmp_path_factory.mktemp("elsewhere")
    path.mkdir()

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    locked = atomic._locked
    monkeypatch.setattr(atomic, "_locked", lambda lock: refuse(lock) if lock.parent == tmp_path else locked(lock))
    monkeypatch.setattr(atomic.tempfile, "tempdir", str(elsewhere))
    with atomic.claimed(path), pytest.raises(ArtifactError, match="another run"), atomic.claimed(path):
        pass
    with atomic.claimed(path), atomic.claimed(tmp_path / "none"):
        assert len(list(elsewhere.iterdir())) == 2
    assert list(tmp_path.iterdir()) == [path]
    assert list(elsewhere.iterdir()) == []
    monkeypatch.setattr(atomic, "_locked", refuse)
    with atomic.claimed(path):
        pass


def test_folders_change_names_also_where_the_system_cannot_exchange(tmp_path: Path, monkeypatch) -> None:
    for libc in (None, object()):
        if libc is not None:
            monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
        for name in ("one", "other"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "text").write_text(name)
        atomic.exchange(tmp_path / "one", tmp_path / "other")
        assert (tmp_path / "one" / "text").read_text() == "other"
        assert (tmp_path / "other" / "text").read_text() == "one"
        assert sorted(each.name for each in tmp_path.iterdir()) == ["one", "other"]


EARLY = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from speedysnn.cli import main
sys.argv[1:] = ["--version"]
main()
"""


@pytest.mark.parametrize(
    "module",
    ["speedysnn.cli.main", "typer", "torch", "torch.nn", "pandas",
     pytest.param("speedysnn.finetune", marks=pytest.mark.nightly)],
)  # fmt: skip
def test_ctrl_c_during_imports_ends_the_command_without_a_word(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", EARLY, module], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_once_twice_and_after_the_last_line(tmp_path: Path) -> None:
    """And a program that handles it itself keeps its handler: all in forks of one process, whose imports take longest."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(Path(__file__).with_name("interrupts.py")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    said = {name: [(tmp_path / f"{name}.{part}").read_text() for part in ("code", "out", "err")] for name in interrupts.CASES}
    code, _, error = said["amid"]
    assert code == "130"
    assert "Traceback" not in error
    assert error.endswith("error: interrupted\n")
    assert said["dropped"] == ["130", "", "error: interrupted\n"]
    code, out, error = said["twice"]
    assert (code, out) == ("130", "")
    assert "Traceback" not in error
    code, out, error = said["after"]
    assert (code, out[:10]) == ("0", "speedysnn ")
    assert "Traceback" not in error
