"""Every mistake ends with exit code 2, one error in plain words, and nothing written or changed."""

import re

import pytest

from speedysnn.cli.main import run
from tests import mistakes
from tests.mistakes import ANALYZE, CALLS, CONVERT, EVALUATE, FINETUNE, MISTAKES, SEVERAL_LINES


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_and_nothing_written(here, capfd, name):
    line, words = MISTAKES[name]
    before = contents(here)
    code = run(line.split())
    out, err = capfd.readouterr()
    assert code == 2, err
    assert len(re.findall(r"^error: ", err, re.MULTILINE)) == 1, err
    message = err[err.index("error: ") :]
    assert words in message, err
    assert "Traceback" not in err
    assert "fault of speedysnn" not in err
    assert "code ran" not in out + err
    assert len(message.strip().splitlines()) == 1 or name in SEVERAL_LINES, err
    assert not out
    assert contents(here) == before
    written = mistakes.cell(message.removeprefix("error: "))
    assert written == mistakes.expected(name, written)


@pytest.mark.parametrize("name", CALLS)
def test_a_mistake_in_a_call(here, name):
    before = contents(here)
    message = mistakes.called(CALLS[name])
    assert mistakes.cell(message) == mistakes.expected(name, mistakes.cell(message))
    assert contents(here) == before


def test_the_page_lists_every_mistake_once():
    assert list(mistakes.page_rows()) == [*MISTAKES, *CALLS]


def test_a_bug_is_code_70_and_says_so(here, capfd, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("speedysnn.cli.options.artifact.load", broken)
    assert run(EVALUATE.split()) == 70
    err = capfd.readouterr().err
    assert "ZeroDivisionError: oh. This is a fault of speedysnn's own" in err
    assert "Traceback" not in err
    for line in (f"--debug {EVALUATE}", f"{EVALUATE} --debug"):
        assert run(line.split()) == 70
        assert "Traceback" in capfd.readouterr().err
    for value, shown in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("SPEEDYSNN_DEBUG", value)
        assert run(EVALUATE.split()) == 70
        assert ("Traceback" in capfd.readouterr().err) is shown


def test_debug_shows_where_a_mistake_arose(here, capfd):
    assert run(["inspect", "user.py:broken", "-d", "digits", "--debug"]) == 2
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: user.py:broken")


@pytest.mark.parametrize(
    "line",
    [CONVERT, ANALYZE, FINETUNE, f"{FINETUNE} --run-dir run2", f"{EVALUATE} --json new.json", "demo -o new"],
)
def test_a_folder_that_cannot_be_written_is_refused_at_once(here, capfd, monkeypatch, line):
    def locked(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("speedysnn.files.atomic.tempfile.TemporaryFile", locked)
    before = contents(here)
    assert run(line.split()) == 2
    err = capfd.readouterr().err
    assert "Permission denied" in err
    assert len([row for row in err.splitlines() if row.startswith("error: ")]) == 1
    assert contents(here) == before


def test_an_interrupt_is_code_130(here, capfd, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("speedysnn.cli.options.artifact.load", stopped)
    assert run(EVALUATE.split()) == 130
    assert capfd.readouterr().err == "error: interrupted\n"
