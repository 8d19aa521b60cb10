"""`python -m reports list | run NAME | write`: the studies, any of them again, and the table of their headlines."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from reports.studies import HERE, STUDIES, Study, find, page
from speedysnn.errors import DataError, SpeedySNNError

DATA = HERE.parents[1] / "shared" / "data"
FILES = ("cifar10-subset.npz", "resnet20-12fca82f.th")


def commands(study: Study, smoke: bool, data: Path | None, out: Path | None) -> list[list[str]]:
    """The calls of study.py that make a study.

    Raises:
        DataError: it needs data that is not there.
    """
    folder = data or (DATA if all((DATA / file).is_file() for file in FILES) else None)
    if folder is not None and not all((folder / file).is_file() for file in FILES):
        raise DataError(f"reports: {folder} does not hold {' and '.join(FILES)}; give their folder with --data")
    calls = []
    for arguments in study.smoke if smoke else study.runs:
        call = [sys.executable, str(HERE / study.name / "study.py"), *arguments]
        wants = study.data != "none" and arguments != ("digits",)
        if wants and folder is not None:
            call += ["--data", str(folder)]
        elif wants and study.data == "needed":
            raise DataError(f"reports: {study.name} needs {' and '.join(FILES)}; give their folder with --data DIR")
        calls.append(call + (["--smoke"] if smoke else []) + (["--out", str(out)] if out else []))
    return calls


def run(study: Study, smoke: bool, data: Path | None, out: Path | None) -> int:
    """Make a study; 0, or 1 where a call fails. A smoke run without `out` leaves nothing behind."""
    with tempfile.TemporaryDirectory() as temporary:
        target = out or (Path(temporary) if smoke else None)
        for call in commands(study, smoke, data, target):
            print("$", " ".join(["python", *call[1:]]), flush=True)
            code = subprocess.run(call, check=False, env=os.environ | {"PYTHONUNBUFFERED": "1"}).returncode
            if code:
                print(f"reports: {study.name} stopped with exit code {code}; its message is above", file=sys.stderr)
                return 1
    print(f"reports: {study.name} done{f', written to {out}' if out else ''}")
    return 0


def write(folder: Path) -> int:
    """The table of headlines, README.md in a folder of studies."""
    part = folder / "README.part"
    part.write_text(page(folder), encoding="utf-8")
    part.replace(folder / "README.md")
    print(f"written to {folder / 'README.md'}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(prog="python -m reports", description=__doc__)
    below = out.add_subparsers(dest="command", required=True)
    below.add_parser("list", help="names, questions and about how long each takes")
    making = below.add_parser("run", help="make a study again")
    making.add_argument("name", help=", ".join(STUDIES))
    making.add_argument("--smoke", action="store_true", help="a few images, into a temporary folder or --out")
    making.add_argument("--data", type=Path, help=f"folder with {' and '.join(FILES)}")
    making.add_argument("--out", type=Path, help="where to write; without it the study's own folder")
    below.add_parser("write", help="make README.md, the table of headlines, from the studies' csv files")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done, 1 a study failed or lacks its data, 2 a wrong argument."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "list":
            for study in STUDIES.values():
                print(f"{study.name:17} {study.question} (about {study.minutes} minutes)")
            return 0
        if options.command == "write":
            return write(HERE)
        if options.name not in STUDIES:
            print(f"error: reports: no study {options.name!r}; expected one of {', '.join(STUDIES)}", file=sys.stderr)
            return 2
        return run(find(options.name), options.smoke, options.data, options.out)
    except SpeedySNNError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("reports: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
