"""A file, and a set of files, replaced under faults at every change of the file system in turn."""

import os
import signal
import warnings
from pathlib import Path

import pytest

from speedysnn.files import atomic
from speedysnn.files.atomic import replace_file, replace_set
from tests.faults.trial import _full, _kill, at_write

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
OLD = {name: b"old " * 5000 for name in ("a.csv", "b.json", "c.png")}
NEW = {name: b"new " * 5000 for name in ("a.csv", "b.json")}


def child(call, fault) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        number = os.fork()
    if number == 0:
        code = 70
        try:
            fault()
            call()
            code = 0
        except OSError:
            code = 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def every_fault(call, act, expected: int):
    """After each of the call's changes of the file system; the last one is after an undisturbed call."""
    code, number = expected, 0
    while code == expected:
        number += 1
        code = child(call, at_write(number, act))
        yield code
    assert (code, number > 2) == (0, True)


def fill(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize(("act", "expected"), [(_kill, -signal.SIGKILL), (_full, 2)])
def test_a_folder_of_its_own_is_all_old_or_all_new(act, expected: int, tmp_path: Path) -> None:
    target = tmp_path / "report"
    fill(target, OLD)
    seen = []
    for code in every_fault(lambda: replace_set(target, NEW, OLD), act, expected):
        seen.append(held(target))
        assert seen[-1] == NEW if code == 0 else seen[-1] in (OLD, NEW)
        if code != -signal.SIGKILL:
            assert list(tmp_path.iterdir()) == [target]
    assert OLD in seen
    replace_set(target, OLD, OLD)
    assert list(tmp_path.iterdir()) == [target]  # and what the killed ones left is gone


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "report"
    for code in every_fault(lambda: replace_set(target, NEW, OLD), _kill, -signal.SIGKILL):
        assert held(target) == NEW if code == 0 else not target.exists() or held(target) == NEW


@pytest.mark.parametrize(("act", "expected"), [(_kill, -signal.SIGKILL), (_full, 2)])
def test_among_other_things_every_file_is_whole(act, expected: int, tmp_path: Path) -> None:
    target = tmp_path / "report"
    before = {**OLD, "mine.txt": b"mine"}
    fill(target, before)
    seen = []
    for code in every_fault(lambda: replace_set(target, NEW, OLD), act, expected):
        seen.append(held(target))
        assert all(seen[-1][name] in (before[name], NEW.get(name)) for name in before)
        assert code or seen[-1] == {**before, **NEW}
        fill(target, before)
    assert seen[: len(NEW)] == [before] * len(NEW)  # the scratch files are written first: no space, no change
    replace_set(target, NEW, OLD)
    assert sorted(path.name for path in target.iterdir()) == ["a.csv", "b.json", "c.png", "mine.txt"]


@pytest.mark.parametrize("reason", ["working folder", "no exchange", "parent"])
def test_where_the_folder_cannot_be_exchanged_its_files_are(reason: str, tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "report"
    fill(target, OLD)
    number = target.stat().st_ino
    if reason == "working folder":
        monkeypatch.chdir(target)
    else:
        place = "speedysnn.files.atomic." + ("exchange" if reason == "no exchange" else "shutil.copymode")
        monkeypatch.setattr(place, lambda *_: (_ for _ in ()).throw(OSError(16, "busy")))
    replace_set(Path() if reason == "working folder" else target, NEW, OLD)
    assert target.stat().st_ino == number
    assert held(target) == {**OLD, **NEW}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("act", "expected"), [(_kill, -signal.SIGKILL), (_full, 2)])
def test_a_file_is_old_or_new_and_its_scratch_goes(act, expected: int, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(b"old")
    for code in every_fault(lambda: replace_file(path, b"new"), act, expected):
        assert path.read_bytes() in ((b"new",) if code == 0 else (b"old", b"new"))
    assert list(tmp_path.iterdir()) == [path]


def test_an_exchange_that_breaks_off_puts_the_old_one_back(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
    fill(tmp_path / "other", OLD)
    with pytest.raises(FileNotFoundError):
        atomic.exchange(tmp_path / "none", tmp_path / "other")
    assert held(tmp_path / "other") == OLD
