"""What the commands do on the bundled digits, what they print, and what they write."""

import json

import numpy as np
import pytest

import speedysnn
from speedysnn import artifact, data
from speedysnn.analysis import evaluate, measure_noise
from speedysnn.cli import demo
from speedysnn.cli.main import run
from speedysnn.cli.options import named
from speedysnn.finetune import Config

NET = "speedysnn.assets.digits:load_digits_net"
COMMANDS = ("demo", "inspect", "convert", "analyze", "finetune", "train", "evaluate")


def words(line):
    return line.split()


def strict(text):
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def small(limit):
    return data.load("digits", "test", limit=limit, seed=0)


def test_version(capfd):
    assert run(["--version"]) == 0
    assert capfd.readouterr().out == f"speedysnn {speedysnn.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capfd, command):
    assert run([command, "--help"]) == 0
    out, err = capfd.readouterr()
    assert f"Example: speedysnn {command}" in out
    assert not err


def test_help_lists_the_commands(capfd):
    assert run(["-h"]) == 0
    out = capfd.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_inspect(here, capfd):
    assert run(["inspect", NET, "-d", "digits"]) == 0
    assert "everything converts" in capfd.readouterr().out
    assert run(["inspect", NET, "--input-shape", "1,8,8", "--json", "-"]) == 0
    assert strict(capfd.readouterr().out)


def test_inspect_finds_problems(here, capfd):
    assert run(["inspect", "user.py:wavy", "--input-shape", "1,8,8", "--problems"]) == 1
    out, err = capfd.readouterr()
    assert "SiLU" in out
    assert "Linear" not in out
    assert "running code of user.py" in err
    assert "error:" not in err


def test_inspect_goes_on_after_a_layer_with_an_empty_output(here, capfd):
    assert run(["inspect", "user.py:attentive", "--input-shape", "4,2,8", "--json", "-"]) == 1
    said = strict(capfd.readouterr().out)
    assert [row["operator"] for row in said["operators"] if row["treatment"] == "unsupported"] == ["MultiheadAttention"]


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        ("digits", "digits"),
        ("fashion-mnist:/data/fashion", "fashion-mnist:fashion"),
        ("cifar10:/data/cifar", "cifar10:cifar"),
        ("npz:/data/a.npz", "npz:a.npz"),
        ("imagefolder:/data/photos@32", "imagefolder:photos@32"),
        ("/home/a/net.py:make", "net.py:make"),
        ("package.module:make", "package.module:make"),
        ("torchvision:resnet18", "torchvision:resnet18"),
    ],
)
def test_a_network_keeps_no_path(spec, kept):
    assert named(spec) == kept


def test_convert(there, capfd):
    line = f"convert {NET} -c good.pth -d digits --limit 64 -T 3 --spikes ternary --delay 1 --threshold max "
    assert run(words(f"{line} --granularity layer --v-init 0.25 -o a.snn --json a.json")) == 0
    out = capfd.readouterr().out
    assert "relu5" in out
    assert "saved a.snn" in out
    snn = artifact.load("a.snn")
    neuron = snn.neurons["relu1"]
    assert (snn.timesteps, neuron.spikes, neuron.delay, neuron.granularity) == (3, "ternary", 1, "layer")
    assert float(neuron.v_init.detach()) == 0.25
    said = strict((there / "a.json").read_text())
    assert (said["timesteps"], said["latency"], len(said["layers"])) == (3, snn.latency, 5)
    assert said["provenance"]["checkpoint"] == "good.pth"
    assert str(there) not in json.dumps(said["provenance"])


def test_convert_searches(there, capfd):
    line = (
        f"convert {NET} -d digits --limit 32 -T 2,4 --delay 0,1 --spikes binary --correct none --auto --max-latency 7"
    )
    assert run(words(f"{line} -o auto.snn --json auto.json")) == 0
    out = capfd.readouterr().out
    assert "* best, + frontier" in out
    said = strict((there / "auto.json").read_text())
    rows = said["search"]["table"]
    (best,) = [row for row in rows if row["best"]]
    assert {(row["timesteps"], row["delay"]) for row in rows} == {(2, 0), (4, 0), (2, 1)}
    assert (best["timesteps"], best["latency"]) == (said["timesteps"], said["latency"])
    assert artifact.load("auto.snn").latency == best["latency"] <= 7


@pytest.mark.parametrize("options", ["--max-latency 4", "-T 2,4", "--delay 0,1", "-T 0", "--auto --max-latency 1"])
def test_convert_refuses_settings_that_do_not_go_together(options, there, capfd):
    assert run(words(f"convert {NET} -d digits --limit 32 -o none.snn {options}")) == 2
    assert "error:" in capfd.readouterr().err
    assert not (there / "none.snn").exists()


def test_convert_is_the_same_twice_and_overwrites_only_when_told(there):
    line = words(f"convert {NET} -d digits --limit 64 -o net.snn")
    before = (there / "net.snn" / "network.json").read_bytes()
    assert run(line) == 2
    assert (there / "net.snn" / "network.json").read_bytes() == before
    assert run([*line, "--overwrite"]) == 0
    first = {p.name: p.read_bytes() for p in (there / "net.snn").iterdir()}
    assert run([*line, "--overwrite"]) == 0
    assert {p.name: p.read_bytes() for p in (there / "net.snn").iterdir()} == first


