"""The studies: all are listed, their table is what their files say, the command answers, and each has a quick version."""

import importlib.util
import subprocess
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(name):
    """A module of reports/, which is no package that is installed."""
    if "reports" not in sys.modules:
        spec = importlib.util.spec_from_file_location("reports", ROOT / "reports" / "__init__.py",
                                                      submodule_search_locations=[str(ROOT / "reports")])  # fmt: skip
        sys.modules["reports"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"reports.{name}")


studies, command = load("studies"), load("__main__")
DATA = all((command.DATA / file).is_file() for file in command.FILES)


def test_every_finished_study_is_listed():
    found = {path.parent.name for path in (ROOT / "reports").glob("*/study.py") if (path.parent / "README.md").is_file()}
    assert found == set(studies.STUDIES), "a study is finished once it has a README.md: give it a row in reports/studies.py"


def test_the_table_is_what_the_files_say():
    written = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")
    assert written == studies.page(), "reports/README.md is out of date: run python -m reports write"


def test_headlines_are_read_from_the_files(tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        kinds = ["spiking"] * 3 + ["hybrid"] * (2 if name == "a" else 4)
        errors = [1e-7, 3e-6, 1e-7, 1e-7, 2e-7, 2e-7, 9e-6][: len(kinds)]
        pd.DataFrame({"treatment": kinds, "analog_error": errors, "full_error": errors[::-1]}).to_csv(folder / "coverage.csv")
    assert studies.coverage(tmp_path / "a").startswith("5 networks: 3 spiking, 2 hybrid, 0 unsupported; ")
    assert "3e-06" in studies.coverage(tmp_path / "a")
    assert studies.coverage(tmp_path / "b").startswith("7 networks: 3 spiking, 4 hybrid")
    assert "9e-06" in studies.coverage(tmp_path / "b")


def peers(folder, ours, theirs):
    """A peers.csv with one accuracy of ours and two of a peer's."""
    rows = []
    for network, steps in (("digits-avg", 2), ("digits-max", 4), ("fashion-mnist", 4), ("resnet20", 8)):
        common = {"network": network, "timesteps": steps, "ann_accuracy": 0.95}
        for delay, (more, gain) in product((0, 1), (("", 0.0), (", bias corrected", 0.05))):
            rows.append({**common, "contestant": f"speedysnn binary, delay {delay}{more}", "package": "speedysnn",
                         "spikes": "binary", "accuracy": ours + delay / 100 + gain})  # fmt: skip
        for spikes, accuracy in (("binary", theirs), ("binary", theirs - 0.1), ("multi", 0.999)):
            rows.append({**common, "contestant": "SJ", "package": "spikingjelly", "spikes": spikes, "accuracy": accuracy})
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "peers.csv", index=False)


@pytest.mark.parametrize(("ours", "theirs"), [(0.8, 0.7), (0.6, 0.9)])
def test_the_peers_headline_gives_the_best_binary_peer_even_where_it_is_ahead(tmp_path, ours, theirs):
    peers(tmp_path / "peers", ours, theirs)
    said = studies.peers(tmp_path / "peers")
    own = [f"delay {delay} {100 * ours + delay:.1f} % (corrected {100 * ours + delay + 5:.1f} %)" for delay in (0, 1)]
    assert f"ours {', '.join(own)}, best of SpikingJelly {100 * theirs:.1f} %" in said
    assert "99.9" not in said
    assert "sinabs" not in said


def test_a_missing_or_doubled_row_is_an_error_not_a_figure(tmp_path):
    with pytest.raises(studies.DataError, match="python -m reports run peers"):
        studies.peers(tmp_path / "peers")
    rows = pd.DataFrame({"a": [1, 1]})
    with pytest.raises(studies.DataError, match="expected one row"):
        studies.one(rows, a=1)
    with pytest.raises(studies.DataError, match="found 0"):
        studies.one(rows, a=2)


def call(*arguments):
    return subprocess.run([sys.executable, "-m", "reports", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_lists_and_refuses(capsys):
    assert command.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in studies.STUDIES)
    assert command.main(["run", "nothing"]) == 2
    assert "expected one of coverage" in capsys.readouterr().err
    for arguments in (["fly"], []):
        with pytest.raises(SystemExit) as left:
            command.main(arguments)
        assert left.value.code == 2
    capsys.readouterr()
    assert command.main(["run", "noise", "--data", "/nowhere"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "give their folder with --data" in said


def test_the_first_pages_figure_draws_the_tables():
    overview = load("overview")
    folder = ROOT / "reports" / "cifar10_resnet20"
    layers = pd.read_csv(folder / "layers_untuned_delay0.csv")
    before, after, accuracy = overview.figure(folder).axes
    drawn = sum(bar.get_height() for bar in before.patches)
    assert drawn == pytest.approx((10 ** (-layers.sqnr_db / 10)).sum(), rel=1e-4)
    assert len(after.patches) == 3 * len(layers)
    tuned = pd.read_csv(folder / "tuned.csv", dtype={"delay": str})
    marks = {line.get_ydata()[0] for line in accuracy.lines if len(line.get_xdata()) == 1}
    assert len(marks) == 2
    assert marks <= set(100 * tuned.accuracy)


def test_it_is_called_as_a_module():
    refused = call("run", "nothing")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "no study 'nothing'" in refused.stderr


def test_a_run_that_fails_is_reported_and_the_temporary_folder_goes(monkeypatch, capsys):
    seen = []

    def refuse(call, **_):
        seen.append(call)
        assert Path(call[call.index("--out") + 1]).is_dir()
        return subprocess.CompletedProcess(call, 3)

    monkeypatch.setattr(command.subprocess, "run", refuse)
    assert command.main(["run", "coverage", "--smoke"]) == 1
    assert "stopped with exit code 3" in capsys.readouterr().err
    assert "--smoke" in seen[0]
    assert not Path(seen[0][seen[0].index("--out") + 1]).exists()


def test_data_is_passed_where_a_study_takes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "DATA", tmp_path / "nowhere")
    for file in command.FILES:
        (tmp_path / file).touch()
    for study in studies.STUDIES.values():
        for line in command.commands(study, True, tmp_path, None) + command.commands(study, False, tmp_path, None):
            assert Path(line[1]).is_file()
            assert ("--data" in line) == (study.data != "none" and "digits" not in line)
        if study.data == "needed" and study.smoke == ((),):
            with pytest.raises(command.DataError, match="--data DIR"):
                command.commands(study, True, None, None)
        else:
            command.commands(study, True, None, None)


@pytest.mark.nightly
@pytest.mark.parametrize("name", studies.STUDIES)
def test_quick_versions_run_and_leave_the_committed_files_alone(name, tmp_path):
    if studies.STUDIES[name].data == "needed" and name != "noise" and not DATA:
        pytest.skip(f"{' and '.join(command.FILES)} are not in {command.DATA}")
    folder = ROOT / "reports" / name
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    done = call("run", name, "--smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert after == before
    assert list(tmp_path.rglob("*.csv"))
    assert (tmp_path / "README.md").is_file()
