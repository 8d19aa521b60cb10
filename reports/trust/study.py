"""What damaged and hostile files do, and what a kill at any moment leaves behind.

    python reports/trust/study.py                          # 10,000 cases a target, 50 kills a command: about two hours
    python reports/trust/study.py fuzz --cases 2000 onnx   # one part, and only some of its rows
    python reports/trust/study.py --smoke                  # a few cases and kills, into --out or a temporary folder

Parts: `fuzz` mutates good files and specs by hand-written rules (tests/fuzz/campaign.py), `guided` lets atheris grow
inputs by the branches they reach (tests/fuzz/guided.py; left out where atheris is not installed), `kills` kills whole
commands at random moments (tests/faults/kills.py). Each writes its csv file and README.md beside this file; rows already
there are replaced row by row.
"""

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # of the workers

from tests.faults import kills  # noqa: E402
from tests.fuzz import campaign, guided  # noqa: E402
from tests.fuzz.targets import TARGETS  # noqa: E402

Rows = list[dict[str, Any]]


def machine() -> dict[str, str]:
    """What the rows were made with."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {"python": platform.python_version(), "torch": torch.__version__, "system": platform.system(),
            "commit": commit.stdout.strip()}  # fmt: skip


def fuzz(names: list[str], cases: int, seed: int) -> Rows:
    """Hand-written mutations."""
    return [_fuzzed(campaign.campaign(name, cases, seed), cases, seed) for name in names or TARGETS]


def grown(names: list[str], cases: int, seed: int) -> Rows:
    """Inputs grown by coverage."""
    if importlib.util.find_spec("atheris") is None:
        print("guided: left out, atheris is not installed (pip install atheris)")
        return []
    return [_fuzzed(guided.campaign(name, cases, seed), cases, seed) for name in names or guided.NAMES]


def _fuzzed(found: dict[str, Any], cases: int, seed: int) -> dict[str, Any]:
    counts = {key: int(found.get(key, 0)) for key in ("loaded", "refused", "failed")}
    more = {key: int(found[key]) for key in ("messages", "branches") if key in found}
    out = {"target": found["target"], "cases": cases, "seed": seed, **counts, **more,
           "peak_mb": round(float(found["peak"])), "seconds": round(float(found["seconds"]))}  # fmt: skip
    print(out, flush=True)
    return out


def killed(names: list[str], rounds: int, seed: int) -> Rows:
    """Commands at random moments."""
    return [{**row, "seed": seed} for row in kills.campaign(names or list(kills.NAMES), rounds, seed)]


# Part -> (what makes its rows, the column that names them, cases, cases of the smoke run, rows of the smoke run).
PARTS: dict[str, tuple[Callable[[list[str], int, int], Rows], str, int, int, list[str]]] = {
    "fuzz": (fuzz, "target", 10_000, 60, ["data_spec"]),
    "guided": (grown, "target", 10_000, 200, ["safetensors"]),
    "kills": (killed, "command", 50, 2, ["save", "convert"]),
}


def merged(file: Path, rows: Rows, key: str) -> pd.DataFrame:
    """The table with these rows in place of those of the same name."""
    new = pd.DataFrame([{**row, **machine()} for row in rows])
    if file.is_file():
        old = pd.read_csv(file)
        new = pd.concat([old[~old[key].isin(new[key])], new])
    new.to_csv(file, index=False)
    return new


def written(out: Path) -> None:
    """README.md from the csv files."""
    parts = []
    for name, text in TEXTS.items():
        if (out / f"{name}.csv").is_file():
            frame = pd.read_csv(out / f"{name}.csv").drop(columns=["system"])
            head = "| " + " | ".join(frame.columns) + " |\n|" + "---|" * frame.shape[1]
            rows = ["| " + " | ".join("" if pd.isna(v) else f"{v:g}" if isinstance(v, float) else str(v) for v in row) + " |"
                    for row in frame.itertuples(index=False)]  # fmt: skip
            parts.append(text + "\n\n" + "\n".join([head, *rows]))
    (out / "README.md").write_text(HEAD + "\n\n".join(parts) + "\n" + END, encoding="utf-8")


HEAD = """# Bad input and kills

What do damaged and hostile files do to the package, and what does a kill at any moment leave behind?

"""
TEXTS = {
    "fuzz": """## Mutated files and specs

Each case spoils a good file of its kind (bits, numbers, JSON fields, archive members, headers that claim other sizes,
pickles that call functions) and opens it in a process whose address space is limited to 12 GB. "failed" counts every case
that ended in anything but a result or a message of the package's own: another exception, a crash of the process, more
than 20 s, more than 600 MB above what was held before, a file written, a process started, a connection made.
"messages" counts distinct openings of messages. Case n of a target is drawn from the seed "TARGET SEED n".""",
    "guided": """## Inputs grown by coverage

atheris starts from one good input and keeps what reaches a new branch of the package (but of its compiled kernels);
a case fails as above. "branches" counts the branches reached.""",
    "kills": """## Kills at random moments

Every round starts a command in a folder where it had run before with other settings, and kills it (SIGKILL) at a moment
drawn uniformly from 1.05 times its duration. Then every output must be the whole old one or the whole new one, and
load; the same command must then run through, leave the new result and no scratch files. `save` overwrites one network
with another again and again. `resume` kills a fine-tuning with a run folder, goes on with `--resume` where a state was
kept, and must end in the weights of the run that was not killed, bit for bit. "at_writes" counts further
rounds, one killed just before each of the command's changes of the file system. Commands run in forks of one process that
has imported the package, so the moments fall on their work, not on imports.""",
}
END = """
Run again: `python reports/trust/study.py`, one thread (OMP_NUM_THREADS=1), on a shared two-core virtual machine under
other load; seconds are wall time there and no measure of speed.
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=(*PARTS, "all"), default="all")
    parser.add_argument("names", nargs="*", help="rows; all where none is named")
    parser.add_argument("--cases", type=int, help="cases a target, or rounds a command")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or (Path(tempfile.mkdtemp(prefix="trust-")) if given.smoke else HERE)
    out.mkdir(parents=True, exist_ok=True)
    faults = 0
    for name, (make, key, cases, few, some) in PARTS.items():
        if given.part in (name, "all"):
            names = given.names or (some if given.smoke else [])
            rows = make(names, given.cases or (few if given.smoke else cases), given.seed)
            faults += sum(row.get("failed", 0) + row.get("faults", 0) for row in rows)
            if rows:  # atheris may not be there
                merged(out / f"{name}.csv", rows, key)
    written(out)
    print(f"{faults} faults; written to {out}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
