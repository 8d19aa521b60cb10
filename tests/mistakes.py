"""Every mistake with the message it gets: the tests run this table, and `python -m tests.mistakes` writes its page."""

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import torch

from speedysnn.cli.main import run
from speedysnn.errors import SpeedySNNError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "mistakes.md"

NET = "speedysnn.assets.digits:load_digits_net"
CONVERT = f"convert {NET} -d digits --limit 32 -o new.snn"
ANALYZE = "analyze net.snn -d digits --limit 8 -o new"
EVALUATE = "evaluate net.snn -d digits --limit 8"
FINETUNE = "finetune net.snn -d digits --limit 32 --epochs-quantized 1 --epochs-spiking 0 -o new.snn"

# name -> (command line, words that the error must hold)
MISTAKES = {
    "unknown command": ("transmogrify", "transmogrify"),
    "unknown option": (f"{CONVERT} --wibble 3", "--wibble"),
    "no model": ("convert -d digits -o new.snn", "MODEL"),
    "convert without data": (f"convert {NET} -o new.snn", "--data"),
    "convert without output": (f"convert {NET} -d digits", "--output"),
    "analyze without output": ("analyze net.snn -d digits", "--output"),
    "evaluate without data": ("evaluate net.snn", "--data"),
    "finetune without output": ("finetune net.snn -d digits", "--output"),
    "unknown model": ("inspect resnetty -d digits", "resnetty"),
    "torchvision prefix left out": ("inspect resnet18 -d digits", "torchvision:resnet18"),
    "torchvision name": ("inspect torchvision:resnet19 --input-shape 3,32,32", "resnet18"),
    "missing file": ("inspect missing.py:f -d digits", "missing.py"),
    "no function named": ("inspect user.py -d digits", "user.py:FUNCTION"),
    "missing function": ("inspect user.py:smal -d digits", "'small'"),
    "not a function": ("inspect user.py:number -d digits", "expected a function"),
    "user code raises": ("inspect user.py:broken -d digits", "user.py:25: KeyError: 'the table of widths'"),
    "user import fails": ("inspect bad.py:f -d digits", "nothing_of_the_kind"),
    "user syntax": ("inspect syntax.py:f -d digits", "syntax.py:1"),
    "not a module": ("inspect user.py:images -d digits", "split"),
    "num classes of nothing": ("inspect user.py:small --num-classes 5 -d digits", "--num-classes"),
    "num classes 0": ("inspect user.py:small --num-classes 0 -d digits", "at least 1"),
    "checkpoint missing": (f"{CONVERT} -c none.pth", "none.pth does not exist"),
    "checkpoint a folder": (f"{CONVERT} -c folder", "is a folder"),
    "checkpoint truncated": (f"{CONVERT} -c cut.pth", "cut short or damaged"),
    "checkpoint empty": (f"{CONVERT} -c empty.pth", "empty"),
    "checkpoint a web page": (f"{CONVERT} -c page.pth", "web page"),
    "checkpoint with code": (f"{CONVERT} -c code.pth", "code.pth"),
    "checkpoint of another network": (f"{CONVERT} -c other.pth", "first.weight"),
    "unknown data": (f"convert {NET} -d digist -o new.snn", "'digits'"),
    "data without its kind": (f"convert {NET} -d keys.npz -o new.snn", "npz:keys.npz"),
    "npz missing": (f"convert {NET} -d npz:none.npz -o new.snn", "none.npz does not exist"),
    "npz with wrong keys": (f"convert {NET} -d npz:keys.npz -o new.snn", "pictures"),
    "npz truncated": (f"convert {NET} -d npz:cut.npz -o new.snn", "cut.npz"),
    "folder of images missing": (f"convert {NET} -d imagefolder:nowhere -o new.snn", "nowhere"),
    "data function missing": ("evaluate net.snn -d user.py:image", "images"),
    "normalize unknown": (f"{CONVERT} --normalize wrong", "wrong"),
    "normalize of another width": (f"{CONVERT} --normalize imagenet", "channel"),
    "limit 0": (f"{CONVERT} --limit 0", "limit"),
    "limit 0 of analyze": (f"{ANALYZE} --limit 0", "limit"),
    "limit a word": (f"{CONVERT} --limit many", "--limit"),
    "T 0": (f"{CONVERT} -T 0", "-T: expected"),
    "T a word": (f"{CONVERT} -T x", "-T"),
    "several T": (f"{CONVERT} -T 2,4", "--auto to try several"),
    "a limit without search": (f"{CONVERT} --max-latency 4", "--auto beside them"),
    "a latency that nothing has": (f"{CONVERT} --auto -T 4 --max-latency 2", "the least is 4"),
    "T 0 of evaluate": (f"{EVALUATE} -T 4,0", "at least 1"),
    "T nothing": (f"{EVALUATE} -T ,", "-T"),
    "T 0 of analyze": (f"{ANALYZE} -T 0", "at least 1"),
    "stage misspelt": (f"{FINETUNE} --stage spikes:2", "expected one of quantized"),
    "stage without epochs": (f"{FINETUNE} --stage spiking", "KIND:EPOCHS"),
    "budget of zero": (f"{FINETUNE} --budget 0", "budget"),
    "unknown precision": (f"{FINETUNE} --precision half", "float32, bfloat16"),
    "unknown rule": (f"{FINETUNE} --threshold-gradient magic", "surrogate, step, mixed"),
    "T 0 of finetune": (f"{FINETUNE} -T 0", "at least 1"),
    "delay below 0": (f"{CONVERT} --delay -1", "--delay"),
    "delay a word": (f"{CONVERT} --delay x", "--delay"),
    "delay of evaluate": (f"{EVALUATE} --delay 0,x", "'x'"),
    "delay of analyze": (f"{ANALYZE} --delay 1.5", "'1.5'"),
    "device of another kind": (f"{CONVERT} --device gpu", "cuda"),
    "device without a number": (f"{EVALUATE} --device cuda:x", "cuda:x"),
    "a second processor": (f"{ANALYZE} --device cpu:1", "cpu:1"),
    "spikes": (f"{CONVERT} --spikes wavy", "wavy"),
    "spikes graded 0": (f"{CONVERT} --spikes graded:0", "graded"),
    "spikes of evaluate": (f"{EVALUATE} --spikes wavy", "wavy"),
    "threshold": (f"{CONVERT} --threshold bogus", "bogus"),
    "threshold percentile": (f"{CONVERT} --threshold percentile:200", "200"),
    "granularity": (f"{CONVERT} --granularity bogus", "bogus"),
    "v_init": (f"{CONVERT} --v-init 2", "v_init"),
    "v_init nan": (f"{CONVERT} --v-init nan", "v_init"),
    "output is a network": (CONVERT.replace("new.snn", "net.snn"), "--overwrite"),
    "output is a file": (CONVERT.replace("new.snn", "file.snn"), "file.snn"),
    "output is a file, overwrite": (f"{CONVERT} --overwrite".replace("new.snn", "file.snn"), "file.snn"),
    "output is a folder, overwrite": (f"{CONVERT} --overwrite".replace("new.snn", "folder"), "folder"),
    "output below a file": (CONVERT.replace("new.snn", "file.snn/new.snn"), "file.snn"),
    "finetune onto a network": (FINETUNE.replace("-o new.snn", "-o max.snn"), "--overwrite"),
    "report onto a file": (ANALYZE.replace("-o new", "-o file.snn"), "file.snn"),
    "report below a file": (ANALYZE.replace("-o new", "-o file.snn/new"), "file.snn"),
    "demo onto a file": ("demo -o file.snn", "file.snn"),
    "demo below a file": ("demo -o file.snn/demo", "file.snn"),
    "demo of another pool": ("demo --pool min -o new", "'min'"),
    "report onto a report": (ANALYZE.replace("-o new", "-o old"), "--overwrite"),
    "report among other files": (ANALYZE.replace("-o new", "-o folder"), "other files"),
    "report among other files, overwrite": (f"{ANALYZE} --overwrite".replace("-o new", "-o folder"), "other files"),
    "report into a network": (f"{ANALYZE} --overwrite".replace("-o new", "-o net.snn"), "other files"),
    "report into the present folder": (ANALYZE.replace("-o new", "-o ."), "other files"),
    "demo into the present folder": ("demo -o .", "new folder"),
    "demo into the folder above": ("demo -o ..", "new folder"),
    "json onto a file": (f"{EVALUATE} --json user.py", "--overwrite"),
    "json onto a file in inspect": (f"inspect {NET} -d digits --json keys.npz", "--overwrite"),
    "json into a network": (f"{EVALUATE} --overwrite --json net.snn/network.json", "saved network"),
    "json onto a device": (f"{EVALUATE} --overwrite --json /dev/null", "no plain file"),
    "json onto the output": (f"{CONVERT} --json new.snn", "output too"),
    "json onto the report": (f"{ANALYZE} --json new", "output too"),
    "json below a file": (f"{EVALUATE} --json user.py/out.json", "--json"),
    "json into no folder": (f"{EVALUATE} --json none/out.json", "--json"),
    "json onto a folder": (f"{EVALUATE} --json folder", "--json"),
    "net missing": ("evaluate none.snn -d digits", "nothing is there"),
    "net a file": ("evaluate file.snn -d digits", "a file is there"),
    "net damaged": ("evaluate damaged.snn -d digits", "checksum"),
    "net incomplete": ("analyze incomplete.snn -d digits -o new", "network.json"),
    "net a plain folder": ("finetune folder -d digits -o new.snn", "network.json"),
    "source missing": (f"{ANALYZE} --source none.snn", "none.snn"),
    "source of another network": (f"{ANALYZE} --source small.snn", "source"),
    "data of other channels": ("evaluate net.snn -d npz:colour.npz", "3, 8, 8)"),
    "data of other channels in analyze": ("analyze net.snn -d npz:colour.npz -o new", "3, 8, 8)"),
    "data of other channels in finetune": (FINETUNE.replace("digits", "npz:colour.npz"), "3"),
    "data of other channels in convert": (CONVERT.replace("-d digits", "-d npz:colour.npz"), "3"),
    "data of other channels in inspect": (f"inspect {NET} -d npz:colour.npz", "3"),
    "split": (f"{EVALUATE} --split bogus", "bogus"),
    "split of analyze": (f"{ANALYZE} --split bogus", "bogus"),
    "sweep": (f"{ANALYZE} --sweep 1,x", "'x'"),
    "sweep nothing": (f"{ANALYZE} --sweep ,", "--sweep"),
    "train": (f"{FINETUNE} --train bogus", "bogus"),
    "train nothing": (f"{FINETUNE} --train ,", "nothing"),
    "labels without labels": (f"{FINETUNE} --labels".replace("-d digits", "-d npz:unlabelled.npz"), "label"),
    "labels of more classes": (f"{FINETUNE} --labels".replace("-d digits", "-d npz:classes.npz"), "class"),
    "label weight of 1": (f"{FINETUNE} --label-weight 1", "below 1"),
    "label weight beside labels": (f"{FINETUNE} --labels --label-weight 0.5", "label_weight"),
    "label weight without labels": (
        f"{FINETUNE} --label-weight 0.5".replace("-d digits", "-d npz:unlabelled.npz"), "label_weight"
    ),
    "augment": (f"{FINETUNE} --augment bogus", "bogus"),
    "no epochs": (FINETUNE.replace("--epochs-quantized 1", "--epochs-quantized 0"), "epoch"),
    "rate 0": (f"{FINETUNE} --lr 0", "rate"),
    "batch size 0": (f"{FINETUNE} --batch-size 0", "batch_size"),
    "mixup below 0": (f"{FINETUNE} --mixup -1", "mixup"),
    "resume without a folder": (f"{FINETUNE} --resume", "--run-dir"),
    "resume from nothing": (f"{FINETUNE} --resume --run-dir none", "nothing to resume"),
    "run folder is a file": (f"{FINETUNE} --run-dir file.snn", "file.snn"),
    "run folder below a file": (f"{FINETUNE} --run-dir file.snn/run", "file.snn"),
    "run folder is a network": (f"{FINETUNE} --run-dir net.snn", "a network is saved there"),
    "run folder is the output": (f"{FINETUNE} --run-dir new.snn", "the output"),
    "run folder in the output": (f"{FINETUNE} --run-dir new.snn/run", "the output"),
    "run of before without resume": (f"{FINETUNE} --run-dir run", "--resume"),
    "run of before is damaged": (f"{FINETUNE} --run-dir run --resume", "damaged"),
    "one image": (FINETUNE.replace("--limit 32", "--limit 1"), "two images"),
    "seed of convert": (f"{CONVERT} --seed -1", "--seed"),
    "seed of analyze": (f"{ANALYZE} --seed -1", "--seed"),
    "seed of finetune": (f"{FINETUNE} --seed -1", "--seed"),
    "seed of evaluate": (f"{EVALUATE} --seed -1", "--seed"),
    "seed of demo": ("demo --seed -1 -o new", "--seed"),
    "seed too large": (f"{EVALUATE} --seed 99999999999999999999999", "--seed"),
    "inspect without example": (f"inspect {NET}", "--input-shape"),
    "inspect with both": (f"inspect {NET} -d digits --input-shape 1,8,8", "either"),
    "input shape": (f"inspect {NET} --input-shape 1,x", "--input-shape"),
    "input shape of another network": (f"inspect {NET} --input-shape 3,8,8", "3"),
    "unsupported operator": ("convert user.py:wavy -d digits --limit 32 -o new.snn", "SiLU"),
}

