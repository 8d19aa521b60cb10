"""`speedysnn evaluate` with encoders, event data, skipped steps and early exit: what it prints, writes and refuses."""

import json

import numpy as np
import pytest
import torch

from speedysnn import analysis, artifact
from speedysnn.cli.main import run
from speedysnn.data import load
from speedysnn.encoders import EncodedImages


def said(line, capfd):
    assert run(line.split()) == 0
    return json.loads(capfd.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.fixture
def net(here):
    return artifact.load("net.snn")


@pytest.mark.parametrize("encoder", ["constant", "poisson", "latency"])
def test_encoders(net, capfd, encoder):
    got = said(f"evaluate net.snn -d digits --limit 70 --seed 3 --encoder {encoder} --delay 1 --json -", capfd)
    net.set_delay(1)
    images = load("digits", "test", limit=70, seed=3)
    expected = analysis.evaluate(net, EncodedImages(images, 4, encoder, 3))
    row = got["rows"][0]
    assert got["encoder"] == row["encoder"] == encoder
    assert row["accuracy"] == expected.accuracy
    assert row["logit_error"] == pytest.approx(expected.logit_error, rel=1e-5)
    assert row["spikes_per_neuron"] == pytest.approx(expected.spikes_per_neuron, rel=1e-5)
    assert "readout" not in row
    assert "early_exit" not in row


def test_bfloat16_comes_with_what_it_costs(net, capfd):
    line = "evaluate net.snn -d digits --limit 70 --precision bfloat16"
    (row,) = said(f"{line} --json -", capfd)["rows"]
    found = analysis.evaluate(net, load("digits", "test", limit=70), precision="bfloat16")
    assert (row["accuracy"], row["float32_agreement"]) == (found.accuracy, found.float32_agreement)
    assert run(line.split()) == 0
    out, err = capfd.readouterr()
    assert "in bfloat16; float32:" in out + err
    assert run([*line.split()[:-1], "half"]) == 2
    assert "expected one of float32, bfloat16" in capfd.readouterr().err


def test_readouts(net, capfd):
    line = "evaluate net.snn -d digits --limit 70 --delay 0,1 --readout-skip 0,2 --early-exit 0.9,inf --exit-by margin"
    rows = said(f"{line} --json -", capfd)["rows"]
    images = load("digits", "test", limit=70)
    for row, delay in zip(rows, (0, 1), strict=True):
        net.set_delay(delay)
        skipped = analysis.delayed_readout(net, images, (0, 2))
        exits = analysis.early_exit(net, images, (0.9, np.inf), measure="margin")
        assert [r["accuracy"] for r in row["readout"]] == skipped.accuracy.tolist()
        assert [r["mean_steps"] for r in row["early_exit"]] == exits.mean_steps.tolist()
        assert [r["confidence"] for r in row["early_exit"]] == [0.9, "inf"]
        assert row["early_exit"][1]["mean_steps"] == 4
    assert run(line.split()) == 0
    out = capfd.readouterr().out
    assert "delayed read-out" in out
    assert "early exit" in out


def test_the_threshold_is_chosen_on_the_other_split(net, capfd):
    got = said("evaluate net.snn -d digits --exit-loss 0.01 --json -", capfd)["rows"][0]
    chosen = analysis.choose_confidence(net, load("digits", "train"), 0.01)
    assert got["chosen_exit"]["images"] == 1200
    assert got["chosen_exit"]["confidence"] == pytest.approx(chosen.confidence)
    assert [r["confidence"] for r in got["early_exit"]] == [got["chosen_exit"]["confidence"]]
    assert got["early_exit"][0]["images"] == 597


def test_event_files(net, capfd, tmp_path):
    images = load("digits", "test", limit=30)
    events = torch.stack([x for x, _ in EncodedImages(images, 8, "poisson", 1)]).numpy()
    np.savez(tmp_path / "dvs.npz", x=events, y=np.array([y for _, y in images]))
    got = said(f"evaluate net.snn -d npz:{tmp_path / 'dvs.npz'} -T 2,4,8 --early-exit 0.9 --json -", capfd)
    assert got["encoder"] == "events"
    for row, steps in zip(got["rows"], (2, 4, 8), strict=True):
        net.timesteps = steps
        assert row["accuracy"] == analysis.evaluate(net, load(f"npz:{tmp_path / 'dvs.npz'}").in_steps(steps)).accuracy
        assert row["early_exit"][0]["images"] == 30


MISTAKES = {
    "--encoder rate": "unknown encoder 'rate'",
    "--readout-skip 4": "expected fewer steps than T=4",
    "--readout-skip 1 -T 4,1": "expected fewer steps than T=1",
    "--readout-skip one": "whole numbers of steps",
    "--early-exit high": "--early-exit: expected numbers such as 0.9,0.99, got 'high'",
    "--early-exit nan": "got 'nan'",
    "--early-exit ,": "one or more values",
    "--exit-by vote": "--exit-by: expected one of margin, softmax, got 'vote'",
    "--exit-loss 2": "--exit-loss: expected a fraction in 0..1",
}


@pytest.mark.parametrize("options", MISTAKES)
def test_mistakes(here, capfd, options):
    assert run(f"evaluate net.snn -d digits --limit 20 {options}".split()) == 2
    out, err = capfd.readouterr()
    assert MISTAKES[options] in err
    assert not out


def test_events_are_not_encoded_again_or_stretched(here, capfd, tmp_path):
    np.savez(tmp_path / "dvs.npz", x=np.zeros((4, 4, 1, 8, 8), np.uint8), y=np.zeros(4, int))
    for option, message in (("--encoder poisson", "events of 4 steps already"), ("-T 3", "cannot be put into 3")):
        assert run(f"evaluate net.snn -d npz:{tmp_path / 'dvs.npz'} {option}".split()) == 2
        assert message in capfd.readouterr().err
