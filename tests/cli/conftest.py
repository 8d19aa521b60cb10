"""A folder with everything that commands are given, whole and broken, made once a worker."""

import io
import json
import pickle
import shutil
import struct
import sys
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from speedysnn import artifact
from speedysnn.assets.digits import load_digits_net
from speedysnn.convert import to_spiking
from speedysnn.data import load

torch.set_num_threads(1)

USER = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

def wavy():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.SiLU(), nn.ReLU(), nn.Linear(16, 10))

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        x = self.relu(x.flatten(1, 2))
        return self.attention(x, x, x, need_weights=False)[0]

def attentive():
    return Attention()

def broken():
    raise KeyError("the table of widths")

def images(split):
    return torch.zeros(4, 3, 8, 8), torch.zeros(4).long()

def unlabelled(split):
    return torch.rand(40, 1, 8, 8)

number = 3
"""


class Code:
    def __reduce__(self):
        return (print, ("code ran",))


def _damage(folder):
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 255
    (folder / "weights.safetensors").write_bytes(weights)


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """Nets, checkpoints and data; tests work on it in place where nothing may be written, else on a copy."""
    return make_material(tmp_path_factory.mktemp("material"))


def make_material(root):
    """Fill a folder with them."""
    torch.manual_seed(0)
    (root / "user.py").write_text(USER)
    (root / "bad.py").write_text("import nothing_of_the_kind\n")
    (root / "syntax.py").write_text("def f(:\n")
    good = load_digits_net("avg").state_dict()
    torch.save(good, root / "good.pth")
    raw = (root / "good.pth").read_bytes()
    (root / "cut.pth").write_bytes(raw[: len(raw) // 2])
    (root / "page.pth").write_text("<!DOCTYPE html><html><body>Please log in</body></html>")
    (root / "code.pth").write_bytes(pickle.dumps({"state_dict": Code()}))
    torch.save({"first.weight": torch.zeros(3, 3)}, root / "other.pth")
    (root / "empty.pth").write_bytes(b"")
    np.savez(root / "keys.npz", pictures=np.zeros((4, 8, 8), np.float32))
    np.savez(root / "colour.npz", x=np.zeros((40, 3, 8, 8), np.float32), y=np.arange(40) % 4)
    np.savez(root / "unlabelled.npz", x=np.random.default_rng(0).random((40, 1, 8, 8), np.float32))
    np.savez(root / "classes.npz", x=np.zeros((40, 1, 8, 8), np.float32), y=np.arange(40))
    (root / "cut.npz").write_bytes((root / "keys.npz").read_bytes()[:100])
    snn = to_spiking(load_digits_net("avg"), load("digits", "train", limit=64), timesteps=4)
    artifact.save(snn, root / "net.snn")
    artifact.save(to_spiking(load_digits_net("max"), load("digits", "train", limit=64)), root / "max.snn")
    small = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
    artifact.save(to_spiking(small, torch.rand(8, 1, 8, 8)), root / "small.snn")
    shutil.copytree(root / "net.snn", root / "damaged.snn")
    _damage(root / "damaged.snn")
    shutil.copytree(root / "net.snn", root / "incomplete.snn")
    (root / "incomplete.snn" / "network.json").unlink()
    (root / "file.snn").write_text("no folder")
    (root / "folder").mkdir()
    (root / "folder" / "mine.txt").write_text("mine")
    (root / "old").mkdir()
    for name in ("noise.json", "layers.csv"):
        (root / "old" / name).write_text("an earlier report")
    (root / "run").mkdir()
    (root / "run" / "run.safetensors").write_text("an earlier run")
    _lies(root)
    return root


def _lies(root):
    """Files whose claims about sizes are not so."""
    shutil.copytree(root / "small.snn", root / "unfit.snn")
    document = json.loads((root / "unfit.snn" / "network.json").read_text())
    document["input_shapes"] = [[1, 9, 9]]
    (root / "unfit.snn" / "network.json").write_text(json.dumps(document))
    header = repr({"descr": "|u1", "fortran_order": False, "shape": (10**12, 8, 8)}).encode()
    with zipfile.ZipFile(root / "lying.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
    torch.save({"weight": torch.zeros(1).expand(10**12)}, root / "lying.pth")
    with zipfile.ZipFile(root / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data/0", bytes(2**25))
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "png")
    (root / "bomb" / "0").mkdir(parents=True)
    raw = picture.getvalue()
    chunk = raw[12:16] + struct.pack(">II", 10**5, 10**5) + raw[24:29]
    (root / "bomb" / "0" / "a.png").write_bytes(raw[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + raw[33:])


@pytest.fixture
def here(material, monkeypatch):
    """The material as the present folder; no test may change it."""
    monkeypatch.chdir(material)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return material


@pytest.fixture
def there(material, tmp_path, monkeypatch):
    """A copy of the material's networks and user code as the present folder, to write into."""
    for name in ("net.snn", "max.snn"):
        shutil.copytree(material / name, tmp_path / name)
    for name in ("user.py", "good.pth", "unlabelled.npz"):
        shutil.copy(material / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


@pytest.fixture
def printed():
    """A function that gives what rich prints in a table of some width."""
    from speedysnn.cli import output as console

    def at(width, *arguments, **options):
        before, console.out = console.out, console.Console(file=io.StringIO(), width=width, highlight=False)
        try:
            console.table(*arguments, **options)
            return console.out.file.getvalue()
        finally:
            console.out = before

    return at
