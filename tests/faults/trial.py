"""Commands that are killed, interrupted or out of disk: forks of one process, and what is left of each.

    python -m tests.faults.trial --rounds 50 --seed 1

Prints JSON: stage -> fault -> rounds, and every round in which something was lost, garbled or unexplained.
"""

import argparse
import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import speedysnn
from speedysnn.cli.main import run
from speedysnn.errors import SpeedySNNError

NET = "speedysnn.assets.digits:load_digits_net"
STAGES = {
    "convert": f"convert {NET} -d digits --limit 64 -o net.snn --overwrite",
    "analyze": "analyze net.snn -d digits --limit 16 -o report --overwrite",
    "finetune": "finetune net.snn -d digits --limit 64 --epochs-quantized 3 --epochs-spiking 0 -o tuned.snn --overwrite --run-dir run",
    "export": "export net.snn --to pt2 -o net.pt2 --overwrite",
    "evaluate": "evaluate net.snn -d digits --limit 16 --json table.json --overwrite",
}  # fmt: skip
CREATES = ("open", "os.mkdir", "os.rename")
REMOVES = ("os.remove", "os.rmdir", "shutil.rmtree")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
Fault = Callable[[], None]


def _is_write(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return isinstance(arguments[0], str | bytes | Path) and bool(int(arguments[2] or 0) & _WRITES)
    return event in CREATES


def at_write(number: int, act: Callable[[int], None]) -> Fault:
    """Call `act` with a count at every change of the file system from the given one on."""
    seen = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _is_write(event, arguments):
            seen[0] += 1
            if seen[0] >= number:
                act(seen[0] - number)

    return lambda: sys.addaudithook(hook)


def _full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read_only(_: int) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def _interrupt(count: int) -> None:
    if count == 0:
        os.kill(os.getpid(), signal.SIGINT)


def _kill(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_writes(words: str, folder: Path) -> int:
    """Changes of the file system that the command makes."""
    book = folder.parent / "writes"

    def counted(_: int) -> None:
        nonlocal total
        total += 1

    total = 0

    def end() -> None:
        at_write(1, counted)()

    code, said = fork(words, folder, end, after=lambda: book.write_text(str(total)))
    assert code == 0, f"exit code {code}: {said}"
    return int(book.read_text())


def fork(words: str, folder: Path, fault: Fault | None = None, stop: tuple[float, int] | None = None,
         after: Callable[[], Any] | None = None) -> tuple[int, str]:  # fmt: skip
    """Run the command in a child in `folder`; `stop` sends it a signal after so many seconds.

    Returns:
        exit code, or minus the signal that ended it; and what it wrote on standard error.
    """
    said = folder.parent / "said"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.chdir(folder)
            handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            if fault is not None:
                fault()
            code = run(words.split())
            if after is not None:
                after()
        finally:
            os._exit(code)
    if stop is not None:
        time.sleep(stop[0])
        os.kill(child, stop[1])
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), said.read_text()


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in speedysnn.load(path).state_dict().items()}


def lost(folder: Path, names: set[str]) -> list[str]:
    """What is wrong with a folder in which networks, a report and a run had been, and must still be."""
    out = []
    for name in sorted(names - {path.name for path in folder.iterdir()}):
        out.append(f"{name} is gone")
    for path in folder.iterdir():
        try:
            if path.suffix == ".snn":
                speedysnn.load(path)
            elif path.name == "report":
                for file in path.glob("*.json"):
                    json.loads(file.read_text())
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except (SpeedySNNError, ValueError, OSError) as err:
            out.append(f"{path.name}: {err}")
    return out


def garbled(code: int, said: str, expected: set[int]) -> list[str]:
    """What is wrong with how a command ended."""
    out = [] if code in expected else [f"exit code {code}"]
    if code not in (0, -signal.SIGKILL) and said.count("error: ") != 1:
        out.append(f"{said.count('error: ')} errors printed")
    if "Traceback" in said or "fault of speedysnn" in said:
        out.append("a traceback or a fault")
    return [*out, said[-600:]] if out else []


