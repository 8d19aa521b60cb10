"""Every operator is a row: analog equals the source, full look-ahead equals quantized, spikes converge to the source."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn import convert

IMAGE, VECTOR, SIGNAL, VOLUME = (3, 8, 8), (12,), (3, 16), (2, 5, 5, 5)


class Net(nn.Module):
    """A layer, the operator under test between two neurons, and a mean over what is left."""

    def __init__(self, shape: tuple[int, ...], function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(shape[0], *[1] * (len(shape) - 1)) + 0.5)
        self.op = nn.ModuleList(modules)
        self.function = function
        self.first = nn.Linear(shape[-1], shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.function(self, torch.relu(self.first(x)))).flatten(1)


def module(make: Callable[[], nn.Module]) -> tuple[Callable[..., Tensor], Callable[[], nn.Module]]:
    return (lambda net, x: net.op[0](x)), make


def norm(kind: type[nn.Module], features: int) -> nn.Module:
    layer = kind(features)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    nn.init.normal_(layer.weight, 1, 0.3)
    nn.init.normal_(layer.bias)
    return layer


def seq(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


MODULES = {
    "relu": (IMAGE, lambda: nn.ReLU()),
    "relu in place": (IMAGE, lambda: nn.ReLU(inplace=True)),
    "relu6": (IMAGE, lambda: nn.ReLU6()),
    "hardtanh": (IMAGE, lambda: nn.Hardtanh(0, 0.4)),
    "conv1d": (SIGNAL, lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1)),
    "conv2d": (IMAGE, lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3)),
    "conv2d dilated, same": (IMAGE, lambda: nn.Conv2d(3, 4, 3, padding="same", dilation=2, bias=False)),
    "conv2d reflect": (IMAGE, lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")),
    "conv3d": (VOLUME, lambda: nn.Conv3d(2, 3, 3)),
    "conv transpose": (IMAGE, lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1)),
    "linear": (VECTOR, lambda: nn.Linear(12, 5)),
    "conv, batch-norm": (IMAGE, lambda: seq(nn.Conv2d(3, 4, 3), norm(nn.BatchNorm2d, 4))),
    "conv without bias, batch-norm": (IMAGE, lambda: seq(nn.Conv2d(3, 4, 3, bias=False), norm(nn.BatchNorm2d, 4))),
    "linear, batch-norm": (VECTOR, lambda: seq(nn.Linear(12, 5), norm(nn.BatchNorm1d, 5))),
    "linear on a sequence, batch-norm": (SIGNAL, lambda: seq(nn.Linear(16, 3), norm(nn.BatchNorm1d, 3))),
    "transposed conv, batch-norm": (IMAGE, lambda: seq(nn.ConvTranspose2d(3, 4, 3), norm(nn.BatchNorm2d, 4))),
    "batch-norm, conv": (IMAGE, lambda: seq(norm(nn.BatchNorm2d, 3), nn.Conv2d(3, 4, 3, padding=1))),
    "avg pool": (IMAGE, lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    "adaptive avg pool": (IMAGE, lambda: nn.AdaptiveAvgPool2d((2, 3))),
    "max pool": (IMAGE, lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    "max pool 1d": (SIGNAL, lambda: nn.MaxPool1d(2)),
    "adaptive max pool": (IMAGE, lambda: nn.AdaptiveMaxPool2d(2)),
    "flatten": (IMAGE, lambda: nn.Flatten()),
    "unflatten": (VECTOR, lambda: nn.Unflatten(1, (3, 4))),
    "zero pad": (IMAGE, lambda: nn.ZeroPad2d((1, 2, 0, 1))),
    "constant pad": (IMAGE, lambda: nn.ConstantPad2d(1, 0.7)),
    "replication pad": (IMAGE, lambda: nn.ReplicationPad2d(1)),
    "dropout": (IMAGE, lambda: nn.Dropout(0.5)),
    "identity": (IMAGE, lambda: nn.Identity()),
    "upsample": (IMAGE, lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)),
    "pixel shuffle": (IMAGE, lambda: seq(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2))),
    "channel shuffle": (IMAGE, lambda: nn.ChannelShuffle(3)),
}

FUNCTIONS: dict[str, tuple[tuple[int, ...], Callable[..., Tensor]]] = {
    "F.relu": (IMAGE, lambda net, x: F.relu(x - 0.3)),
    "F.relu in place, input read again": (IMAGE, lambda net, x: _inplace(x - 0.3)),
    "x.relu()": (IMAGE, lambda net, x: (x - 0.3).relu()),
    "x.relu_()": (IMAGE, lambda net, x: (x - 0.3).relu_()),
    "clamp": (IMAGE, lambda net, x: torch.clamp(x - 0.1, 0, 0.5)),
    "x.clamp(min=0)": (IMAGE, lambda net, x: (x - 0.1).clamp(min=0)),
    "x.clamp_min(0)": (IMAGE, lambda net, x: (x - 0.1).clamp_min(0)),
    "F.relu6": (IMAGE, lambda net, x: F.relu6(x * 20)),
    "F.hardtanh": (IMAGE, lambda net, x: F.hardtanh(x, 0.0, 0.3)),
    "F.avg_pool2d": (IMAGE, lambda net, x: F.avg_pool2d(x, 2)),
    "F.adaptive_avg_pool2d": (IMAGE, lambda net, x: F.adaptive_avg_pool2d(x, 1)),
    "F.max_pool2d": (IMAGE, lambda net, x: F.max_pool2d(x, 2)),
    "F.adaptive_max_pool2d": (IMAGE, lambda net, x: F.adaptive_max_pool2d(x, 2)),
    "F.pad": (IMAGE, lambda net, x: F.pad(x, (1, 1, 2, 0), value=0.5)),
    "F.dropout": (IMAGE, lambda net, x: F.dropout(x, 0.5, net.training)),
    "F.interpolate": (IMAGE, lambda net, x: F.interpolate(x, scale_factor=2.0)),
    "F.linear": (IMAGE, lambda net, x: F.linear(x, net.first.weight, net.first.bias)),
    "view": (IMAGE, lambda net, x: x.view(x.size(0), -1)),
    "reshape": (IMAGE, lambda net, x: x.reshape(x.shape[0], x.shape[1] * 2, -1)),
    "torch.flatten": (IMAGE, lambda net, x: torch.flatten(x, 1, 2)),
    "mean": (IMAGE, lambda net, x: x.mean([2, 3])),
    "mean, kept": (IMAGE, lambda net, x: torch.mean(x, -1, keepdim=True)),
    "sum": (IMAGE, lambda net, x: x.sum(dim=1)),
    "permute": (IMAGE, lambda net, x: x.permute(0, 2, 3, 1)),
    "transpose": (IMAGE, lambda net, x: x.transpose(1, -1).contiguous()),
    "unsqueeze, squeeze": (IMAGE, lambda net, x: x.unsqueeze(2).squeeze(2)),
    "slice": (IMAGE, lambda net, x: x[:, :2, ::2, 1:]),
    "slice with an ellipsis": (IMAGE, lambda net, x: x[:, ..., 3]),
    "chunk": (IMAGE, lambda net, x: x.chunk(2, dim=2)[0] + torch.chunk(x, 2, dim=2)[1]),
    "split": (IMAGE, lambda net, x: x.split([3, 5], dim=3)[1]),
    "cat": (IMAGE, lambda net, x: torch.cat([x, x * 0.5], dim=1)),
    "stack": (IMAGE, lambda net, x: torch.stack([x, x + 1], dim=1)),
    "add": (IMAGE, lambda net, x: x + F.avg_pool2d(x, 3, 1, 1)),
    "+=": (IMAGE, lambda net, x: _iadd(x)),
    "sub": (IMAGE, lambda net, x: x - F.avg_pool2d(x, 3, 1, 1)),
    "constants": (IMAGE, lambda net, x: 1 - (2 * x + 0.25) / 3),
    "negation": (IMAGE, lambda net, x: 0.5 + -x),
    "own tensors": (IMAGE, lambda net, x: x * net.scale + net.scale),
    "one module twice": (IMAGE, lambda net, x: net.first(F.relu(net.first(x)))),
}


def _inplace(x: Tensor) -> Tensor:
    y = F.relu(x, inplace=True)
    return y + x


def _iadd(x: Tensor) -> Tensor:
    y = F.avg_pool2d(x, 3, 1, 1)
    y += x
    return y


ROWS = {
    **{name: (shape, lambda net, x: net.op[0](x), make) for name, (shape, make) in MODULES.items()},
    **{name: (shape, function, None) for name, (shape, function) in FUNCTIONS.items()},
}


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


@pytest.mark.parametrize("name", ROWS)
def test_operator(name: str) -> None:
    shape, function, make = ROWS[name]
    net = Net(shape, function, *([make()] if make else [])).eval()
    x = torch.randn(48, *shape)
    with torch.no_grad():
        expected = net(x.clone())
        snn = convert.to_spiking(net, x, timesteps=4)
        with snn.reading("analog"):
            assert relative(snn(x), expected) < 1e-5
        for spikes in ("binary", "ternary"):
            snn.set_spikes(spikes)
            snn.set_delay("full")
            with snn.reading("quantized"):
                twin = snn(x)
            assert torch.equal(snn(x), twin)
        snn.set_spikes("binary")
        snn.timesteps = 512
        snn.recalibrate()
        with snn.reading("quantized"):
            assert relative(snn(x), expected) < 0.02
        snn.set_delay(1)
        snn.timesteps = 128
        snn.recalibrate()
        assert relative(snn(x[:8]), expected[:8]) < 0.06


def test_batch_norm_is_folded_where_a_layer_precedes_it() -> None:
    net = seq(nn.Conv2d(3, 4, 3), norm(nn.BatchNorm2d, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5), norm(nn.BatchNorm1d, 5), nn.ReLU())
    x = torch.randn(16, 3, 8, 8)
    folded, kept = convert.to_spiking(net, x), convert.to_spiking(net, x, fold_bn=False)
    assert [node.op for node in folded.graph.nodes].count("batch_norm") == 0
    assert [node.op for node in kept.graph.nodes].count("batch_norm") == 2
    with torch.no_grad(), folded.reading("analog"), kept.reading("analog"):
        assert relative(folded(x), kept(x)) < 1e-5
