"""`export --to c` and `--to chip`, `inspect --profile`: what is printed, and the exit codes."""

import json

import pytest
import torch
from torch import nn

import speedysnn
from speedysnn import convert, integer
from speedysnn.cli import main


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A small network, saved, with a normalisation that convert kept."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    snn = convert.to_spiking(net, torch.rand(16, 3, 8, 8), timesteps=4, delay=1)
    snn.provenance["normalize"] = "0.5,0.4,0.3/0.2,0.3,0.25"
    speedysnn.save(snn, "net.snn")
    return tmp_path


def test_a_network_becomes_a_chip_and_a_chip_a_c_program(there, capfd) -> None:
    assert main(["export", "net.snn", "--to", "chip", "--weight-bits", "4", "--state-bits", "16", "-o", "net.chip"]) == 0
    assert "latency 5 steps" in capfd.readouterr().out
    chip = integer.load("net.chip")
    assert (chip.program.weight_bits, chip.program.state_bits) == (4, 16)
    snn = speedysnn.load("net.snn")
    same = speedysnn.to_integer(snn, 4, 16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(same(x), chip(x))
    assert main(["export", "net.chip", "--to", "c", "-o", "net_c"]) == 0
    assert main(["export", "net.snn", "--to", "c", "--weight-bits", "4", "--state-bits", "16", "-o", "again_c"]) == 0
    for name in ("net.c", "tables.h", "expected.txt"):
        assert (there / "net_c" / name).read_bytes() == (there / "again_c" / name).read_bytes()


def test_a_chip_has_no_nir_file(there, capfd) -> None:
    assert main(["export", "net.snn", "--to", "chip", "-o", "net.chip"]) == 0
    assert main(["export", "net.chip", "--to", "nir", "-o", "net.nir"]) == 2
    assert "takes the spiking network" in capfd.readouterr().err


def test_what_does_not_fit_a_platform(there, capfd) -> None:
    assert main(["inspect", "net.snn", "--profile", "speck"]) == 1
    said = capfd.readouterr().out
    assert "max-pooling" in said
    assert "look-ahead of 1 steps" in said
    assert main(["inspect", "net.snn", "--profile", "speck", "--json", "-"]) == 1
    found = json.loads(capfd.readouterr().out)["misfits"]
    assert {"layer", "what", "advice"} == set(found[0])
    assert main(["inspect", "net.snn", "--profile", "generic"]) == 0
    assert main(["inspect", "net.snn", "--profile", "loihi"]) == 2
    assert main(["export", "net.snn", "--to", "c", "--profile", "xylo", "-o", "x_c"]) == 2
    assert not (there / "x_c").exists()
