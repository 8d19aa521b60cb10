"""Other converters beside ours: the same trained networks, calibration images and test images, run in one process.

    PYTHONPATH=DIR python reports/peers/study.py            # about 15 minutes of one core; DIR holds sinabs, see below
    python reports/peers/study.py --only digits-avg write   # one network, then figures and README.md
    python reports/peers/study.py --contestant sinabs       # only those with this in their names, beside the rows kept
    python reports/peers/study.py --smoke                   # the same path on a few images, into a temporary folder

SpikingJelly comes with pip install "speedysnn[bench]". sinabs asks for another version of nir than ours, so it goes to
a folder of its own: pip install --no-deps --target DIR sinabs==3.1.3 pbr. A peer that is not installed is left out.
The ResNet-20 needs --data DIR with cifar10-subset.npz and resnet20-12fca82f.th (see reports/cifar10_resnet20),
Fashion-MNIST the folder that `speedysnn` finds by that name. Nothing is chosen by test images: every contestant is run
with the options its documents name, and all of them are reported.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from contestants import Contestant, Jelly, Sinabs, own, own_rows, peer_rows, peers
from networks import Subject, makers
from torch import Tensor

from speedysnn.bench import paired
from speedysnn.bench.simulators import installed

HERE = Path(__file__).resolve().parent
NAMES = ("digits-avg", "digits-max", "fashion-mnist", "resnet20")
PACKAGES = ("speedysnn", "spikingjelly", "sinabs", "torch", "numba")
TIMED_STEPS = 8


def measure(subject: Subject, smoke: bool, only: str) -> dict[str, pd.DataFrame]:
    """The csv files of a network: all rows, the times, and what was verified; `only` is part of contestants' names."""
    rows, checks = [], [{"check": name, "value": value} for name, value in subject.checks.items()]
    before = [value.clone() for value in subject.model.state_dict().values()]
    began = time.process_time()
    snn = own(subject)
    seconds = time.process_time() - began
    rows += [{**row, "convert_seconds": seconds} for row in own_rows(subject, snn, only)]
    timed: dict[str, Any] = {}
    for contestant in (one for one in peers(subject) if only in one.name):
        began = time.process_time()
        peer = contestant.make(subject)
        seconds = time.process_time() - began
        rows += [{**row, "convert_seconds": seconds} for row in peer_rows(subject, contestant, peer)]
        checks += list(verify(subject, contestant, peer))
        if contestant.name in ("SJ LTB", "sinabs, normalised"):
            timed[contestant.name] = peer
        print(f"{subject.name}: {contestant.name}, {time.process_time():.0f} s of CPU", flush=True)
    after = subject.model.state_dict().values()
    same = all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    checks.append({"check": "source weights unchanged after all conversions", "value": float(same)})
    counts = {int(row["neurons"]) for row in rows}
    if not subject.max_pool and not only:  # some peers put the neuron behind the pool, which leaves fewer
        checks.append({"check": "different numbers of neurons counted", "value": float(len(counts))})
    frames = {"peers": pd.DataFrame(rows), "checks": pd.DataFrame(checks)}
    if not only:
        frames["time"] = clock(subject, snn, timed, 1 if smoke else 5)
    for frame in frames.values():
        frame.insert(0, "network", subject.name)
    frames["peers"].insert(1, "images", len(subject.images))
    return frames


def verify(subject: Subject, contestant: Contestant, peer: Any) -> Iterator[dict[str, Any]]:
    """Both step modes of a SpikingJelly network, and one image alone against the same one in a batch for sinabs."""
    x, steps = subject.images[:4], min(4, subject.steps[-1])
    with torch.no_grad():
        whole: Tensor = peer(x, steps)[0].mean(1)
        if isinstance(peer, Jelly):
            other, what = peer.mean(x, steps, "m"), "all steps in one call against step by step"
        else:
            other = torch.cat([peer(one, steps)[0].mean(1) for one in x.split(1)])
            what = "images one by one against a batch"
    scale = whole.norm().clamp_min(1e-30)
    yield {"check": f"{contestant.name}: {what}, relative difference", "value": float((whole - other).norm() / scale)}


