"""Many cases of every target, each in a process of its own that a crash cannot hide in; prints a table.

    python -m tests.fuzz.campaign --cases 10000 --seed 1 [TARGET ...]
"""

import argparse
import collections
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 12 * 2**30  # bytes of address space


def work(target: str, first: int, last: int, seed: int, folder: Path) -> None:
    """Cases first..last of one target; the last line is the count of outcomes, every failure a line before it."""
    from tests.fuzz import guard, material, targets

    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    good = folder / "good"
    if not good.exists():
        good.mkdir()
        material.make(good)
    os.chdir(good)
    (folder / "work").mkdir(exist_ok=True)
    place = folder / "at"
    found: collections.Counter[str] = collections.Counter()
    messages = set()
    for number in range(first, last):
        place.write_text(str(number))
        call = targets.TARGETS[target](random.Random(f"{target} {seed} {number}"), good, folder / "work")
        kind, message = guard.outcome(call)
        found[kind] += 1
        messages.add("".join(c for c in message if not c.isdigit())[:60])
        if kind == "failed":
            print(json.dumps({"case": number, "why": message}), flush=True)
        if number % 50 == 49:
            print(json.dumps({"done": dict(found), "messages": len(messages), "at": number + 1, "peak": guard.peak()}), flush=True)
            found.clear()
    print(json.dumps({"done": dict(found), "messages": len(messages), "at": last, "peak": guard.peak()}), flush=True)


def campaign(target: str, cases: int, seed: int) -> dict[str, object]:
    """All cases of one target, going on after a process that died."""
    total: collections.Counter[str] = collections.Counter()
    begin, first, peak, messages, failures = time.monotonic(), 0, 0.0, 0, []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        folder = Path(scratch) / "inner"
        folder.mkdir()
        while first < cases:
            code = f"from tests.fuzz.campaign import work; from pathlib import Path; work({target!r}, {first}, {cases}, {seed}, Path({str(folder)!r}))"
            ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            for line in ran.stdout.splitlines():
                row = json.loads(line) if line.startswith("{") else {}
                if "why" in row:
                    failures.append(row)
                    print(f"  {target} {row['case']}: {row['why']}", flush=True)
                total.update(row.get("done", {}))
                peak, messages = max(peak, row.get("peak", 0)), max(messages, row.get("messages", 0))
            if ran.returncode == 0:
                break
            died = int((folder / "at").read_text())
            failures.append({"case": died, "why": f"the process ended with {ran.returncode}"})
            print(f"  {target} {died}: the process ended with {ran.returncode}: {ran.stderr[-300:]}", flush=True)
            total["failed"] += 1
            first = died + 1
        outside = sorted(p.name for p in Path(scratch).iterdir() if p.name != "inner")
        if outside or (folder / "good" / "ran").exists():
            print(f"  {target}: written outside: {outside}", flush=True)
    return {"target": target, **total, "messages": messages, "peak": peak, "seconds": time.monotonic() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    from tests.fuzz.targets import TARGETS

    print(f"{'target':<12} {'loaded':>7} {'refused':>8} {'failed':>7} {'messages':>9} {'peak MB':>8} {'s':>6}")
    for name in given.targets or TARGETS:
        r = campaign(name, given.cases, given.seed)
        print(f"{name:<12} {r.get('loaded', 0):>7} {r.get('refused', 0):>8} {r.get('failed', 0):>7} {r['messages']:>9} {r['peak']:>8.0f} {r['seconds']:>6.0f}", flush=True)


if __name__ == "__main__":
    main()
