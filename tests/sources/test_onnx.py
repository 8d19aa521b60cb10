"""Networks out of ONNX files: they convert as the network they were exported from."""

import logging
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from speedysnn import convert
from speedysnn.errors import SourceError
from speedysnn.sources import load_model
from speedysnn.sources.onnx_reader import load_onnx, with_shapes
from tests.material.networks import Small, randomise

onnx = pytest.importorskip("onnx")


def exported(path: Path, model: nn.Module, x: torch.Tensor, *, batch: bool = True, newest: bool = False) -> Path:
    """By either of PyTorch's exporters, with the batch left open or fixed to one."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if newest:
                pytest.importorskip("onnxscript")
                if torch.__version__ < "2.7":
                    pytest.skip("the newest exporter of torch 2.6 fails on batch-norm with onnxscript of today")
                shapes = ({0: torch.export.Dim.DYNAMIC},) if batch else None
                torch.onnx.export(model, (x if batch else x[:1],), str(path), dynamo=True, dynamic_shapes=shapes,
                                  verbose=False)  # fmt: skip
            else:
                axes = {"x": {0: "n"}} if batch else None
                torch.onnx.export(model, (x[:1],), str(path), dynamo=False, input_names=["x"], dynamic_axes=axes,
                                  opset_version=17)  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return path


def networks(name: str) -> tuple[nn.Module, torch.Tensor]:
    if name == "small":
        return randomise(Small()), torch.randn(2, 3, 16, 16)
    x = torch.randn(2, 3, 64, 64)
    if name == "fires":  # modules in modules in a module
        fire = pytest.importorskip("torchvision").models.squeezenet.Fire
        parts = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(fire(4, 2, 3, 3), fire(6, 2, 4, 4)))
        return randomise(parts), x
    return randomise(pytest.importorskip("torchvision").models.get_model(name, weights=None, num_classes=5)), x


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    ("name", "newest", "batch"),
    [("small", False, True), ("small", True, True), ("small", False, False), ("small", True, False),
     ("squeezenet1_1", False, True), pytest.param("shufflenet_v2_x0_5", False, False, marks=NIGHTLY),
     pytest.param("resnet18", True, True, marks=NIGHTLY), pytest.param("resnet18", False, False, marks=NIGHTLY),
     pytest.param("mobilenet_v2", False, True, marks=NIGHTLY), pytest.param("shufflenet_v2_x0_5", False, True, marks=NIGHTLY),
     pytest.param("regnet_x_400mf", True, True, marks=NIGHTLY), pytest.param("regnet_x_400mf", True, False, marks=NIGHTLY)],
)  # fmt: skip
def test_it_converts_as_the_network_it_came_from(tmp_path, name, newest, batch) -> None:
    model, x = networks(name)
    source = load_model(str(exported(tmp_path / "net.onnx", model, x, batch=batch, newest=newest)))
    snn = convert.to_spiking(source.model, x, timesteps=4)
    want = model(x).detach()
    torch.testing.assert_close(snn.read("analog", x), want, rtol=0, atol=1e-5 * float(want.abs().max()))
    assert "opset" in source.notes[0]


@pytest.mark.parametrize("name", ["fires", pytest.param("squeezenet1_1", marks=NIGHTLY)])
def test_layers_keep_their_names(tmp_path, name) -> None:
    model, x = networks(name)
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    for newest in (False, True):
        network = load_onnx(exported(tmp_path / "net.onnx", model, x, newest=newest))[0]
        names = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
        assert len(names) == len(convolutions)
        # The newest exporter names a convolution after the batch-norm it folds into it.
        assert names <= set(dict(model.named_modules()))
        assert newest or names == convolutions


LAYERS = [
    nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1, bias=False), nn.LeakyReLU(0.2)),
    nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), nn.ReLU6()),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.AvgPool2d(3, 2, 1)),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.ELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Hardswish(), nn.ReLU()),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.GELU(), nn.ReLU()),
    nn.Sequential(nn.ZeroPad2d((1, 0, 2, 0)), nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.ReLU()),
    nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3), nn.Softplus(), nn.ReLU()),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 1)),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                  nn.ReLU()),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardsigmoid(), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 3)),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.LocalResponseNorm(3), nn.Softmax(1)),
]


@pytest.mark.parametrize("layer", range(len(LAYERS)))
@pytest.mark.parametrize("newest", [False, pytest.param(True, marks=NIGHTLY)])
def test_every_layer_means_what_it_meant(tmp_path, layer, newest) -> None:
    torch.manual_seed(layer)
    model, x = LAYERS[layer].eval(), torch.randn(2, 3, 8, 8)
    if any(isinstance(module, nn.LocalResponseNorm) for module in model) and not newest:
        pytest.skip("the older exporter writes a branch on the shape")
    network = load_onnx(exported(tmp_path / "net.onnx", model, x, newest=newest))[0]
    torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5)
    snn = convert.to_spiking(network, x, timesteps=2, allow_hybrid=True)
    torch.testing.assert_close(snn.read("analog", x), model(x).detach(), rtol=1e-4, atol=2e-5)


def written(path: Path, op: str, **attributes) -> Path:
    """A file of one operator on a (2, 4) input."""
    helper = onnx.helper
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], name="it", **attributes)], "g",
        [value("x", onnx.TensorProto.FLOAT, ["n", 4])], [value("y", onnx.TensorProto.FLOAT, ["n", 4])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    return path


def test_unknown_operators_are_listed(tmp_path) -> None:
    with pytest.raises(SourceError, match="not read from ONNX: Hardmax"):
        load_onnx(written(tmp_path / "net.onnx", "Hardmax"))
    with pytest.raises(SourceError, match=r"Flatten \(it\): axis 0 joins the batch"):
        load_onnx(written(tmp_path / "net.onnx", "Flatten", axis=0))


def test_a_fixed_batch_that_cannot_be_opened_is_refused(tmp_path) -> None:
    class Mixes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x).sum(0, keepdim=True)

    with pytest.raises(SourceError, match="a batch of 1 alone"):
        load_onnx(exported(tmp_path / "net.onnx", Mixes(), torch.randn(1, 4), batch=False))


def windowed(path: Path, dilation: int, *, channels: int = 1, ways: int = 1) -> Path:
    """A file that pools, then slices, `ways` times over; onnx itself ends the process where nothing is left to slice."""
    helper, value = onnx.helper, onnx.helper.make_tensor_value_info
    nodes, at = [], "x"
    for i in range(ways):
        nodes.append(helper.make_node("MaxPool", [at], [f"p{i}"], kernel_shape=[2], dilations=[dilation if i == ways - 1 else 1]))
        nodes.append(helper.make_node("Slice", [f"p{i}", "start", "end"], [f"y{i}"]))
        at = f"y{i}"
    numbers = [helper.make_tensor(name, onnx.TensorProto.INT64, [3], [n] * 3) for name, n in (("start", 0), ("end", 9))]
    graph = helper.make_graph(nodes, "g", [value("x", onnx.TensorProto.FLOAT, [1, channels, 12])],
                              [value(at, onnx.TensorProto.FLOAT, ["n", "c", "w"])], numbers)  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("ways", [1, 2, 3])
def test_windows_larger_than_what_they_slide_over_are_refused(tmp_path, ways: int) -> None:
    for dilation in (50, 2**40):
        with pytest.raises(SourceError, match=rf"'p{ways - 1}' has the sizes \[1, 1, -\d+\]: a window is larger"):
            load_onnx(windowed(tmp_path / "net.onnx", dilation, ways=ways))


def test_shapes_are_those_of_the_whole_graph_inferred_at_once(tmp_path) -> None:
    model, x = networks("small")
    found = onnx.load(str(exported(tmp_path / "net.onnx", model, x)))
    want = onnx.shape_inference.infer_shapes(found, data_prop=True)
    assert any(node.op_type == "Slice" for node in found.graph.node)
    ours = with_shapes(found)
    for field in ("value_info", "output"):
        known = {entry.name: entry.type for entry in getattr(want.graph, field)}
        assert known
        assert {entry.name: entry.type for entry in getattr(ours.graph, field)} == known
    assert ours.graph.initializer == found.graph.initializer
    assert [node.op_type for node in ours.graph.node] == [node.op_type for node in want.graph.node]


def test_no_memory_is_taken_for_an_image_that_a_file_only_claims(tmp_path) -> None:
    with pytest.raises(SourceError, match=r"\[\[1, 2000000000, 12\]\], too large to try more; export it with dynamic_axes"):
        load_onnx(windowed(tmp_path / "net.onnx", 1, channels=2 * 10**9))


def test_external_data_outside_the_folder_is_not_read(tmp_path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 64)
    inside = tmp_path / "inside"
    inside.mkdir()
    file = exported(inside / "net.onnx", nn.Linear(4, 4).eval(), torch.randn(2, 4))
    model = onnx.load(str(file))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    file.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="cut short, damaged, or no ONNX file"):
        load_onnx(file)


def test_damaged_files(tmp_path) -> None:
    good = exported(tmp_path / "net.onnx", nn.Linear(4, 4).eval(), torch.randn(2, 4))
    content = good.read_bytes()
    for name, bad in (("half", content[: len(content) // 2]), ("noise", bytes(range(256)) * 4)):
        file = tmp_path / f"{name}.onnx"
        file.write_bytes(bad)
        with pytest.raises(SourceError, match="ONNX file"):
            load_onnx(file)
    page = tmp_path / "page.onnx"
    page.write_text("<html>not found</html>")
    with pytest.raises(SourceError, match="web page"):
        load_onnx(page)


def test_a_header_that_lies_about_its_size(tmp_path) -> None:
    file = exported(tmp_path / "net.onnx", nn.Linear(4, 4).eval(), torch.randn(2, 4))
    model = onnx.load(str(file))
    model.graph.initializer[0].dims[0] = 2**40
    file.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError):
        load_onnx(file)


def test_without_the_package(tmp_path, monkeypatch) -> None:
    file = exported(tmp_path / "net.onnx", nn.Linear(4, 4).eval(), torch.randn(2, 4))
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(SourceError, match=r'pip install "speedysnn\[onnx\]"'):
        load_onnx(file)