def leftovers(folder: Path) -> list[str]:
    """Hidden files that a command which ended by itself should have taken away."""
    return [f"left {path.name}" for path in folder.iterdir() if path.name.startswith(".")]


class Stage:
    """One command, with a folder in which it has already run once."""

    def __init__(self, name: str, root: Path) -> None:
        self.words, self.good, self.work = STAGES[name], root / "good", root / "work"
        shutil.copytree(root.parent / "start", self.good)
        code, said = fork(self.words, self.good)
        assert code == 0, said
        self.names = {path.name for path in self.good.iterdir()}
        self.fresh()
        begin = time.monotonic()  # of the second run: compiled kernels and the files of libraries are at hand
        self.writes = count_writes(self.words, self.work)
        self.seconds = time.monotonic() - begin

    def fresh(self) -> Path:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.good, self.work)
        return self.work

    def one(self, fault: Fault | None, stop: tuple[float, int] | None, expected: set[int]) -> list[str]:
        """One round; what went wrong."""
        folder = self.fresh()
        code, said = fork(self.words, folder, fault, stop)
        found = garbled(code, said, expected) + lost(folder, self.names)
        if code != -signal.SIGKILL:
            found += leftovers(folder)
        return found

    def again(self) -> list[str]:
        """After a kill the same command does its work, and clears what the killed one left."""
        code, said = fork(self.words, self.work)
        return garbled(code, said, {0}) + lost(self.work, self.names) + leftovers(self.work)