SEVERAL_LINES = {"unsupported operator", "checkpoint of another network"}  # they list what is wrong

# name -> a call that a program makes; "snn" is the network net.snn
CALLS = {
    "load: nothing there": 'speedysnn.load("none.snn")',
    "load: a file": 'speedysnn.load("file.snn")',
    "load: damaged": 'speedysnn.load("damaged.snn")',
    "load: incomplete": 'speedysnn.load("incomplete.snn")',
    "load: a graph that does not fit": 'speedysnn.load("unfit.snn")',
    "save: a network is there": 'speedysnn.save(snn, "net.snn")',
    "save: another folder is there": 'speedysnn.save(snn, "folder", overwrite=True)',
    "timesteps 0": 'setattr(snn, "timesteps", 0)',
    "an unknown spike kind": 'snn.set_spikes("wavy")',
    "a neuron that is not there": 'snn.set_delay({"layer9": 1})',
    "input of another rank": "snn(torch.zeros(8, 8))",
    "calibration without a batch": "convert.to_spiking(net, [])",
    "calibration with NaN": "convert.to_spiking(net, torch.full((4, 1, 8, 8), float('nan')))",
    "an unknown threshold rule": 'convert.to_spiking(net, torch.rand(4, 1, 8, 8), threshold="bogus")',
    "data: unknown split": 'data.load("digits", "val")',
    "data: unknown kind": 'data.load("digist")',
    "data: an array that lies": 'data.load("npz:lying.npz")',
    "data: a pixel bomb": 'data.load("imagefolder:bomb")',
    "checkpoint: holds code": 'sources.read_checkpoint("code.pth")',
    "checkpoint: a tensor that lies": 'sources.read_checkpoint("lying.pth")',
    "checkpoint: an archive that would fill the memory": 'sources.read_checkpoint("bomb.pth")',
    "finetune: nothing to train": "finetune.Config(train=())",
    "finetune: nothing to resume": 'finetune.fit(snn, torch.rand(8, 1, 8, 8), folder="none", resume=True)',
}


