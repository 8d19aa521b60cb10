"""Whole commands killed at random moments over what they made before: what is there afterwards, round by round.

The stages and checks are those of `tests.faults.trial`; the command that is killed would leave something else than what
is there, so that old and new can be told apart.
"""

import hashlib
import json
import random
import shutil
import signal
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.faults import trial
from tests.faults.trial import Stage, fork, garbled, weights_of

OUTPUTS = {"convert": ("net.snn",), "analyze": ("report",), "finetune": ("tuned.snn", "run"), "export": ("net.pt2",)}
# What the second command does otherwise; of an option given twice the last counts.
OTHER = {"convert": " -T 3", "analyze": " --limit 24", "finetune": " --seed 1", "export": " -T 3"}
NAMES = ("save", *OUTPUTS, "resume")
DIFFER = {".snn": ("network.json", "weights.safetensors"), "report": ("noise.json", "layers.csv", "report.html")}


def digests(path: Path) -> dict[str, str]:
    """File below the path -> sha256; hidden ones left out."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files if not file.name.startswith(".")}  # fmt: skip


def state(path: Path, before: dict[str, str]) -> str:
    """"old", "new", or what is wrong: some of the old and some of the new, or a file of neither."""
    if not path.exists():
        return f"{path.name} is gone"
    found = digests(path)
    if found == before:
        return "old"
    if found.keys() != before.keys():
        return f"{path.name} has other files: {sorted(found.keys() ^ before.keys())}"
    kept = [name for name in DIFFER.get("report" if path.name == "report" else path.suffix, tuple(found)) if found[name] == before[name]]
    if kept:
        return f"{path.name} mixes old and new: {kept} are the old ones"
    return _opened(path)


def _opened(path: Path) -> str:
    """ "new" where the file is whole; networks, reports and tables were opened by `trial.lost`."""
    if path.suffix == ".pt2":  # not by torch.export.load: processes forked after it do not run as before
        with zipfile.ZipFile(path) as archive:
            return f"{path.name}: {bad} is damaged" if (bad := archive.testzip()) else "new"
    if path.name == "run":
        load_file(path / "run.safetensors")
    return "new"


def kills(name: str, rounds: int, rng: random.Random, root: Path) -> dict[str, Any]:
    """`rounds` kills of one command and one at each of its writes, over folders in which it had already run."""
    stage = Stage(name, root)
    before = {output: digests(stage.good / output) for output in OUTPUTS[name]}
    words, counts, faults = stage.words + OTHER[name], Counter[str](), []
    moments = [(None, (rng.uniform(0, 1.05 * stage.seconds), signal.SIGKILL)) for _ in range(rounds)]
    writes = [(trial.at_write(number, trial._kill), None) for number in range(1, stage.writes + 1)]
    for number, (fault, stop) in enumerate([*moments, *writes]):
        folder = stage.fresh()
        code, said = fork(words, folder, fault, stop)
        wrong = garbled(code, said, {0, -signal.SIGKILL}) + trial.lost(folder, stage.names)
        states = [state(folder / output, held) for output, held in before.items()]
        wrong += [found for found in states if found not in ("old", "new")]
        if stop is not None:
            counts.update(["killed" if code else "ended before", *(f"{found} kept" for found in set(states[:1]))])
        code, said = fork(words, folder)
        wrong += garbled(code, said, {0}) + trial.lost(folder, stage.names) + trial.leftovers(folder)
        wrong += [f"again: {found}" for output, held in before.items() if (found := state(folder / output, held)) != "new"]
        faults += [f"round {number}: {wrong}"] if wrong else []
    counts["at writes"] = len(writes)
    return row(name, rounds, counts, faults)


def resumes(rounds: int, rng: random.Random, root: Path) -> dict[str, Any]:
    """A fine-tuning killed, resumed where a state was kept, and compared with one that ran through."""
    stage = Stage("finetune", root)
    want, counts, faults = weights_of(stage.good / "tuned.snn"), Counter[str](), []
    for number in range(rounds):
        folder = stage.fresh()
        shutil.rmtree(folder / "run")
        code, _ = fork(stage.words, folder, stop=(rng.uniform(0, 1.05 * stage.seconds), signal.SIGKILL))
        kept = (folder / "run" / "run.safetensors").is_file()
        counts.update(["killed" if code else "ended before", "resumed" if kept else "begun anew"])
        code, said = fork(stage.words + " --resume" * kept, folder)
        wrong = garbled(code, said, {0}) + trial.lost(folder, stage.names) + trial.leftovers(folder)
        found = {} if wrong else weights_of(folder / "tuned.snn")
        if not wrong and not all(torch.equal(value, found[key]) for key, value in want.items()):
            wrong = ["it ended in another network than the run that was not killed"]
        faults += [f"round {number}: {wrong}"] if wrong else []
    return row("resume", rounds, counts, faults)


def row(name: str, rounds: int, counts: Counter[str], faults: list[str]) -> dict[str, Any]:
    """One line of the table; the faults are printed."""
    print(json.dumps({"stage": name, **counts, "faults": faults}), flush=True)
    keys = ("killed", "ended before", "old kept", "new kept", "resumed", "begun anew", "at writes")
    return {"command": name, "rounds": rounds, **{key.replace(" ", "_"): counts[key] for key in keys}, "faults": len(faults)}


def campaign(names: list[str], rounds: int, seed: int) -> list[dict[str, Any]]:
    """A row for each of the named commands."""
    import matplotlib.pyplot  # noqa: F401 - what a command imports on its way is imported once, before the forks
    import torch._dynamo
    import torch.export

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        root = Path(scratch)
        (root / "start").mkdir()
        code, said = fork(trial.STAGES["convert"], root / "start")
        assert code == 0, said
        for name in names:
            begin, place, rng = time.monotonic(), root / name, random.Random(f"{seed} {name}")
            place.mkdir()
            if name == "save":
                found = row(name, rounds, Counter(killed=rounds), [str(wrong) for wrong in trial.saves(place, rounds, rng)])
            else:
                found = resumes(rounds, rng, place) if name == "resume" else kills(name, rounds, rng, place)
            rows.append({**found, "seconds": round(time.monotonic() - begin)})
    return rows
