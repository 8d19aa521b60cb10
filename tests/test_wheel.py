"""The wheel, built from a copy of the sources: every module and data file of every room, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

import speedysnn
from speedysnn import convert

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {name: ROOT / folder for name, folder in SETTINGS["tool"]["setuptools"]["package-dir"].items()}
ROOMS = tuple(name.partition(".")[2] for name in FOLDERS if "." in name)


def files_on_disk() -> set[str]:
    """Every file of the packages, named as in the wheel."""
    found = set()
    for name, folder in FOLDERS.items():
        for path in folder.rglob("*"):
            inner = path.relative_to(folder)
            linked = name == "speedysnn" and inner.parts[0] in ROOMS
            if path.is_file() and not linked and "__pycache__" not in inner.parts:
                found.add("/".join((*name.split("."), *inner.parts)))
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built where no earlier build left anything: setuptools would ship modules that are long gone."""
    if tuple(map(int, version("setuptools").split(".")[:1])) < (77,):
        pytest.skip("setuptools is older than the licence field of pyproject.toml")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    for folder in FOLDERS.values():
        ignored = shutil.ignore_patterns("__pycache__", *(ROOMS if folder.parent.name == "src" else ()))
        shutil.copytree(folder, source / folder.relative_to(ROOT), ignore=ignored)
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-W", "ignore", "-c", code, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return zipfile.ZipFile(out / done.stdout.split()[-1])


def test_every_module_and_data_file_is_in_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == files_on_disk()


def test_it_says_what_pyproject_says(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    meta = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    project = SETTINGS["project"]
    assert meta["Name"] == project["name"]
    assert meta["Version"] == project["version"] == speedysnn.__version__
    assert meta["Requires-Python"] == project["requires-python"]
    assert meta["License-Expression"] == project["license"]
    needed = {line.partition(";")[0].strip() for line in meta.get_all("Requires-Dist") if "extra ==" not in line}
    assert needed == set(project["dependencies"])
    assert "speedysnn = speedysnn.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert any(name.startswith(f"{info}/licenses/LICENSE") for name in wheel.namelist())


CODE = """
import json, runpy, sys
sys.path.insert(0, sys.argv[1])
import torch
import speedysnn, speedysnn.finetune, speedysnn.cli
from speedysnn import analysis, convert, data
from speedysnn.assets.digits import load_digits_net

images = data.load("digits", "train", limit=16)
snn = convert.to_spiking(load_digits_net("max"), images, timesteps=4)
print(speedysnn.__file__, analysis.evaluate(snn, images).images)
print([name for name in ("convert", "analysis", "finetune") if name in sys.modules])
print(json.dumps(speedysnn.load("n.snn")(torch.ones(1, 1, 8, 8)).tolist()))
sys.argv[1:] = ["evaluate", "none.snn", "-d", "digits"]
runpy.run_module("speedysnn", run_name="__main__", alter_sys=True)
"""


def test_a_new_process_runs_from_its_own_files_alone(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked elsewhere, with the checkout out of reach, in one process, because its imports take longer than the rest:
    the bundled network and its data, each room once, a network saved before, and the command as a program."""
    wheel.extractall(tmp_path)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3), nn.ReLU6())
    snn = convert.to_spiking(net, torch.randn(16, 1, 8, 8), timesteps=3, spikes="ternary", delay=1)
    speedysnn.save(snn, tmp_path / "n.snn")
    # the reference: kernels at a new place would be compiled again
    environment = {**os.environ, "SPEEDYSNN_KERNEL": "reference", "SPEEDYSNN_EVENTS": "never"}
    done = subprocess.run([sys.executable, "-I", "-c", CODE, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True,
                          check=False, env=environment)  # fmt: skip
    assert done.returncode == 2, done.stderr[-2000:]
    place, bare, answer = done.stdout.splitlines()  # and nothing by the command
    path, count = place.split()
    assert (Path(path).parent.parent, count) == (tmp_path, "16")
    assert bare == "[]", "a bare import makes a second copy of every registry"
    torch.testing.assert_close(torch.tensor(json.loads(answer)), snn(torch.ones(1, 1, 8, 8)).detach())
    assert done.stderr.startswith("error: none.snn")
    assert len(done.stderr.splitlines()) == 1