def test_evaluate_many(there, capfd):
    line = "evaluate net.snn -d digits --limit 40 -T 2,4 --delay 0,1,full --json"
    assert run([*line.split(), "-"]) == 0
    rows = strict(capfd.readouterr().out)["rows"]
    settings = [(t, d) for t in (2, 4) for d in (0, 1, "full")]
    assert [(row["timesteps"], row["delay"]) for row in rows] == settings
    for row, (steps, delay) in zip(rows, settings, strict=True):
        snn = artifact.load("net.snn")
        snn.timesteps = steps
        snn.set_delay(delay)
        assert row == evaluate(snn, small(40)).to_json()
    (there / "rows.json").write_text("older")
    assert run([*line.split(), "rows.json"]) == 2
    assert (there / "rows.json").read_text() == "older"
    assert run([*line.split(), "rows.json", "--overwrite"]) == 0
    out, err = capfd.readouterr()
    assert "net.snn: 40 test images" in out
    assert "T=4, delay 1, latency 9" in err
    assert strict((there / "rows.json").read_text())["rows"] == rows


def test_evaluate_recalibrated(there, capfd):
    for recalibrate in (False, True):
        flags = ["--recalibrate"] if recalibrate else []
        assert run([*words("evaluate net.snn -d digits --limit 40 -T 2 --json -"), *flags]) == 0
        said = strict(capfd.readouterr().out)
        snn = artifact.load("net.snn")
        snn.timesteps = 2
        if recalibrate:
            snn.recalibrate()
        assert said["theta"] == ("recalibrated" if recalibrate else "fixed")
        assert said["rows"] == [evaluate(snn, small(40)).to_json()]


