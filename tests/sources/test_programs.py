"""Whole networks out of .pt2 files: they convert as the network they were exported from, and nothing in them runs."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from speedysnn import convert
from speedysnn.errors import ConversionError, InputError, SourceError
from speedysnn.sources import load_model
from speedysnn.sources.exported import load_program
from tests.material.networks import Small, randomise

OLD = torch.__version__ < "2.9"
pytestmark = pytest.mark.skipif(OLD, reason="this torch writes the older .pt2 format, which is refused")


def exported(path: Path, model: nn.Module, x: torch.Tensor, *, batch: bool = True) -> Path:
    shapes = ({0: torch.export.Dim.AUTO},) if batch else None
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False), str(path))
    return path


def torchvision_network(name: str) -> nn.Module:
    return pytest.importorskip("torchvision").models.get_model(name, weights=None, num_classes=5)


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    ("name", "batch"),
    [("small", True), ("small", False), ("squeezenet1_1", True), ("resnet18", False),
     pytest.param("resnet18", True, marks=NIGHTLY), pytest.param("mobilenet_v2", True, marks=NIGHTLY),
     pytest.param("mobilenet_v2", False, marks=NIGHTLY), pytest.param("regnet_x_400mf", True, marks=NIGHTLY)],
)  # fmt: skip
def test_it_converts_as_the_network_it_came_from(tmp_path, name, batch) -> None:
    torch.manual_seed(0)
    model = randomise(Small() if name == "small" else torchvision_network(name))
    x = torch.randn(2, 3, *((16, 16) if name == "small" else (48, 48)))
    source = load_model(str(exported(tmp_path / "net.pt2", model, x, batch=batch)))
    snn = convert.to_spiking(source.model, x, timesteps=4)
    want = model(x).detach()
    torch.testing.assert_close(snn.read("analog", x), want, rtol=0, atol=1e-5 * float(want.abs().max()))
    assert source.sha256
    assert len(source.sha256) == 64
    assert ("no size in it is left open" in source.notes[0]) != batch


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, amid its decompositions
def test_a_decomposed_program(tmp_path) -> None:
    """Its norms and its pool also give what only a gradient needs; a linear layer is a matrix product with a sum."""
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 5), nn.Linear(5, 3, bias=False))
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4), *head)
    model, x = randomise(nn.Sequential(*layers)), torch.randn(2, 3, 8, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).run_decompositions()
    targets = {str(node.target) for node in program.graph.nodes}
    for name in ("_native_batch_norm_legit_no_training", "addmm", "_adaptive_avg_pool2d"):
        assert any(f".{name}." in target for target in targets), targets
    torch.export.save(program, str(tmp_path / "net.pt2"))
    network = load_program(tmp_path / "net.pt2")[0]
    snn = convert.to_spiking(network, x, timesteps=4, allow_hybrid=True)
    torch.testing.assert_close(snn.read("analog", x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.InstanceNorm2d(4)])
def test_a_hybrid_network(tmp_path, norm) -> None:
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), norm, nn.Flatten(), nn.Linear(64, 3))).eval()
    x = torch.randn(2, 3, 6, 6)
    network = load_program(exported(tmp_path / "net.pt2", model, x))[0]
    snn = convert.to_spiking(network, x, timesteps=4, allow_hybrid=True)
    torch.testing.assert_close(snn.read("analog", x), model(x), rtol=0, atol=1e-5)


def test_a_batch_of_one_is_refused_with_what_to_do(tmp_path) -> None:
    class View(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x).view(1, 48)

    source = load_model(str(exported(tmp_path / "net.pt2", View(), torch.randn(1, 3, 4, 4), batch=False)))
    with pytest.raises(ConversionError, match="dynamic_shapes"):
        convert.to_spiking(source.model, torch.randn(2, 3, 4, 4), timesteps=4)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.Dropout(0.5)])
def test_training_mode_is_refused(tmp_path, layer) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU()).train()
    file = exported(tmp_path / "net.pt2", model, torch.randn(2, 3, 6, 6))
    with pytest.raises(SourceError, match=r"exported in training mode .*; call \.eval\(\)"):
        load_program(file)


def rewritten(file: Path, change) -> Path:
    """The archive with one member changed: change(name, bytes) -> bytes, or None to leave it out."""
    other = file.with_name("other.pt2")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return other


def program(tmp_path: Path) -> Path:
    return exported(tmp_path / "net.pt2", nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4))


class Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_pickled_weight_runs_no_code(tmp_path) -> None:
    marker = tmp_path / "ran"

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("_weights_config.json"):
            config = json.loads(content)
            for entry in config["config"].values():
                entry["use_pickle"] = True
            return json.dumps(config).encode()
        return pickle.dumps(Trap(marker)) if "/data/weights/weight_" in name else content

    with pytest.raises(SourceError, match="is an object and no tensor"):
        load_program(rewritten(program(tmp_path), change))
    assert not marker.exists()


def graph_change(edit):
    def change(name: str, content: bytes) -> bytes:
        if "/models/" not in name or not name.endswith(".json"):
            return content
        data = json.loads(content)
        edit(data)
        return json.dumps(data).encode()

    return change


def calls(data) -> list:
    return data["graph_module"]["graph"]["nodes"]


@pytest.mark.parametrize(
    "target",
    ["os.system", "builtins.eval", "torch.ops.aten.from_file.default", "torch.ops.mine.op.default", "torch.load"],
)
def test_only_aten_is_called(tmp_path, target) -> None:
    def edit(data) -> None:
        calls(data)[0]["target"] = target

    with pytest.raises(SourceError, match="expected ATen operators"):
        load_program(rewritten(program(tmp_path), graph_change(edit)))


def test_guards_are_not_run(tmp_path) -> None:
    marker = tmp_path / "ran"

    def edit(data) -> None:
        data["guards_code"] = [f"__import__('pathlib').Path({str(marker)!r}).touch()"]

    load_program(rewritten(program(tmp_path), graph_change(edit)))
    assert not marker.exists()


def test_names_are_no_code(tmp_path) -> None:
    def edit(data) -> None:
        text = json.dumps(data).replace('"relu"', '"relu = __import__(\'os\')"')
        data.clear()
        data.update(json.loads(text))

    marker = rewritten(program(tmp_path), graph_change(edit))
    try:
        module = load_program(marker)[0]
    except SourceError:
        return
    assert "__import__" not in module.code


def test_a_size_that_lies(tmp_path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("_weights_config.json"):
            return content
        return content.replace(b'"as_int": 4', b'"as_int": 4000000000000').replace(
            b'"as_int":4', b'"as_int":4000000000000'
        )

    with pytest.raises(SourceError):
        load_program(rewritten(program(tmp_path), change))


def test_damaged_and_foreign_files(tmp_path) -> None:
    good = program(tmp_path)
    half = tmp_path / "half.pt2"
    half.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    page = tmp_path / "page.pt2"
    page.write_text("<!DOCTYPE html><html>404</html>")
    weights = tmp_path / "weights.pt2"
    torch.save({"weight": torch.ones(2)}, weights)
    empty = rewritten(good, lambda name, content: None if "/data/weights/weight_0" in name else content)
    lost = shutil.copy(empty, tmp_path / "lost.pt2")
    for file, words in (
        (half, "cut short"), (page, "web page"), (weights, "weights alone"), (Path(lost), "not as expected|no exported"),
        (tmp_path / "none.pt2", "does not exist"), (tmp_path, "is a folder"),
    ):  # fmt: skip
        with pytest.raises(SourceError, match=words):
            load_program(file)


def test_a_checkpoint_beside_a_whole_network_is_refused(tmp_path) -> None:
    file = program(tmp_path)
    with pytest.raises(InputError, match="leave out checkpoint"):
        load_model(str(file), checkpoint=tmp_path / "weights.pth")
    with pytest.raises(InputError, match="leave out num_classes"):
        load_model(str(file), num_classes=10)
    with pytest.raises(SourceError, match="whole network"):
        load_model("torchvision:resnet18", checkpoint=file)