def faults(stage: Stage, rounds: int, rng: random.Random) -> dict[str, list[list[str]]]:
    """Kills at `rounds` moments, every other fault a fifth as often."""
    def when() -> float:
        return rng.uniform(0, 1.05 * stage.seconds)

    def which() -> int:
        return rng.randint(1, stage.writes)

    def limit() -> None:
        size = rng.choice((1, 100, 4096, 10**5))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    killed, interrupted = {0, -signal.SIGKILL}, {0, 130}
    plans: dict[str, Callable[[], list[str]]] = {
        "killed at a moment": lambda: stage.one(None, (when(), signal.SIGKILL), killed) + stage.again(),
        "killed at a write": lambda: stage.one(at_write(which(), _kill), None, killed) + stage.again(),
        "interrupted at a moment": lambda: stage.one(None, (when(), signal.SIGINT), interrupted),
        "interrupted at a write": lambda: stage.one(at_write(which(), _interrupt), None, interrupted),
        "disk full from a write on": lambda: stage.one(at_write(which(), _full), None, {0, 2}),
        "read-only from a write on": lambda: stage.one(at_write(which(), _read_only), None, {0, 2}),
        "files limited in size": lambda: stage.one(limit, None, {0, 2}),
    }
    often = {"killed at a moment"}
    return {
        name: [found for _ in range(rounds if name in often else max(2, rounds // 5)) if (found := plan())]
        for name, plan in plans.items()
    }


def saves(root: Path, rounds: int, rng: random.Random) -> list[list[str]]:
    """A process that saves over one network again and again, killed at random moments."""
    target, found = root / "net.snn", []
    shutil.copytree(root.parent / "start" / "net.snn", target)
    first, second = speedysnn.load(target), speedysnn.load(target)
    with torch.no_grad():
        for value in second.parameters():
            value.add_(1.0)
    hashes = {float(next(snn.parameters()).detach().sum()) for snn in (first, second)}
    for _ in range(rounds):
        child = os.fork()
        if child == 0:
            while True:
                for snn in (first, second):
                    speedysnn.save(snn, target, overwrite=True)
        time.sleep(rng.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        wrong = lost(root, {"net.snn"})
        if not wrong and float(next(speedysnn.load(target).parameters()).detach().sum()) not in hashes:
            wrong = ["the network is neither of the two"]
        found += [wrong] if wrong else []
    speedysnn.save(first, target, overwrite=True)
    return found + ([left] if (left := leftovers(root)) else [])


def every_write(root: Path) -> dict[str, list[list[str]]]:
    """One save over a network, stopped at each of its changes of the file system in turn, in every way."""
    ends = {"killed": (_kill, -signal.SIGKILL), "interrupted": (_interrupt, 130), "disk full": (_full, 2), "read-only": (_read_only, 2)}
    snn, out = speedysnn.load(root / "net.snn"), {}
    for name, (act, expected) in ends.items():
        found, code, number = [], expected, 0
        while code != 0:
            number += 1
            code, said = _save_with(snn, root / "net.snn", at_write(number, act))
            wrong = lost(root, {"net.snn"}) + ([] if code == -signal.SIGKILL else leftovers(root))
            if code not in (0, expected) or (code == 2 and "cannot be written" not in said):
                wrong += [f"write {number}: exit code {code}: {said}"]
            found += [wrong] if wrong else []
        assert number > 3, "the fault never came"
        out[f"{name} at each of {number - 1} writes"] = found
    return out


def saved(root: Path, rounds: int, rng: random.Random) -> dict[str, list[list[str]]]:
    """Saves over the network that lies in `start` beside the folder, stopped in every way."""
    return {"killed at a moment": saves(root, rounds, rng), **every_write(root)}


def _save_with(snn: speedysnn.SpikingNetwork, target: Path, fault: Fault) -> tuple[int, str]:
    """Save in a child under a fault; its exit code as of the command line, and the message."""
    said = target.parent.parent / "message"
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)  # before anything is full
    child = os.fork()
    if child == 0:
        code, message = 0, ""
        fault()
        try:
            speedysnn.save(snn, target, overwrite=True)
        except SpeedySNNError as err:
            code, message = 2, str(err)
        except KeyboardInterrupt:
            code = 130
        except BaseException as err:
            code, message = 70, repr(err)
        os.write(handle, message.encode())
        os._exit(code)
    os.close(handle)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, said.read_text()


def resumes(stage: Stage, rounds: int, rng: random.Random) -> list[list[str]]:
    """A killed fine-tuning that is resumed ends in the same network as one that was not."""
    want, found = weights_of(stage.good / "tuned.snn"), []
    for _ in range(rounds):
        folder = stage.fresh()
        shutil.rmtree(folder / "run")
        fork(stage.words, folder, None, (rng.uniform(0.2, 1.0) * stage.seconds, signal.SIGKILL))
        more = " --resume" if (folder / "run" / "run.safetensors").is_file() else ""
        code, said = fork(stage.words + more, folder)
        wrong = garbled(code, said, {0})
        if not wrong and any(not torch.equal(value, want[name]) for name, value in weights_of(folder / "tuned.snn").items()):
            wrong = ["resumed to another network"]
        found += [wrong] if wrong else []
    return found


def together(stage: Stage, rounds: int) -> list[list[str]]:
    """Two runs into one folder at the same time: one works, the other is refused in words."""
    found = []
    for _ in range(rounds):
        folder = stage.fresh()
        children = []
        for number in range(2):
            child = os.fork()
            if child == 0:
                os.chdir(folder)
                handle = os.open(folder.parent / f"said{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                os._exit(run(stage.words.split()))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        said = [(folder.parent / f"said{number}").read_text() for number in range(2)]
        wrong = lost(folder, stage.names) + leftovers(folder)
        if sorted(codes) != [0, 2] or "another run is writing there now" not in said[codes.index(2)]:
            wrong += [f"exit codes {codes}", *said]
        found += [wrong] if wrong else []
    return found


def trial(rounds: int, seed: int, names: list[str]) -> dict[str, Any]:
    rng, out = random.Random(seed), {}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        root = Path(scratch)
        (root / "start").mkdir()
        code, said = fork(STAGES["convert"], root / "start")
        assert code == 0, said
        for name in names:
            place = root / name
            place.mkdir()
            if name == "save":
                out[name] = saved(place, rounds, rng)
                continue
            stage = Stage(name, place)
            out[name] = faults(stage, rounds, rng)
            if name == "finetune":
                out[name]["resumed after a kill"] = resumes(stage, max(2, rounds // 5), rng)
            if name != "evaluate":
                out[name]["two at a time"] = together(stage, max(1, rounds // 5))
    return {"rounds": rounds, "seed": seed, "lost": out}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(json.dumps(trial(given.rounds, given.seed, given.stages or ["save", *STAGES]), indent=1))
