"""Whole numbers: what few bits cost, what states need, and how the C program's time follows the spikes.

    python reports/chip/study.py --data ../shared/data                       # every cell that cells.csv lacks
    python reports/chip/study.py --data ../shared/data --only digits-avg --part bits
    python reports/chip/study.py --smoke                                     # digits, few cells, a temporary folder

Each network is converted at T steps with look-ahead 1 and the default correction from 512 training images; the integer
network is made from the same. Test images are read once a cell and choose nothing. Accuracies are those of the C program,
built with `gcc -O3 -march=native`; for 8-bit weights of the part "must" every logit of every test image is compared with
the integer reading, elsewhere those of eight images. Seconds are processor seconds of one core. A cell that stands in
cells.csv is not measured again, so the study can be made in parts.
"""

import argparse
import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from speedysnn import convert, to_integer
from speedysnn.errors import ConversionError, DataError
from speedysnn.export.c import lines_of, operations, raw_bytes, to_c
from speedysnn.integer import Chip
from speedysnn.integer.program import Conv, Linear, Operation
from speedysnn.integer.simulate import apply, run
from speedysnn.network import SpikingNetwork

HERE = Path(__file__).resolve().parent
CALIBRATION, COUNTED, BATCH = 512, 8, 64
RECONSTRUCTED = 256  # training images for rounding by reconstruction
NORMS = {
    "digits-avg": (0.0, 1.0), "digits-max": (0.0, 1.0), "fashion-vgg": (0.286, 0.353), "fashion-resnet": (0.286, 0.353),
    "resnet20": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "lite0": (127 / 255, 128 / 255),
}  # fmt: skip
DENSITIES = (0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Cell:
    """One row of cells.csv."""

    network: str
    timesteps: int
    weight_bits: int
    state_bits: int
    granularity: str
    rounding: str


@dataclass(frozen=True)
class Subject:
    """A source network, pixels (N, ...) uint8 of training and test images, the test images' classes, mean and deviation."""

    model: torch.nn.Module
    training: Tensor
    x: Tensor
    y: Tensor
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def values(self, pixels: Tensor) -> Tensor:
        """What the source network reads."""
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return (pixels / 255 - mean) / std


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def subject(name: str, folder: Path, runs: Path) -> Subject:
    """A network with its images, those of reports/corrections as pixels again.

    Raises:
        DataError: its data or weights are not here.
    """
    networks = _module(HERE.parent / "corrections" / "networks.py")
    if name.startswith("digits"):
        from speedysnn.assets.digits import load_digits_net

        found = networks.load("digits", folder, runs)
        model = load_digits_net(name.removeprefix("digits-"))
    else:
        found = networks.load(name, folder, runs)
        model = None if found is None else found.model
    if found is None or model is None:
        raise DataError(f"chip: {name} needs data or weights that are not here, see the line above")
    mean, std = NORMS[name]
    shape = (-1, 1, 1)
    whole = [
        ((x * torch.tensor(std).reshape(shape) + torch.tensor(mean).reshape(shape)) * 255).round().to(torch.uint8)
        for x in (found.training, found.x)
    ]
    return Subject(model.eval(), whole[0], whole[1], found.y, mean, std)


@cache
def converted(name: str, timesteps: int, folder: Path, runs: Path) -> SpikingNetwork:
    """The spiking network, look-ahead 1."""
    given = subject(name, folder, runs)
    images = given.values(given.training[:CALIBRATION])
    return convert.to_spiking(given.model, list(images.split(BATCH)), timesteps, delay=1)


@cache
def floats(name: str, timesteps: int, folder: Path, runs: Path, limit: int | None) -> tuple[Tensor, float]:
    """The spiking network's answers on the test images, and the source's accuracy."""
    given, snn = subject(name, folder, runs), converted(name, timesteps, folder, runs)
    with torch.no_grad():
        parts = given.values(given.x[:limit]).split(BATCH)
        answers = torch.cat([snn(part).argmax(1) for part in parts])
        source = torch.cat([given.model(part).argmax(1) for part in parts])
    return answers, float((source == given.y[:limit]).double().mean())


def chip_of(cell: Cell, folder: Path, runs: Path) -> Chip:
    """The integer network of a cell; its states' ranges are measured on training images."""
    given = subject(cell.network, folder, runs)
    images = given.training[: RECONSTRUCTED if cell.rounding == "reconstruct" else BATCH]
    return to_integer(converted(cell.network, cell.timesteps, folder, runs), cell.weight_bits, cell.state_bits,
                      mean=given.mean, std=given.std, granularity=cell.granularity, rounding=cell.rounding,
                      images=images)  # fmt: skip


def seconds(program: Path, given: bytes) -> tuple[str, float]:
    """What a program prints, and its processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(program)], input=given, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout.decode(), spent


def built(chip: Chip, vectors: Tensor, folder: Path) -> Path:
    """The C program, which gives the integer reading's logits on the vectors."""
    made = to_c(chip, folder, overwrite=True, images=vectors)
    flags = ["CC=gcc", "CFLAGS=-O3 -march=native"]
    subprocess.run(["make", "-s", "-B", "-C", str(made), "net", "test", *flags], check=True, capture_output=True)
    return made


def stated(readme: str, what: str) -> int:
    """A number of bytes from the program's README."""
    return int(next(line for line in readme.splitlines() if what in line).split("|")[2].split()[0].replace(",", ""))


def events(chip: Chip, images: Tensor) -> dict[str, float]:
    """Synaptic operations, multiplications of pixels and spikes of an image, counted exactly, and the firing share."""
    sums, timing = {"synops": 0, "pixel_macs": 0, "spikes": 0, "steps": 0}, chip.program.by_name
    readers: dict[str, list[Conv | Linear]] = {}
    for op in chip.program.operations:
        if isinstance(op, Conv | Linear):
            readers.setdefault(op.sources[0], []).append(op)

    def see(op: Operation, value: Tensor) -> None:
        if op in chip.program.neurons:
            sums["spikes"] += int(value.abs().sum())
            sums["steps"] += value.numel()
        for layer in readers.get(op.name, ()):
            flat = value.flatten(0, 1) if timing[op.name].timing == "steps" else value
            ones = replace(layer, weight=np.ones_like(layer.weight), shift=0)
            met = int(apply(ones, [(flat != 0).to(torch.int64)]).sum())
            sums["pixel_macs" if timing[op.name].timing == "constant" else "synops"] += met

    run(chip.program, images, None, see)
    count = len(images)
    return {"synops": sums["synops"] / count, "pixel_macs": sums["pixel_macs"] / count,
            "spikes": sums["spikes"] / count, "density": sums["spikes"] / sums["steps"]}  # fmt: skip


def access(size: float, bits: int) -> float:
    """Energy in pJ of `bits` bits read or written in a memory of so many bytes, as `analysis.cost` has it for 32 bits."""
    kilobytes = np.array([8.0, 32.0, 1024.0])
    cost = np.array([10.0, 20.0, 100.0])
    slope = (cost[2] - cost[1]) / (kilobytes[2] - kilobytes[1])
    found = np.interp(size / 1024, kilobytes, cost) + max(0.0, size / 1024 - 1024) * slope
    return float(found * bits / 32)


def energy(row: dict[str, float], cell: Cell) -> float:
    """Energy in nJ an image: operations, and what they read and write, of as many bits as the cell says."""
    weights = access(row["flash"] * cell.weight_bits / 8, cell.weight_bits)
    states = 2 * access(row["ram"], cell.state_bits)
    adding, multiplying = 0.1 * cell.state_bits / 32, 3.1 * cell.weight_bits * 8 / 32**2
    work = row["synops"] * adding + row["pixel_macs"] * (adding + multiplying)
    return (work + (row["synops"] + row["pixel_macs"]) * (weights + states)) / 1000


def measure(cell: Cell, folder: Path, runs: Path, limit: int | None, whole: bool) -> dict[str, object]:
    """One row of cells.csv."""
    given = subject(cell.network, folder, runs)
    answers, source = floats(cell.network, cell.timesteps, folder, runs, limit)
    x, y = given.x[:limit], given.y[:limit]
    begin = time.process_time()
    chip = chip_of(cell, folder, runs)
    made = time.process_time() - begin
    with tempfile.TemporaryDirectory() as scratch:
        program = built(chip, x[:8], Path(scratch) / "c")
        printed, spent = seconds(program / "net", raw_bytes(chip, x))
        readme = (program / "README.md").read_text(encoding="utf-8")
    equal = 8  # to_c's vectors, which `make test` compares
    if whole:
        lines = zip(printed.splitlines(), lines_of(chip(x)).splitlines(), strict=True)
        equal = sum(ours == theirs for ours, theirs in lines)
    logits = torch.tensor([[int(word) for word in line.split()] for line in printed.splitlines()])
    ours = (logits * chip.scale.reshape(-1)).argmax(1)
    report = chip.report
    row = {"flash": stated(readme, "flash"), "ram": stated(readme, "RAM"), **events(chip, given.training[:COUNTED])}
    return {
        **asdict(cell), "images": len(x), "source_accuracy": source, "float_accuracy": float((answers == y).double().mean()),
        "accuracy": float((ours == y).double().mean()), "agreement": float((ours == answers).double().mean()),
        "equal_images": equal, "bits_proven": int(report.bits_needed.max()),
        "bits_measured": int(report.measured_bits.max()),
        "widest": str(report.layer[report.measured_bits.astype(int).idxmax()]),
        "layers_over_16": int((report.measured_bits > 16).sum()), "layers": len(report),
        "saturated_share": float(report.saturated_share.max()), **row, "energy_nj": energy(row, cell),
        "dense_macs": operations(chip), "c_ms": 1000 * spent / len(x), "seconds_to_make": round(made, 1),
    }  # fmt: skip


def grid(part: str, network: str) -> Iterator[Cell]:
    """The cells of a part, for a network."""
    base = Cell(network, 4, 8, 32, "channel", "nearest")
    for timesteps in (4, 8):
        at = replace(base, timesteps=timesteps)
        if part == "must":
            yield at
            yield replace(at, state_bits=16)
            yield replace(at, weight_bits=4, rounding="reconstruct")
            yield replace(at, weight_bits=4)
        elif part == "bits":
            for bits in (2, 3, 4, 5, 6, 8):
                yield replace(at, weight_bits=bits)
            for bits in (2, 3, 4, 6, 8):
                yield replace(at, weight_bits=bits, rounding="reconstruct")
            for bits in (4, 6, 8):
                yield replace(at, weight_bits=bits, granularity="layer")
            yield replace(at, weight_bits=4, granularity="layer", rounding="reconstruct")
        elif part == "states":
            for bits in (8, 10, 12, 14, 16, 20):
                yield replace(at, state_bits=bits)


def densities(network: str, folder: Path, runs: Path, images: int) -> list[dict[str, object]]:
    """C seconds of the same network with thresholds times a factor, so that it fires more or less."""
    given, rows = subject(network, folder, runs), []
    for factor in DENSITIES:
        snn = convert.to_spiking(given.model, list(given.values(given.training[:CALIBRATION]).split(BATCH)), 4, delay=1,
                                 correct="none")  # fmt: skip
        for neuron in snn.neurons.values():
            neuron.set_threshold(neuron.threshold.detach() * factor)
        chip = to_integer(snn, 8, 32, mean=given.mean, std=given.std)
        with tempfile.TemporaryDirectory() as scratch:
            program = built(chip, given.training[:4], Path(scratch) / "c")
            spent = min(seconds(program / "net", raw_bytes(chip, given.training[:images]))[1] for _ in range(9))
        found = events(chip, given.training[:COUNTED])
        rows.append({"network": network, "factor": factor, "images": images, "c_ms": 1000 * spent / images, **found})
    return rows


def missing(name: str, given: argparse.Namespace, error: Exception) -> None:
    """Say why a network has no rows, and keep it for the README."""
    print(f"{name} is left out: {error}", flush=True)
    path = given.out / "left_out.csv"
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    rows = [row for row in rows if row["network"] != name] + [{"network": name, "why": " ".join(str(error).split())}]
    pd.DataFrame(rows).to_csv(path, index=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing and write the tables, the figures and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1].parent / "shared" / "data")
    parser.add_argument("--only", nargs="+", choices=tuple(NORMS), help="networks")
    parser.add_argument("--part", nargs="+", choices=("must", "bits", "states", "density"))
    parser.add_argument("--test-images", type=int, help="the first test images only")
    parser.add_argument("--minutes", type=float, default=1e9, help="no cell is begun after so many")
    parser.add_argument("--runs", type=Path, help="folder in which networks that are trained here are kept")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args(arguments)
    given.out = given.out or (Path(tempfile.mkdtemp()) if given.smoke else HERE)
    runs, begin = given.runs or Path(tempfile.mkdtemp()), time.monotonic()
    cells, out = given.out / "cells.csv", given.out
    rows = pd.read_csv(cells).to_dict("records") if cells.is_file() else []
    networks = given.only or (("digits-avg",) if given.smoke else tuple(NORMS))
    limit = 40 if given.smoke else given.test_images
    for part in given.part or ("must", "bits", "states", "density"):
        for name in networks:
            try:
                if part == "density":
                    _density(name, given, runs)
                for cell in list(grid(part, name))[: 2 if given.smoke else None]:
                    if any(all(row[key] == value for key, value in asdict(cell).items()) for row in rows):
                        continue
                    if time.monotonic() - begin > 60 * given.minutes:
                        break
                    whole = part == "must" and cell.weight_bits == 8
                    rows.append(measure(cell, given.data, runs, limit, whole))
                    print({key: rows[-1][key] for key in (*asdict(cell), "float_accuracy", "accuracy", "c_ms")}, flush=True)
                    pd.DataFrame(rows).to_csv(cells, index=False)
            except (DataError, ConversionError) as err:
                missing(name, given, err)
    present = _module(HERE / "present.py")
    present.write(out)
    print(f"written to {out}")


def _density(name: str, given: argparse.Namespace, runs: Path) -> None:
    path = given.out / "density.csv"
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    if name in ("digits-avg", "resnet20") and not any(row["network"] == name for row in rows):
        rows += densities(name, given.data, runs, 600 if name.startswith("digits") else 20)
        pd.DataFrame(rows).to_csv(path, index=False)


if __name__ == "__main__":
    main()
