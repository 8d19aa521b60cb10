"""Every classification network of torchvision converted: how each is treated, and the three errors that prove it.

    python reports/coverage/study.py                 # all of them, about an hour on 2 cores
    python reports/coverage/study.py --smoke         # three small ones, into --out or a temporary folder
    python reports/coverage/study.py --only NAME ... # these, added to coverage.csv

Networks are built with random weights; batch-norm statistics, layer scales and zero-initialised layers are drawn at
random too, so that nothing is trivially right. Inputs are seeded noise at a small image size. coverage.csv, spiking.csv
and README.md beside this file are made anew; rows already measured are kept unless --fresh is given.
"""

import argparse
import gc
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchvision
from torch import Tensor, nn

from speedysnn import __version__, convert
from speedysnn.convert.read import relative_error

HERE = Path(__file__).resolve().parent
SMOKE = ("squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small")
SPIKING = ("mobilenet_v2", "densenet121", "googlenet", "resnet18", "mobilenet_v3_small")
MEMORY, SMALLEST = ("resnet152", "vit_l_16"), "squeezenet1_1"
SEED = 0


def names() -> list[str]:
    """Every classification network of torchvision, the small ones first."""
    found = torchvision.models.list_models(module=torchvision.models)
    return sorted(found, key=lambda name: torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"])


def image_size(name: str) -> int:
    """The smallest square image, in pixels, that a family takes with every layer at work."""
    if name.startswith("maxvit"):
        return 224
    return {"inception_v3": 75, "vit_h_14": 56}.get(name, 64)


def build(name: str) -> nn.Module:
    """The network with random weights and ten outputs, nothing left at a trivial value."""
    torch.manual_seed(SEED)
    options: dict[str, Any] = {"num_classes": 10}
    if name in ("googlenet", "inception_v3"):
        options.update(init_weights=False, aux_logits=False)
    if name.startswith("vit"):
        options["image_size"] = image_size(name)
    model = torchvision.models.get_model(name, weights=None, **options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for label, parameter in model.named_parameters():
            if label.endswith("layer_scale"):
                parameter.uniform_(0.1, 0.5)
            elif parameter.ndim > 1 and not bool(parameter.any()):
                parameter.normal_(0, 0.1)
    return model.eval()


def noise(name: str, images: int) -> Tensor:
    """Seeded standard normal images."""
    return torch.randn(images, 3, image_size(name), image_size(name), generator=torch.Generator().manual_seed(SEED))


def measure(name: str, images: int = 4) -> dict[str, Any]:
    """One row: treatment, operator counts, and the relative errors of analog, full look-ahead and T = 512."""
    began, model, x = time.time(), build(name), noise(name, images)
    report = convert.inspect(model, x, allow_hybrid=True)
    kinds = report.frame.treatment.value_counts()
    snn = convert.to_spiking(model, x, 4, allow_hybrid=True, delay="full", correct="none")
    with torch.no_grad():
        source = model(x)
        with snn.reading("quantized"):
            twin = snn(x)
        stepped = snn(x, per_step=True)[-1]
        snn.timesteps = 512
        snn.recalibrate()
        with snn.reading("quantized"):
            many = snn(x)
    return {
        "network": name,
        "treatment": report.treatment,
        "tracer": report.tracer,
        "parameters": sum(p.numel() for p in model.parameters()),
        "pixels": image_size(name),
        "spiking": int(kinds.get("spiking", 0)),
        "hybrid": int(kinds.get("hybrid", 0)),
        "unsupported": int(kinds.get("unsupported", 0)),
        "neuron_layers": report.neurons,
        "encoders": int((report.frame.operator == "encode").sum()),
        "analog_error": snn.provenance["analog_error"],
        "full_error": relative_error(stepped, twin),
        "quantized_512": relative_error(many, source),
        "seconds": round(time.time() - began, 1),
    }


def spiking(name: str, images: int = 4) -> dict[str, Any]:
    """Relative error of the mean logits of the spiking reading, recalibrated for each T, delay 0."""
    model, x = build(name), noise(name, images)
    snn = convert.to_spiking(model, x, 4, allow_hybrid=True, correct="none")
    row: dict[str, Any] = {"network": name, "treatment": snn.provenance["treatment"]}
    with torch.no_grad():
        source = model(x)
        for steps in (64, 256):
            snn.timesteps = steps
            snn.recalibrate()
            row[f"T{steps}"] = relative_error(snn(x), source)
    return row


def memory(name: str) -> dict[str, Any]:
    """Peak memory of a process that builds the network, and of one that converts it too, in bytes."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import study; study.peak(sys.argv[2], sys.argv[3] == 'convert')"
    peaks = []
    for network, what in ((name, "build"), (name, "convert"), (SMALLEST, "build"), (SMALLEST, "convert")):
        command = [sys.executable, "-W", "ignore", "-c", code, str(HERE), network, what]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
    weights = sum(p.numel() * p.element_size() for p in build(name).parameters())
    program = peaks[3] - peaks[2]
    added = (peaks[1] - peaks[0] - program) / weights
    return {"network": name, "weights": weights, "built": peaks[0], "converted": peaks[1], "program": program,
            "added_over_weights": added}  # fmt: skip


def peak(name: str, converted: bool) -> None:
    """Print this process's peak memory after building, or after converting without calibration of many images."""
    model, x = build(name), noise(name, 1)
    with torch.no_grad():
        model(x)
    if converted:
        snn = convert.to_spiking(model, x, 4, allow_hybrid=True, granularity="layer", correct="none")
        assert snn.neurons
    print(high_water())


def high_water() -> int:
    """Peak memory of this process in bytes; ru_maxrss would start from the parent's."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(frame: pd.DataFrame) -> str:
    """A Markdown table."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write(out: Path) -> None:
    """README.md from the csv files."""
    coverage, spikes = pd.read_csv(out / "coverage.csv"), pd.read_csv(out / "spiking.csv")
    kinds = coverage.treatment.value_counts()
    shown = coverage.drop(columns=["unsupported", "seconds"]).assign(
        parameters=(coverage.parameters / 1e6).map("{:.1f} M".format)
    )
    for column in ("analog_error", "full_error", "quantized_512"):
        shown[column] = coverage[column].map("{:.1e}".format)
    for column in ("T64", "T256"):
        spikes[column] = spikes[column].map("{:.4f}".format)
    used = ""
    if (out / "memory.csv").is_file():
        sizes = pd.read_csv(out / "memory.csv")
        used = MEMORY_TEXT.format(table=table(sizes.assign(
            **{name: (sizes[name] / 2**20).map("{:.0f} MiB".format) for name in ("weights", "built", "converted", "program")},
            added_over_weights=sizes.added_over_weights.map("{:.2f}".format))))  # fmt: skip
    text = TEXT.format(
        total=len(coverage), every=len(names()), spiking=kinds.get("spiking", 0), hybrid=kinds.get("hybrid", 0),
        unsupported=kinds.get("unsupported", 0), analog=coverage.analog_error.max(), full=coverage.full_error.max(),
        quantized=coverage.quantized_512.max(), version=__version__, torch=torch.__version__,
        vision=torchvision.__version__, machine=platform.machine(), coverage=table(shown), spikes=table(spikes),
        memory=used,
    )  # fmt: skip
    (out / "README.md").write_text(text, encoding="utf-8")


def collect(out: Path, file: str, wanted: list[str], row: Any, fresh: bool) -> None:
    """Measure what is not in a csv yet, one network at a time, saving after each."""
    path = out / file
    rows = pd.read_csv(path).to_dict("records") if path.is_file() and not fresh else []
    have = {entry["network"] for entry in rows}
    for name in wanted:
        if name in have:
            continue
        rows.append(row(name))
        print(*(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
        pd.DataFrame(rows).to_csv(path, index=False)
        gc.collect()


def main() -> None:
    """Run all and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path, help="where to write; this folder, or a temporary one with --smoke")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    options = parser.parse_args()
    out: Path = options.out or (Path(tempfile.mkdtemp()) if options.smoke else HERE)
    out.mkdir(parents=True, exist_ok=True)
    wanted = options.only or (list(SMOKE) if options.smoke else names())
    collect(out, "coverage.csv", wanted, measure, options.fresh)
    if not options.only:
        collect(out, "spiking.csv", ["mobilenet_v3_small"] if options.smoke else list(SPIKING), spiking, options.fresh)
        if not (options.smoke or options.no_memory):
            collect(out, "memory.csv", list(MEMORY), memory, options.fresh)
        write(out)
        print(f"written to {out}")


TEXT = """# Every classification network of torchvision, converted

{total} of {every} networks measured: {spiking} `spiking` (spikes and accumulation only), {hybrid} `hybrid` (some operators need an analog
unit), {unsupported} unsupported. Made by `python reports/coverage/study.py`, speedysnn {version}, torch {torch},
torchvision {vision}, seed 0, 2 cores of one CPU ({machine}), no GPU. `correct="none"`; random weights, random batch-norm statistics, seeded
noise of 4 images at a small size.

- `analog_error`: analog reading against the source network; conversion refuses anything above 1e-5. Largest: {analog:.1e}.
- `full_error`: T = 4 run step by step with look-ahead `full` against the quantized reading. Largest: {full:.1e}.
- `quantized_512`: quantized reading at T = 512, thresholds recalibrated, against the source. Largest: {quantized:.4f}.
- `spiking`, `hybrid`: operators of each kind; `encoders`: neuron layers that re-encode what is no spike train any more.

All errors are relative (norm of the difference over norm of the source's output).

{coverage}

## Spiking, look-ahead 0, thresholds recalibrated for each T: relative error of the mean logits

{spikes}
{memory}"""

MEMORY_TEXT = """
## Memory of a conversion

Peak of a process that builds the network and runs it once, and of one that converts it too (one image, thresholds per
layer). `program` is the same difference for squeezenet1_1, whose 3 MiB of weights do not count: compiled kernels and
libraries. `added_over_weights` is what is left of the difference, over the size of the weights.

{table}
"""

if __name__ == "__main__":
    main()