def called(text: str) -> str:
    """The error class and message that the call ends in.

    Raises:
        AssertionError: it ends without one of the package's own errors.
    """
    import speedysnn
    from speedysnn import convert, data, finetune, sources
    from speedysnn.assets.digits import load_digits_net

    names = {"speedysnn": speedysnn, "convert": convert, "data": data, "finetune": finetune, "sources": sources, "torch": torch,
             "snn": speedysnn.load("net.snn"), "net": load_digits_net("avg")}  # fmt: skip
    try:
        eval(text, names)
    except SpeedySNNError as err:
        return f"{type(err).__name__}: {err}"
    raise AssertionError(f"{text} went through")


def said(line: str) -> str:
    """The error that the command line prints."""
    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()):
        code = run(line.split())
    assert code == 2, out.getvalue()
    return out.getvalue().partition("error: ")[2]


def cell(text: str) -> str:
    """Text as one cell of the page's table."""
    return "<br>".join(re.sub(r"([|<>*_`\\[])", r"\\\1", line.strip()) for line in text.strip().splitlines())


def page_rows() -> dict[str, str]:
    """Name -> message, as the page has them."""
    rows = [re.split(r"(?<!\\) \| ", line.strip("| \n")) for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return {row[0].replace("\\", ""): row[2] for row in rows if row[0] not in ("what was done", "---")}


def expected(name: str, came: str) -> str:
    """The page's message; with another torch than the page's, whose words some messages quote, the one that came."""
    text = PAGE.read_text(encoding="utf-8")
    return page_rows().get(name, "(not on the page)") if f"torch {torch.__version__.partition('+')[0]}," in text else came


def page() -> str:
    """The page; the present folder is the material of the tests."""
    lines = [
        "# Mistakes and their messages",
        "",
        "What each mistake ends in: one line on standard error after `error: `, exit code 2, nothing written or changed. From",
        "Python the same messages come as exceptions, all of them subclasses of `speedysnn.SpeedySNNError`. The tests run every",
        "row and compare; `python -m tests.mistakes` writes this page again. Parts in parentheses quote other libraries' words",
        f"(here torch {torch.__version__.partition('+')[0]}, Python {sys.version_info[0]}.{sys.version_info[1]}).",
        "",
    ]
    for title, table, get, code in (("speedysnn ...", MISTAKES, lambda entry: said(entry[0]), lambda entry: entry[0]),
                                    ("Calls", CALLS, called, lambda entry: entry)):  # fmt: skip
        lines += [f"## {title}", "", "| what was done | command or call | message |", "| --- | --- | --- |"]
        lines += [f"| {cell(name)} | `{code(entry)}` | {cell(get(entry))} |" for name, entry in table.items()]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    from tests.cli.conftest import make_material

    os.environ["COLUMNS"] = "200"
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(make_material(Path(scratch)))
        text = page()
        os.chdir(PAGE.parent)
    assert scratch not in text, "a machine's path came into a message"
    fresh = PAGE.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(PAGE)


if __name__ == "__main__":
    main()