def clock(subject: Subject, snn: Any, timed: dict[str, Any], rounds: int) -> pd.DataFrame:
    """Milliseconds an image at T = 8, all contestants in turn in this process."""
    x, steps = subject.images[: subject.timed], TIMED_STEPS
    calls: dict[str, Any] = {"ANN": lambda: subject.model(x)}
    for delay in (0, 1):
        calls[f"speedysnn binary, delay {delay}"] = lambda delay=delay: ours(snn, x, steps, delay)
    for name, peer in timed.items():
        if isinstance(peer, Jelly):
            calls[f"{name}, step by step"] = lambda peer=peer: peer.mean(x, steps, "s")
            calls[f"{name}, all steps in one call"] = lambda peer=peer: peer.mean(x, steps, "m")
        elif isinstance(peer, Sinabs):
            calls[name] = lambda peer=peer: peer.all_steps(x, steps).mean(1)
    ours(snn, x, steps, 0)
    with torch.no_grad():
        found = paired(calls, "ANN", rounds)
    base = found["speedysnn binary, delay 0"].seconds
    return pd.DataFrame([
        {"contestant": name, "timesteps": steps, "batch": len(x), "ms_per_image": 1e3 * timing.median / len(x),
         "times_ann": 1 / timing.ratio,
         "times_ours": float(pd.Series([s / b for s, b in zip(timing.seconds, base, strict=True)]).median())}
        for name, timing in found.items()
    ])  # fmt: skip


def ours(snn: Any, x: Tensor, steps: int, delay: int) -> Tensor:
    """Our network at T and a delay; settings are changed only where they differ, so that this is not timed."""
    if snn.timesteps != steps:
        snn.timesteps = steps
        snn.set_spikes("binary")
        snn.recalibrate()
    if next(iter(snn.neurons.values())).delay != delay:
        snn.set_delay(delay)
    out: Tensor = snn(x)
    return out


def keep(out: Path, name: str, frame: pd.DataFrame, only: str) -> None:
    """Put a network's rows in the place of its old ones, or of the same contestants'; the file is replaced as a whole."""
    path = out / f"{name}.csv"
    if path.is_file():
        old = pd.read_csv(path)
        stale = old.network == frame.network.iloc[0]
        if only:
            column = "check" if name == "checks" else "contestant"
            stale &= old[column].isin(frame[column])
        frame = pd.concat([old[~stale], frame])
    frame = frame.sort_values("network", key=lambda names: names.map(NAMES.index), kind="stable")
    part = path.with_suffix(".part")
    frame.to_csv(part, index=False, float_format="%.6g")
    part.replace(path)


def machine() -> str:
    """The kind of machine and the versions, without its name."""
    versions = ", ".join(f"{name} {installed(name)}" for name in PACKAGES if installed(name))
    return f"{torch.get_num_threads()} thread(s) of one CPU ({platform.machine()}), no GPU; {versions}"


def main() -> None:
    """Measure, then write figures and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR-10 subset and the checkpoint")
    parser.add_argument("--out", type=Path, help="where to write; this folder, or a temporary one with --smoke")
    parser.add_argument("--only", nargs="+", choices=(*NAMES, "write"))
    parser.add_argument("--contestant", default="", help="run only those with this in their names")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    folder: Path | None = options.data or HERE.parents[2] / "shared" / "data"
    if folder is not None and not (folder / "cifar10-subset.npz").is_file():
        if options.data is not None:
            sys.exit(f"study: {folder} holds no cifar10-subset.npz; give its folder with --data, or leave it out")
        print("study: no CIFAR-10 data, so the ResNet-20 is left out; give its folder with --data", flush=True)
        folder = None
    out: Path = options.out or (Path(tempfile.mkdtemp()) if options.smoke else HERE)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    for package in ("spikingjelly", "sinabs"):
        if not installed(package):
            print(f"study: {package} is not installed and is left out; see --help", flush=True)
    wanted = options.only or (*NAMES, "write")
    torch.manual_seed(0)
    for name, make in makers(folder, out / "runs", options.smoke).items():
        if name in wanted:
            for file, frame in measure(make(), options.smoke, options.contestant).items():
                keep(out, file, frame, options.contestant)
    if "write" in wanted:
        from present import write

        write(out, machine())
        print(f"written to {out}")


if __name__ == "__main__":
    main()
