"""What speed costs and what it does not: networks beside their own source and beside other simulators, in one run each.

    python reports/speed/study.py            # about 20 minutes on 2 cores
    python reports/speed/study.py --smoke    # tiny sizes, into --out or a temporary folder
    python reports/speed/study.py --device cuda --out reports/speed/h100    # about 3 minutes

Every row is a public `speedysnn bench` command; contestants run in turn in one process and ratios are taken round by
round. bench-*.json, speed.csv, speed.png and README.md beside this file are made anew. Peers run where they are
installed: pip install "speedysnn[bench]" brings SpikingJelly and snnTorch; sinabs goes to a folder of its own on
PYTHONPATH (pip install --no-deps --target DIR sinabs==3.1.3 pbr), since it asks for another nir than ours.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from speedysnn.analysis.report.style import png
from speedysnn.bench.scaling import DPI, draw

HERE = Path(__file__).resolve().parent
RUNS: dict[str, tuple[str, ...]] = {
    "neuron": ("neuron", "-T", "8", "--rounds", "21"),
    "resnet20": ("inference", "--network", "resnet20", "-T", "8", "--batch", "256", "--rounds", "5"),
    "resnet18-64": ("inference", "--network", "resnet18", "--pixels", "64", "-T", "8", "--batch", "256", "--rounds", "3"),
    "resnet18-64-few": ("inference", "--network", "resnet18", "--pixels", "64", "-T", "8", "--batch", "64", "--rounds", "3"),
    "resnet18-224": ("inference", "--network", "resnet18", "-T", "8", "--batch", "32", "--rounds", "3"),
    "resnet18-224-few": ("inference", "--network", "resnet18", "-T", "8", "--batch", "16", "--rounds", "3"),
    "digits": ("inference", "--network", "digits", "-T", "8", "--batch", "256", "--rounds", "7"),
    "training": ("training", "--network", "resnet20", "-T", "4", "--batch", "64", "--rounds", "5"),
    "measuring": ("measuring", "--network", "resnet20", "-T", "8", "--batch", "256", "--rounds", "5"),
    "scaling": ("scaling", "--network", "resnet20", "-T", "4", "--rounds", "7"),
    "sizes": ("sizes", "-T", "4", "--batch", "64", "--rounds", "3"),
}
COMPILED = ("resnet20", "resnet20-one", "resnet18-224")
ONE = {"resnet20-one": ("inference", "--network", "resnet20", "-T", "8", "--batch", "1", "--rounds", "5")}
SMOKE = {"neuron": ("neuron", "--neurons", "1000", "--rounds", "1"),
         "digits": ("inference", "--network", "digits", "--batch", "8", "-T", "2", "--rounds", "1")}  # fmt: skip


def chosen(device: str, smoke: bool) -> dict[str, tuple[str, ...]]:
    """The runs; on a GPU in fewer rounds, and also of one image and under torch.compile."""
    if smoke or device == "cpu":
        return SMOKE if smoke else RUNS
    there = {name: (*words[:-1], "3", "--device", device) for name, words in (RUNS | ONE).items()}
    return there | {f"{name}-compiled": (*there[name], "--compile") for name in COMPILED}


def run(out: Path, name: str, arguments: tuple[str, ...], fresh: bool) -> tuple[str, dict[str, Any]] | None:
    """One bench command; its JSON is kept, and read again unless `fresh`. None where it needs a GPU and none is there."""
    file = out / f"bench-{name}.json"
    command = ["speedysnn", "bench", *arguments, "--json", file.name]
    print("$", " ".join(command), flush=True)
    if fresh or not file.is_file():
        if "cuda" in arguments and not torch.cuda.is_available():
            return None
        subprocess.run([sys.executable, "-m", *command[:-1], str(file), "--overwrite"], check=True)
    return " ".join(command), json.loads(file.read_text(encoding="utf-8"))


def table(frame: pd.DataFrame) -> str:
    """A Markdown table."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Run all and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write; this folder, or a temporary one with --smoke")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    out: Path = options.out or (Path(tempfile.mkdtemp()) if options.smoke else HERE)
    out.mkdir(parents=True, exist_ok=True)
    rows, sections, drawn, missing = [], [], {}, []
    for name, arguments in chosen(options.device, options.smoke).items():
        done = run(out, name, arguments, options.fresh or options.smoke)
        if done is None:
            missing.append(name)
            continue
        command, found = done
        where = place(found["machine"])
        for case in found["cases"]:
            drawn[f"{name}: {case['name']}"] = case
            own = [
                {"run": name, "case": case["name"], "contestant": row["name"], "median_ms": 1e3 * row["median_s"],
                 "best_ms": 1e3 * row["best_s"], "ratio": row["base_over_this"],
                 "us_per_image": row.get("us_per_image"), "peak_mib": (row.get("peak_bytes") or 0) / 2**20 or None}
                for row in case["rows"]
            ]  # fmt: skip
            rows += own
            shown = pd.DataFrame(own).drop(columns=["run", "case"]).dropna(axis=1, how="all")
            shown = shown.round(2 if shown.median_ms.max() > 1 else 3)
            notes = "".join(f"\n- {line}" for line in case["notes"])
            sections.append(f"## {name}: {case['name']}\n\n`{command}`, {where}\n\n{table(shown)}\n{notes}\n")
    frame = pd.DataFrame(rows)
    frame.to_csv(out / "speed.csv", index=False)
    (out / "speed.png").write_bytes(png(draw(list(drawn.values()), list(drawn)), DPI))
    text = TEXT.format(beside=BESIDE if (out / "avx512").is_dir() else "") if options.device == "cpu" else THERE
    text += f"Not run yet: {', '.join(missing)}.\n\n" if missing else ""
    (out / "README.md").write_text(text + "\n".join(sections), encoding="utf-8")
    print(f"written to {out}")


