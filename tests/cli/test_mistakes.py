"""Every mistake ends with exit code 2, one error in plain words, and nothing written or changed."""

import re

import pytest

from speedysnn.cli.main import run

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
    "T 0": (f"{CONVERT} -T 0", "equal to 1"),
    "T a word": (f"{CONVERT} -T x", "-T"),
    "T 0 of evaluate": (f"{EVALUATE} -T 4,0", "at least 1"),
    "T nothing": (f"{EVALUATE} -T ,", "-T"),
    "T 0 of analyze": (f"{ANALYZE} -T 0", "at least 1"),
    "stage misspelt": (f"{FINETUNE} --stage spikes:2", "expected one of quantized"),
    "stage without epochs": (f"{FINETUNE} --stage spiking", "KIND:EPOCHS"),
    "budget of zero": (f"{FINETUNE} --budget 0", "budget"),
    "unknown precision": (f"{FINETUNE} --precision half", "float32, bfloat16"),
    "unknown rule": (f"{FINETUNE} --threshold-rule magic", "surrogate, step, mixed"),
    "T 0 of finetune": (f"{FINETUNE} -T 0", "at least 1"),
    "delay below 0": (f"{CONVERT} --delay -1", "--delay"),
    "delay a word": (f"{CONVERT} --delay x", "--delay"),
    "delay of evaluate": (f"{EVALUATE} --delay 0,x", "'x'"),
    "delay of analyze": (f"{ANALYZE} --delay 1.5", "'1.5'"),
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


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_and_nothing_written(here, capfd, name):
    line, words = MISTAKES[name]
    before = contents(here)
    code = run(line.split())
    out, err = capfd.readouterr()
    assert code == 2, err
    assert len(re.findall(r"^error: ", err, re.MULTILINE)) == 1, err
    message = err[err.index("error: ") :]
    assert words in message, err
    assert "Traceback" not in err
    assert "fault of speedysnn" not in err
    assert "code ran" not in out + err
    assert len(message.strip().splitlines()) == 1 or name in SEVERAL_LINES, err
    assert not out
    assert contents(here) == before


def test_a_bug_is_code_70_and_says_so(here, capfd, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("speedysnn.cli.common.artifact.load", broken)
    assert run(EVALUATE.split()) == 70
    err = capfd.readouterr().err
    assert "ZeroDivisionError: oh. This is a fault of speedysnn's own" in err
    assert "Traceback" not in err
    for line in (f"--debug {EVALUATE}", f"{EVALUATE} --debug"):
        assert run(line.split()) == 70
        assert "Traceback" in capfd.readouterr().err
    for value, shown in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("SPEEDYSNN_DEBUG", value)
        assert run(EVALUATE.split()) == 70
        assert ("Traceback" in capfd.readouterr().err) is shown


def test_debug_shows_where_a_mistake_arose(here, capfd):
    assert run(["inspect", "user.py:broken", "-d", "digits", "--debug"]) == 2
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: user.py:broken")


@pytest.mark.parametrize(
    "line",
    [CONVERT, ANALYZE, FINETUNE, f"{FINETUNE} --run-dir run2", f"{EVALUATE} --json new.json", "demo -o new"],
)
def test_a_folder_that_cannot_be_written_is_refused_at_once(here, capfd, monkeypatch, line):
    def locked(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("speedysnn.cli.targets.tempfile.TemporaryFile", locked)
    before = contents(here)
    assert run(line.split()) == 2
    err = capfd.readouterr().err
    assert "Permission denied" in err
    assert len([row for row in err.splitlines() if row.startswith("error: ")]) == 1
    assert contents(here) == before


def test_an_interrupt_is_code_130(here, capfd, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("speedysnn.cli.common.artifact.load", stopped)
    assert run(EVALUATE.split()) == 130
    assert capfd.readouterr().err == "error: interrupted\n"
