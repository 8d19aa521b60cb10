"""Networks that torch.fx cannot read, and shapes of networks that peers refuse."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import speedysnn
from speedysnn import convert
from speedysnn.errors import ConversionError


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


class Body(nn.Module):
    """A small convolutional part that converts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class Star(Body):
    """Takes *args."""

    def forward(self, *args: Tensor) -> Tensor:
        return super().forward(args[0])


class Whole(Body):
    """Reads its shape as whole numbers."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        return self.fc(F.avg_pool2d(y, int(y.shape[2])).reshape(int(y.shape[0]), 4))


class Checked(Body):
    """Decides on a shape."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("expected three channels")
        for _ in range(x.shape[2] // 4):
            x = F.relu(x)
        return super().forward(x)


@pytest.mark.parametrize("kind", [Star, Whole, Checked])
def test_what_fx_cannot_trace_is_exported(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = kind().eval(), torch.randn(6, 3, 8, 8)
    report = convert.inspect(net, x)
    assert report.tracer == "export"
    assert report.treatment == "spiking"
    assert any(row.path == "conv" and row.source.startswith("test_tracing.py:") for row in report.rows)
    assert report.never_called == ()
    snn = convert.to_spiking(net, x, timesteps=4)
    with torch.no_grad(), snn.reading("analog"):
        assert relative(snn(x[:5]), net(x[:5])) < 1e-5


class Deciding(nn.Module):
    """A part that decides on the data beside one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.plain = nn.Sequential(nn.Linear(5, 5), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if y.sum() > 0:
            y = -y
        return self.plain(y)


def test_when_both_fail_the_message_names_the_line_and_what_converts() -> None:
    with pytest.raises(ConversionError) as caught:
        convert.to_spiking(Deciding(), torch.randn(4, 3, 8, 8))
    said = str(caught.value)
    assert "test_tracing.py:" in said
    assert "convert a module inside that can be: body" in said
    assert all(not m._forward_pre_hooks for m in Deciding().modules())


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up, self.join = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        skip = F.relu(self.down(x))
        deep = F.relu(self.deep(skip))
        joined = F.relu(self.join(torch.cat([F.relu(self.up(deep)), skip], 1)))
        wide = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=False)
        return {"mask": self.head(torch.cat([joined, wide], 1)), "deep": deep}


def test_u_net_with_two_named_outputs() -> None:
    torch.manual_seed(0)
    net, x = UNet().eval(), torch.randn(6, 3, 8, 8)
    snn = convert.to_spiking(net, x, timesteps=64)
    with torch.no_grad():
        ours, theirs = snn(x), net(x)
    assert set(ours) == {"mask", "deep"}
    assert relative(ours["mask"], theirs["mask"]) < 0.1


class Audio(nn.Module):
    """Two inputs, 1-d convolutions, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv1d(2, 4, 5), nn.Conv1d(2, 4, 5)
        self.head, self.side = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        y = F.max_pool1d(F.relu(self.left(a)) + F.relu(self.right(b)), 2).mean(2)
        return self.head(y), self.side(y)


def test_two_inputs_and_two_outputs_in_one_dimension() -> None:
    torch.manual_seed(0)
    net, a, b = Audio().eval(), torch.randn(6, 2, 32), torch.randn(6, 2, 32)
    snn = convert.to_spiking(net, [(a, b)], timesteps=64)
    with torch.no_grad():
        for ours, theirs in zip(snn(a, b), net(a, b), strict=True):
            assert relative(ours, theirs) < 0.1


def test_a_detection_backbone_converts_as_a_submodule() -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    net = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).backbone.eval()
    report = convert.inspect(net, torch.randn(2, 3, 64, 64), allow_hybrid=True)
    assert report.supported, report.complaint()


TIMM = ("resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_lite0", "mixer_s32_224")


@pytest.mark.parametrize("name", TIMM)
def test_timm_networks(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sized = {"img_size": 64} if "224" in name else {}
    net = timm.create_model(name, pretrained=False, num_classes=5, **sized).eval()
    x = torch.randn(2, 3, 64, 64)
    snn = convert.to_spiking(net, x, timesteps=2, allow_hybrid=True, granularity="layer")
    assert snn.provenance["analog_error"] < 1e-5


def test_an_exported_program_converts(tmp_path) -> None:
    torch.manual_seed(0)
    net, x = Body().eval(), torch.randn(6, 3, 8, 8)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    snn = convert.to_spiking(program.module(), x, timesteps=4)
    speedysnn.save(snn, tmp_path / "net.snn")
    again = speedysnn.load(tmp_path / "net.snn")
    with torch.no_grad(), again.reading("analog"):
        assert relative(again(x), net(x)) < 1e-5


def test_lazy_modules_that_never_ran_are_refused_by_name() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    for refuse in (lambda: convert.inspect(net, torch.rand(2, 3)), lambda: convert.to_spiking(net, torch.rand(8, 3))):
        with pytest.raises(ConversionError, match=r"0\.weight, 0\.bias hold no values yet.*load a checkpoint"):
            refuse()
