"""Training thresholds, and all else, in the spiking domain: rules, stages, a published ResNet-20, Fashion-MNIST.

    python reports/finetune/study.py --data DIR                  # all parts; what is done already is kept
    python reports/finetune/study.py --only resnet20 --data DIR  # one part: gradients, choices, resnet20, fashion, write
    python reports/finetune/study.py --smoke --data DIR          # the same path on a few images, into runs/smoke
    python reports/finetune/study.py --only fashion --network vgg --rows T4 --device cuda --train-only

DIR holds cifar10-subset.npz, cifar10-train-jpeg.tar.xz and resnet20-12fca82f.th. Networks and states go to runs/ (not
kept in the repository); a run that was broken off goes on where it stood. Choices are made on held-out training images;
test images are run once for the rows of the tables.
"""

import argparse
import copy
import platform
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import TensorDataset

HERE = Path(__file__).resolve().parent
PARTS = ("gradients", "choices", "resnet20", "fashion", "write")


def main() -> None:
    """Do the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--rows", help="rows of resnet20 or fashion, with commas between; all by default")
    parser.add_argument("--device", default="cpu", help="where networks train: cpu or cuda; all are judged on the CPU")
    parser.add_argument("--train-only", action="store_true", help="leave the networks in runs/, to be judged elsewhere")
    parser.add_argument("--network", choices=("vgg", "resnet"), action="append", help="of fashion; both by default")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    out = options.out or (HERE / "runs" / "smoke" if options.smoke else HERE)
    runs = out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    parts = options.only or PARTS
    if "choices" in parts:
        import choices

        choices.run(out / "choices.csv", smoke=options.smoke)
    if "fashion" in parts:
        import fashion

        fashion.run(out, runs, options.smoke, keep, options.network, torch.device(options.device),
                    options.rows.split(",") if options.rows else None, not options.train_only)  # fmt: skip
    if {"gradients", "resnet20"} & set(parts):
        if not (options.data / "cifar10-subset.npz").is_file():
            sys.exit(f"study: {options.data} holds no cifar10-subset.npz; give the folder with --data")
        cifar_parts(options, out, runs, parts)
    if "write" in parts:
        from present import write

        write(out, machine())


def cifar_parts(options: argparse.Namespace, out: Path, runs: Path, parts: tuple[str, ...]) -> None:
    """The parts that need the CIFAR-10 images."""
    import gradients
    import resnet
    from images import cifar

    images = cifar(options.data, runs, further="resnet20" in parts and not options.smoke)
    if options.smoke:
        images = replace(images, tune=images.tune[:64], held=TensorDataset(*(x[:32] for x in images.held.tensors)))
    ann = resnet.trained(options.data)
    source = resnet.untuned(ann, images)
    if "gradients" in parts:
        some = images.tune[: 8 if options.smoke else 128]
        gradients.compare(copy.deepcopy(source), some, out / "gradients.csv", len(some) // 4)
    if "resnet20" not in parts:
        return
    names = options.rows.split(",") if options.rows else list(resnet.ROWS)[: 1 if options.smoke else None]
    limit = 32 if options.smoke else None
    for name in names:
        tuned, about = resnet.tune(name, ann, source, images, runs, options.smoke, torch.device(options.device))
        if options.train_only:
            continue
        before = copy.deepcopy(source)
        resnet.set_to(before, resnet.ROWS[name])
        rows = [
            {"network": kind, **about, **resnet.judge(name, snn, source, images, limit)}
            for kind, snn in (("untuned", before), ("tuned", tuned))
        ]
        keep(out / "resnet20.csv", pd.DataFrame(rows), name)
        keep(out / "history.csv", resnet.histories(runs, [name]), name)
        print(pd.DataFrame(rows).to_string(), flush=True)


def keep(path: Path, rows: pd.DataFrame, name: str) -> None:
    """Put a row's lines in a csv file, in place of its earlier ones."""
    if path.is_file():
        old = pd.read_csv(path)
        rows = pd.concat([old[old.row != name], rows])
    rows.to_csv(path, index=False)


def machine() -> str:
    """The kind of machine, without its name."""
    return f"{torch.get_num_threads()} thread(s) of one CPU ({platform.machine()}), torch {torch.__version__}, no GPU"


if __name__ == "__main__":
    main()
