"""How far a process grows past the limit of memory it was given: ResNet-50 at 224 pixels, T = 4, random weights.

    python reports/noise/memory.py    # a few minutes; writes memory.csv beside this file

Each row is a process of its own. It measures one image first, which compiles kernels and lets torch make its pools, hands
back what is free, and counts from there: growth is the largest resident memory less that. `allocator` is glibc's as it
comes (a library changes nothing), or as `speedysnn analyze --memory` sets it.
"""

import argparse
import platform
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

from speedysnn import analysis, convert
from speedysnn.bench import peak_bytes
from speedysnn.cli import process
from speedysnn.sources import load_model

HERE = Path(__file__).resolve().parent
ROWS = (("noise", 200, 1, "library"), ("noise", 300, 1, "library"), ("noise", 400, 2, "library"),
        ("noise", 200, 1, "command"), ("sensitivity", 200, 1, "library"))  # fmt: skip
IMAGES, MIB = 4, 1024  # the first image's own limit


def row(what: str, limit: int, threads: int, setting: str) -> None:
    """Print one row: limit, predicted and grown, in MiB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if setting == "command":
        process.own_process()
        process.keep_freed_memory()
        process.hand_freed_memory_back()
    images = torch.randn(IMAGES, 3, 224, 224)
    snn = convert.to_spiking(load_model("torchvision:resnet50").model.eval(), images[:2], timesteps=4, correct="none")

    def call(x: torch.Tensor, mib: float) -> float:
        if what == "noise":
            return float(analysis.measure_noise(snn, x, memory_mib=mib).memory.predicted_mib)
        found = analysis.measure_sensitivity(snn, x, modes=("prefix",), gains=False, memory_mib=mib)
        assert found.memory is not None
        return float(found.memory.predicted_mib)

    call(images[:1], MIB)
    predicted: list[float] = []
    grown = peak_bytes(lambda: predicted.append(call(images, limit)))
    assert grown is not None
    print(f"{what},{limit},{threads},{setting},{IMAGES},{predicted[0]:.0f},{grown / 2**20:.0f},{torch.__version__}")


def main() -> None:
    """All rows, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="*")
    given = parser.parse_args().row
    if given:
        row(given[0], int(given[1]), int(given[2]), given[3])
        return
    if platform.system() != "Linux":
        sys.exit("memory: reads /proc, which Linux alone has")
    lines = []
    for one in ROWS:
        done = subprocess.run([sys.executable, __file__, *map(str, one)], stdout=subprocess.PIPE, text=True, check=True)
        lines.append(done.stdout.strip().split("\n")[-1].split(","))
        print(lines[-1], flush=True)
    names = ["measured", "limit_mib", "threads", "allocator", "images", "predicted_mib", "grown_mib", "torch"]
    pd.DataFrame(lines, columns=names).to_csv(HERE / "memory.csv", index=False)


if __name__ == "__main__":
    main()
