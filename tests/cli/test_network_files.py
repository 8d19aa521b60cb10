"""Whole networks and quantization-trained ones through the command line."""

import json
import textwrap

import pytest
import torch
from torch import nn

import speedysnn
from speedysnn.cli import main
from tests.sources.test_programs import OLD


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10),
    ).eval()  # fmt: skip


@pytest.mark.skipif(OLD, reason="torch.export writes the readable layout from 2.9 on")
def test_an_exported_program_is_inspected_converted_and_analyzed(here, capsys) -> None:
    program = torch.export.export(network(), (torch.randn(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, "net.pt2")
    assert main(["inspect", "net.pt2", "-d", "digits"]) == 0
    assert "conv2d" in capsys.readouterr().out
    assert main(["convert", "net.pt2", "-d", "digits", "-T", "4", "-o", "net.snn", "--limit", "64"]) == 0
    assert "exported program" in capsys.readouterr().err
    facts = speedysnn.load("net.snn").provenance
    assert facts["model"] == "net.pt2"
    assert len(facts["checkpoint_sha256"]) == 64
    assert main(["analyze", "net.snn", "-d", "digits", "-o", "report", "--limit", "32"]) == 0


def test_a_checkpoint_beside_it_is_one_clear_line(here, capsys) -> None:
    program = torch.export.export(network(), (torch.randn(2, 1, 8, 8),))
    torch.export.save(program, "net.pt2")
    assert main(["convert", "net.pt2", "-c", "weights.pth", "-d", "digits", "-o", "net.snn"]) == 2
    assert "leave out checkpoint weights.pth" in capsys.readouterr().err


QUANTIZED = """
    import torch
    from torch import nn

    class QCFS(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.t = nn.Parameter(torch.tensor([2.0])), 4

        def forward(self, x):
            return torch.clamp(torch.floor(x / self.up * self.t + 0.5) / self.t, 0, 1) * self.up

    def net():
        return nn.Sequential(nn.Conv2d(1, 4, 3), QCFS(), nn.Flatten(), nn.Linear(144, 10))

    def prepared():
        from torch.ao.quantization import default_fake_quant
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), default_fake_quant(), nn.Flatten(), nn.Linear(144, 10))
"""


def test_a_learned_clip_of_a_checkpoint_becomes_the_threshold(here) -> None:
    (here / "nets.py").write_text(textwrap.dedent(QUANTIZED))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Identity(), nn.Flatten(), nn.Linear(144, 10))
    torch.save({**model.state_dict(), "1.up": torch.tensor([0.625])}, "weights.pth")
    command = ["convert", "nets.py:net", "-c", "weights.pth", "-d", "digits", "-T", "4", "-o", "net.snn", "--limit", "64"]
    assert main(command) == 0
    (theta,) = [neuron.threshold for neuron in speedysnn.load("net.snn").neurons.values()]
    torch.testing.assert_close(theta.detach(), torch.full_like(theta, 0.625))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_fake_quantizers_are_refused_with_what_to_do(here, capsys) -> None:
    (here / "nets.py").write_text(textwrap.dedent(QUANTIZED))
    assert main(["inspect", "nets.py:prepared", "-d", "digits", "--json", "report.json"]) == 2
    said = capsys.readouterr().err
    assert "2 (FakeQuantize)" in said
    assert "build the network without prepare_qat" in said
    assert not (here / "report.json").exists() or json.loads((here / "report.json").read_text())