def place(machine: dict[str, Any]) -> str:
    """The kind of machine and the versions of a run."""
    packages = ", ".join(f"{key} {value}" for key, value in machine["packages"].items() if value)
    kind = " ".join(filter(None, (machine["machine"], machine.get("instructions"))))
    return f"{machine['threads']} cores ({kind}), {machine.get('accelerator') or 'no GPU'}; {packages}"


BESIDE = """
These runs were told to use no more than AVX2, as on processors without AVX-512 and bfloat16, by
`ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 NUMBA_CPU_NAME=znver3`. The same study with all that the processor has,
made with `--out reports/speed/avx512`: [avx512](avx512/README.md). On a GPU: [h100](h100/README.md).
"""
TEXT = """# Speed

Made by `python reports/speed/study.py`; seed 0, random weights with fitted batch-norm statistics, float32. The machine is
shared with other work, so times compare within a table only. Each table is one command;
contestants ran in turn in one process, the ratio is the first row's time over a row's own,
the median of the rounds. "8 x ANN" is the source network's own graph, batch-norm folded, run 8 times at the batch size
that suits it best, likewise its step "4 x ANN" in training and "8 x ANN, bfloat16": what torch's own convolutions take, and
so what a simulator that multiplies densely with them cannot go below. "Analog reading" is one call of the network, the same "64 at
a time" split by hand. Peers run the same graph and weights with their own neurons and our thresholds. A command keeps
freed memory, which serves peers too; the layer of neurons is timed as in a Python process of one's own as well.
{beside}
![times](speed.png)

"""

THERE = """# Speed on a GPU

Made by `python reports/speed/study.py --device cuda --out reports/speed/h100`; seed 0, random weights with fitted
batch-norm statistics, float32 with torch's own settings (convolutions in TF32). Times compare within a table only: one
command each, whose contestants ran in turn in one process; the ratio is the first row's time over a row's own, the median
of the rounds. "8 x ANN" is the source network's own graph, batch-norm folded, run 8 times: at these sizes the processor
takes longer to call its layers than the GPU to run them, so that 8 steps in one pass take less than 8 passes. Peers run
the same graph and weights with their own neurons and our thresholds; SpikingJelly's multi-step neuron is a Triton kernel
of its own.

![times](speed.png)

"""

if __name__ == "__main__":
    main()