def test_analyze(there, capfd):
    line = "analyze net.snn -d digits --limit 40 -o report --sweep 1,4 --source net.snn --json"
    assert run([*line.split(), "noise.json"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("On 40 images the spiking network")
    assert "report.html" in out
    said = strict((there / "noise.json").read_text())
    assert len(said["sweep"]) == 4
    snn = artifact.load("net.snn")
    expected = measure_noise(snn, small(40), snn)
    assert said["layers"] == expected.to_json()["layers"]
    assert {p.name for p in (there / "report").iterdir()} >= {"report.html", "layers.csv", "noise.json", "sweep.csv"}
    again = words("analyze net.snn -d npz:unlabelled.npz --limit 8 -o report --json -")
    assert run(again) == 2
    assert run([*again, "--overwrite"]) == 0
    assert strict(capfd.readouterr().out)["outputs"]["accuracy"] is None


def test_analyze_within_memory_and_with_finalists(there, capfd):
    line = "analyze net.snn -d digits --limit 40 --seed 3 -o report --sensitivity 12 --confirm 20 --memory 0.2 --json"
    assert run([*line.split(), "noise.json"]) == 0
    said = strict((there / "noise.json").read_text())
    assert said["memory"]["limit_mib"] == 0.2
    assert said["memory"]["seed"] == 3
    assert "MiB predicted" in capfd.readouterr().out.replace("\n", " ")
    assert [row["images"] for row in said["sensitivity"]["gains"][:9]] == [20] * 8 + [12]
    for wrong in ("--confirm 20", "--sensitivity 12 --confirm 29", "--sensitivity 12 --confirm 0", "--memory 0.001"):
        assert run(words(f"analyze net.snn -d digits --limit 40 -o other {wrong}")) == 2
    assert "--confirm: expected" in capfd.readouterr().err


def test_finetune_in_stages_with_a_budget(there, capfd):
    np.savez("more.npz", x=np.random.default_rng(0).random((40, 1, 8, 8), np.float32), y=np.arange(40) % 10)
    line = words("finetune net.snn -d digits --limit 64 --stage blockwise:0 --stage quantized:1,T=4 --stage spiking:1 "
                 "--budget 0.4 --budget-of synops --membrane 0.1 --more-data npz:more.npz --threshold-gradient mixed --log log "
                 "--augment trivial --patience 3 -o staged.snn --json -")  # fmt: skip
    assert run(line) == 0
    said = strict(capfd.readouterr().out)
    assert [row["stage"] for row in said["history"]] == ["blockwise"] * 2 + ["quantized"] * 2 + ["spiking"] * 2
    assert {row["timesteps"] for row in said["history"] if row["stage"] == "quantized"} == {4}
    assert [row["layer"] for row in said["layers"]] == list(artifact.load("staged.snn").neurons)
    assert (there / "log" / "steps.csv").is_file()
    assert artifact.load("staged.snn").provenance["finetuned"][0]["more_data"] == ["npz:more.npz"]


def test_weights_of_few_bits_are_tuned_and_measured(there, capfd):
    line = "finetune net.snn -d digits --limit 64 --stage quantized:1"
    assert run(words(f"{line} --weight-bits 3 -o few.snn --json few.json")) == 0
    assert strict((there / "few.json").read_text())["config"]["weight_bits"] == 3
    capfd.readouterr()
    measured = "analyze few.snn --source net.snn -d digits --limit 16 --try 0"
    assert run(words(f"{measured} --weight-bits 3 -o few --json few-noise.json")) == 0
    assert "temporal" in capfd.readouterr().out
    said = strict((there / "few-noise.json").read_text())
    assert said["outputs"]["weight_bits"] == 3
    assert all(row["share_weights"] for row in said["layers"])
    assert run(words(f"{line} --weight-bits 1 -o other.snn")) == 2
    assert run(words(f"{measured} --weight-bits 17 -o other")) == 2
    assert capfd.readouterr().err.count("weight_bits: expected a whole number of 2 to 16") == 2


def test_finetune_and_resume(there, capfd):
    line = words("finetune net.snn -d digits --limit 64 --epochs-quantized 1 --epochs-spiking 1 --run-dir run")
    assert run([*line, "-o", "tuned.snn", "--json", "run.json"]) == 0
    out, err = capfd.readouterr()
    assert "saved tuned.snn" in out
    assert "quantized epoch 1: held-out loss" in err
    said = strict((there / "run.json").read_text())
    assert [(row["stage"], row["epoch"]) for row in said["history"]] == [
        ("quantized", 0), ("quantized", 1), ("spiking", 0), ("spiking", 1)
    ]  # fmt: skip
    assert run([*line, "-o", "again.snn", "--resume", "--json", "-"]) == 0
    assert strict(capfd.readouterr().out)["history"] == said["history"]
    weights = "weights.safetensors"
    assert (there / "again.snn" / weights).read_bytes() == (there / "tuned.snn" / weights).read_bytes()
    assert run([*line, "-o", "other.snn", "--resume", "--lr", "0.5"]) == 2
    assert "other settings" in capfd.readouterr().err
    assert not (there / "other.snn").exists()
    kept = artifact.load("tuned.snn").provenance["finetuned"]
    assert [(entry["data"], entry["normalize"], entry["limit"]) for entry in kept] == [("digits", None, 64)]
    capfd.readouterr()
    assert run(words("analyze tuned.snn --source net.snn -d digits --limit 16 -o report")) == 0
    assert "its weights were tuned" not in capfd.readouterr().err
    assert run(words("analyze tuned.snn -d digits --limit 16 -o other")) == 0
    assert "its weights were tuned" in capfd.readouterr().err
    assert run([*line, "-o", "third.snn"]) == 2
    assert run([*line, "-o", "third.snn", "--overwrite"]) == 0


def test_the_normalisation_of_convert_is_used_later(there, capfd):
    assert run(words(f"convert {NET} -d digits --limit 64 --normalize 0.5/0.5 -o half.snn")) == 0
    capfd.readouterr()
    said = []
    for extra in ("", "--normalize 0.5/0.5", "--normalize none"):
        assert run(words(f"evaluate half.snn -d digits --limit 40 --json - {extra}")) == 0
        said.append(strict(capfd.readouterr().out))
    assert said[0] == said[1]
    assert said[0]["normalize"] == "0.5/0.5"
    assert said[0]["rows"] != said[2]["rows"]


def test_demo(there, capfd, monkeypatch):
    load = data.load
    monkeypatch.setattr(demo.data, "load", lambda spec, split: load(spec, split, limit=48))
    short = Config(epochs_quantized=1, epochs_spiking=1)
    monkeypatch.setattr(demo, "Config", lambda **_: short)
    assert run(["demo", "-o", "out"]) == 0
    out = capfd.readouterr().out
    assert "verdict after tuning" in out
    assert (there / "out" / "report.html").is_file()
    assert (there / "out" / "before" / "report.html").is_file()
    assert artifact.load("out/tuned.snn").provenance["data"] == "digits"
    report = (there / "out" / "report.html").read_bytes()
    assert run(["demo", "-o", "out"]) == 0
    assert (there / "out" / "report.html").read_bytes() == report
    assert (there / "out-2" / "tuned.snn").is_dir()
    (there / "file").write_text("mine")
    assert run(["demo", "-o", "file"]) == 2
    assert (there / "file").read_text() == "mine"


@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit_and_no_header_word_is_cut(printed, width):
    columns = ("spikes", "T", "delay", "latency", "accuracy %", "quantized %", "source %", "agree %", "logit error",
               "spikes per neuron")  # fmt: skip
    text = printed(width, "title", columns, [("graded:2", "16", "full", "112", *["100.00"] * 4, "0.123", "0.12")])
    cut = {word for name in columns for word in name.split()}
    assert cut <= set(text.split())
    assert max(map(len, text.splitlines())) <= width
    empty = printed(width, "title", ("layer", "operator", "advice"), [("a", "b", ""), ("c", "d", "")], left=3)
    assert "advice" not in empty
    assert "layer" in printed(width, "title", ("layer", "operator"), [])
