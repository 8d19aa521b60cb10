"""`speedysnn train`: from an untrained network to a saved one; mistakes are a line and code 2."""

import json

from speedysnn import artifact
from speedysnn.cli.main import run

NET = "speedysnn.assets.digits:avg_net"


def test_a_network_is_trained_and_saved(tmp_path, capfd):
    out = tmp_path / "net.snn"
    words = ["train", NET, "-d", "digits", "--limit", "300", "--epochs", "2", "-T", "3", "-o", str(out)]
    assert run([*words, "--json", str(tmp_path / "run.json")]) == 0, capfd.readouterr().err
    snn = artifact.load(out)
    assert snn.timesteps == 3
    assert snn.provenance["finetuned"][-1]["config"]["optimizer"] == "adamw"
    assert not any(node.op == "batch_norm" for node in snn.graph.nodes)
    history = json.loads((tmp_path / "run.json").read_text())["history"]
    assert [row["epoch"] for row in history] == [0, 1, 2]
    assert history[-1]["train_loss"] < history[1]["train_loss"]


def test_a_trained_network_goes_on_under_a_budget(tmp_path, capfd):
    out = tmp_path / "net.snn"
    words = ["train", "speedysnn.assets.digits:load_digits_net", "-d", "digits", "--limit", "200", "-T", "2", "-o", str(out)]
    more = ["--stage", "quantized:1", "--label-weight", "0.5", "--budget", "5", "--json", str(tmp_path / "run.json")]
    assert run([*words, *more]) == 0, capfd.readouterr().err
    first = json.loads((tmp_path / "run.json").read_text())["history"][0]
    assert first["held_out_agreement"] > 0.5  # it starts from the source and hears it
    assert first["budget_rate"] < 5


def test_mistakes_are_a_line(tmp_path, capfd):
    words = ["train", NET, "-d", "digits", "--limit", "60", "--epochs", "1", "-o", str(tmp_path / "net.snn")]
    assert run([*words, "--optimizer", "magic"]) == 2
    assert "adamw, sgd" in capfd.readouterr().err
    assert run([*words, "--num-classes", "4"]) == 2
    assert "classes 0..3" in capfd.readouterr().err
