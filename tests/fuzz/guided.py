"""Inputs that atheris grows by the branches they reach, one process a target; prints a table.

    python -m tests.fuzz.guided --cases 10000 --seed 1 [TARGET ...]        # needs: pip install atheris
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

Run = Callable[[bytes], Callable[[], object]]  # puts the bytes in place, and gives back the case
ROOT = Path(__file__).resolve().parents[2]
_END = re.compile(r"guided (\{.*\})")


def _put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _with_member(archive: bytes, ending: str, content: bytes | None = None) -> bytes:
    """The member that ends so, or the archive with it replaced."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            is_it = info.filename.endswith(ending)
            if is_it and content is None:
                return old.read(info)
            new.writestr(info.filename, content if is_it and content is not None else old.read(info))
    return out.getvalue()


def _artifacts(good: Path, work: Path, part: str) -> tuple[Run, bytes]:
    import speedysnn
    from speedysnn.artifact import NETWORK, WEIGHTS

    files = {name: (good / "net.snn" / name).read_bytes() for name in (NETWORK, WEIGHTS)}

    def place(content: bytes) -> Callable[[], object]:
        changed = {**files, part: content}
        if part == WEIGHTS:
            document = json.loads(files[NETWORK])
            document["weights_sha256"] = hashlib.sha256(content).hexdigest()
            changed[NETWORK] = json.dumps(document).encode()
        for name in files:
            _put(work / "net.snn" / name, changed[name])
        return partial(speedysnn.load, work / "net.snn")

    return place, files[part]


def _member(good: Path, name: str, ending: str, path: Path, load: Callable[[Path], object]) -> tuple[Run, bytes]:
    archive = (good / name).read_bytes()
    return lambda content: partial(load, _put(path, _with_member(archive, ending, content))), _with_member(archive, ending)


def targets(good: Path, work: Path) -> dict[str, tuple[Run, bytes]]:
    """Name -> (what to do with the bytes, good bytes)."""
    from speedysnn import data
    from speedysnn.artifact import NETWORK, WEIGHTS
    from speedysnn.sources import load_model, read_checkpoint
    from speedysnn.sources.exported import load_program
    from speedysnn.sources.onnx_reader import load_onnx

    def images(spec: str) -> None:
        found = data.load(spec, "test")
        found[0], found[len(found) - 1]

    def idx(content: bytes) -> Callable[[], object]:
        _put(work / "t10k-images-idx3-ubyte", content)
        _put(work / "t10k-labels-idx1-ubyte.gz", (good / "t10k-labels-idx1-ubyte.gz").read_bytes())
        return partial(images, f"fashion-mnist:{work}")

    out = {
        "network.json": _artifacts(good, work, NETWORK),
        "weights": _artifacts(good, work, WEIGHTS),
        "safetensors": (lambda b: partial(read_checkpoint, _put(work / "w.safetensors", b)), (good / "weights.safetensors").read_bytes()),
        "pickle": _member(good, "weights.pth", "data.pkl", work / "w.pth", read_checkpoint),
        "graph": _member(good, "net.pt2", "models/model.json", work / "net.pt2", load_program),
        "npy": _member(good, "images.npz", "x_test.npy", work / "a.npz", lambda path: images(f"npz:{path}")),
        "idx": (idx, (good / "t10k-images-idx3-ubyte").read_bytes()),
        "model_spec": (lambda b: partial(load_model, b.decode("utf-8", "surrogateescape")), b"user.py:make"),
        "data_spec": (lambda b: partial(images, b.decode("utf-8", "surrogateescape")), b"npz:images.npz"),
    }
    if (good / "net.onnx").is_file():
        out["onnx"] = (lambda b: partial(load_onnx, _put(work / "net.onnx", b)), (good / "net.onnx").read_bytes())
    return out


NAMES = ("network.json", "weights", "safetensors", "pickle", "graph", "npy", "idx", "model_spec", "data_spec", "onnx")


def work(target: str, cases: int, seed: int, folder: Path) -> None:
    """All cases of one target in this process, which libFuzzer ends; a failure ends it at once."""
    import os
    import resource

    import atheris

    with atheris.instrument_imports(include=["speedysnn"], exclude=_compiled()):
        from tests.fuzz import guard, material
        from tests.fuzz.campaign import LIMIT

        material.make(_folder(folder / "good"))
        place, start = targets(folder / "good", _folder(folder / "work"))[target]
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    _put(_folder(folder / "corpus") / "good", start)
    os.chdir(folder / "good")
    counts = {"loaded": 0, "refused": 0}

    def one(content: bytes) -> None:
        kind, message = guard.outcome(place(content))
        if kind == "failed":
            (folder / "failed").write_bytes(content)
            raise RuntimeError(message)
        counts[kind] += 1
        if sum(counts.values()) >= cases:
            print("guided", json.dumps({**counts, "peak": guard.peak()}), flush=True)
            os._exit(0)

    flags = [f"-seed={seed}", "-timeout=0", "-rss_limit_mb=0", f"-max_len={200 if target.endswith('_spec') else 2**16}", "-len_control=0", f"-artifact_prefix={folder}/"]
    atheris.Setup([target, *flags, str(folder / "corpus")], one)
    atheris.Fuzz()


def _compiled() -> list[str]:
    """Modules that numba compiles, which knows nothing of counters of branches."""
    kernels = sorted((ROOT / "src" / "speedysnn" / "kernels").glob("*.py"))
    sums = sorted((ROOT / "analysis").glob("sum*.py"))
    return ["speedysnn.calibration.rules", *(f"speedysnn.analysis.{path.stem}" for path in sums),
            *(f"speedysnn.kernels.{path.stem}" for path in kernels)]  # fmt: skip


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def campaign(target: str, cases: int, seed: int, keep: Path | None = None) -> dict[str, object]:
    """One target; `keep` takes the input that failed."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="guided-") as scratch:
        folder = _folder(Path(scratch) / "inner")
        code = f"from tests.fuzz.guided import work; from pathlib import Path; work({target!r}, {cases}, {seed}, Path({str(folder)!r}))"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, errors="replace", check=False)
        found, reached = _END.search(ran.stdout), re.findall(r"cov: (\d+)", ran.stderr)
        row: dict[str, object] = {"target": target, "branches": int(reached[-1]) if reached else 0}
        if found is None or ran.returncode:
            print(f"  {target}: ended with {ran.returncode}: {ran.stdout[-300:]}{ran.stderr[-1500:]}", flush=True)
            if keep is not None and (folder / "failed").is_file():
                (keep / target).write_bytes((folder / "failed").read_bytes())
        outside = [path.name for path in Path(scratch).iterdir() if path.name != "inner"]
        failed = int(found is None or ran.returncode != 0) + len(outside)
        counts = json.loads(found[1]) if found else {"loaded": 0, "refused": 0, "peak": 0}
    return {**row, **counts, "failed": failed, "seconds": time.monotonic() - begin}


def table(names: Iterable[str], cases: int, seed: int, keep: Path | None = None) -> None:
    """Run and print the targets."""
    print(f"{'target':<12} {'loaded':>7} {'refused':>8} {'failed':>7} {'branches':>9} {'peak MB':>8} {'s':>6}")
    for name in names:
        r = campaign(name, cases, seed, keep)
        print(f"{name:<12} {r['loaded']:>7} {r['refused']:>8} {r['failed']:>7} {r['branches']:>9} {r['peak']:>8.0f} {r['seconds']:>6.0f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for inputs that failed")
    given = parser.parse_args()
    table(given.targets or NAMES, given.cases, given.seed, given.keep)
