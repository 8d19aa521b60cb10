"""Exported programs give what the network gives."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import speedysnn
from speedysnn import convert
from speedysnn.cli import main
from speedysnn.errors import ArtifactError
from speedysnn.export import to_pt2


def network(delay: int | str, spikes: str, hybrid: bool) -> speedysnn.SpikingNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.SiLU() if hybrid else nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip
    return convert.to_spiking(net, torch.randn(16, 3, 8, 8), 4, delay=delay, spikes=spikes, allow_hybrid=hybrid)


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    ("delay", "spikes", "hybrid"),
    [(0, "binary", False), (1, "ternary", True), (2, "graded:3", False), (1, "power2:3", False), ("full", "binary", True),
     pytest.param(0, "binary", True, marks=NIGHTLY), pytest.param(1, "ternary", False, marks=NIGHTLY),
     pytest.param(2, "graded:3", True, marks=NIGHTLY), pytest.param("full", "binary", False, marks=NIGHTLY)],
)  # fmt: skip
def test_a_program_gives_what_the_network_gives(tmp_path, delay, spikes, hybrid) -> None:
    snn = network(delay, spikes, hybrid)
    file = to_pt2(snn, tmp_path / "net.pt2")
    program = torch.export.load(file).module()
    for batch in (1, 2, 7, 100):
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(program(x), snn(x), rtol=1e-5, atol=1e-6)
    facts = next(name for name in zipfile.ZipFile(file).namelist() if name.endswith("speedysnn.json"))
    assert json.loads(zipfile.ZipFile(file).read(facts))["latency"] == snn.latency


def test_what_is_there_stays(tmp_path) -> None:
    snn, file = network(0, "binary", hybrid=False), tmp_path / "net.pt2"
    file.write_text("mine")
    with pytest.raises(ArtifactError, match="already"):
        to_pt2(snn, file)
    with pytest.raises(ArtifactError, match=r"ends in \.pt2"):
        to_pt2(snn, tmp_path / "net.onnx")
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


def test_the_command_and_what_a_killed_export_left_beside_the_file(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    speedysnn.save(network(0, "binary", hybrid=False), "net.snn")
    Path(".net.pt2.part-abc").mkdir()
    Path(".net.pt2.part-abc/net.pt2").write_bytes(b"half")
    assert main(["export", "net.snn", "--to", "pt2", "-o", "net.pt2", "--delay", "full"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt2", "net.snn"]
    assert main(["export", "net.snn", "-o", "net.pt2"]) == 2
    assert main(["export", "net.snn", "--to", "paper", "-o", "net2.pt2"]) == 2
    assert "--to: expected one of pt2" in capsys.readouterr().err
