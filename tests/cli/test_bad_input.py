"""Files and data that must end in one clear line and in no network."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from speedysnn import convert
from speedysnn.cli import main
from speedysnn.errors import ConversionError, DataError, SpeedySNNError

NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
"""


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path("boom").write_text, ("boom",))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def truncated(file: Path) -> None:
    torch.save(net().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-400])


def not_a_number(file: Path) -> None:
    state = net().state_dict()
    state["3.weight"][0, 0] = float("nan")
    torch.save(state, file)


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "runs code": (lambda file: torch.save({"state_dict": net().state_dict(), "x": Bomb()}, file), "would run code"),
    "truncated": (truncated, "cut short or damaged"),
    "a directory": (lambda file: file.mkdir(), "is a folder, expected a file"),
    "a web page": (lambda file: file.write_text("<!DOCTYPE html><html></html>"), "is a web page"),
    "another network": (lambda file: torch.save(nn.Linear(2, 2).state_dict(), file), "No name is in both"),
    "not a number": (not_a_number, "holds NaN or infinity in 3.weight"),
    "empty": (lambda file: file.write_bytes(b""), "is empty"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_bad_checkpoint(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = CHECKPOINTS[name]
    write(Path("w.pth"))
    Path("net.py").write_text(NET)
    np.savez("images.npz", x=np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32), y=np.zeros(8, np.int64))
    code = main(["convert", "net.py:make", "-c", "w.pth", "-d", "npz:images.npz", "-o", "net.snn"])
    said = capsys.readouterr().err
    assert code == 2
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert not Path("net.snn").exists()
    assert not Path("boom").exists()


def zero() -> nn.Sequential:
    dead = net()
    nn.init.zeros_(dead[0].weight)
    nn.init.constant_(dead[0].bias, -1.0)
    return dead


DATA = {
    "empty loader": (net, [], DataError, "no batch in it"),
    "empty batch": (net, [torch.zeros(0, 1, 8, 8)], SpeedySNNError, "at least one image|no image|empty"),
    "wrong shape": (net, [torch.rand(4, 3, 8, 8)], SpeedySNNError, r"\(4, 3, 8, 8\)"),
    "wrong shape later": (net, [torch.rand(4, 1, 8, 8), torch.rand(4, 1, 9, 9)], DataError, r"\(4, 1, 9, 9\)"),
    "not a number": (net, [torch.full((4, 1, 8, 8), float("nan"))], DataError, "NaN"),
    "no activation": (zero, [torch.rand(4, 1, 8, 8)], ConversionError, "layer '1': no activation was positive"),
}


@pytest.mark.parametrize("name", DATA)
def test_bad_calibration_data(name: str) -> None:
    make, batches, error, message = DATA[name]
    with pytest.raises(error, match=message):
        convert.to_spiking(make(), batches)


def test_weights_that_are_not_numbers() -> None:
    broken = net()
    nn.init.constant_(broken[3].weight, float("nan"))
    with pytest.raises(ConversionError, match="NaN or infinity"):
        convert.to_spiking(broken, torch.rand(4, 1, 8, 8))
