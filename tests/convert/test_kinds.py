"""Kinds of calls that were once bent or lost, each as a table whose right values come from torch itself."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import speedysnn
from speedysnn import convert
from speedysnn.convert import ops
from speedysnn.convert.calibrate import CalibrationWarning
from speedysnn.convert.handler_api import Builder
from speedysnn.errors import ConversionError, InputError
from speedysnn.neurons.layer import IFNeuron


class Between(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Linear(8, 16), function, nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


LIMITS = (
    (-1.0, 1.0), (0.0, 1.0), (-0.2, 0.4), (-0.4, 0.2), (-0.1, 2.0), (None, 0.5), (-0.3, None), (-1e38, 0.3),
    (-math.inf, 0.4), (-0.2, math.inf), (0.0, None),
)  # fmt: skip
CLAMPS: dict[str, Callable[[float | None, float | None], Callable[[Tensor], Tensor]]] = {
    "x.clamp": lambda low, high: lambda x: x.clamp(low, high),
    "torch.clip": lambda low, high: lambda x: torch.clip(x, max=high, min=low),
    "one side at a time": lambda low, high: lambda x: _sides(x, low, high),
    "F.hardtanh": lambda low, high: lambda x: F.hardtanh(x, -1e38 if low is None else low, 1e38 if high is None else high),
    "nn.Hardtanh": lambda low, high: nn.Hardtanh(-math.inf if low is None else low, math.inf if high is None else high),
    "as_neuron": lambda low, high: Own(low, high),
}  # fmt: skip


def _sides(x: Tensor, low: float | None, high: float | None) -> Tensor:
    x = x if low is None else x.clamp_min(low)
    return x if high is None else torch.clamp_max(x, high)


class Own(nn.Module):
    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("how", CLAMPS)
def test_spikes_reach_every_clamp(how: str, limits: tuple[float | None, float | None]) -> None:
    torch.manual_seed(0)
    net, x = Between(CLAMPS[how](*limits)).eval(), torch.randn(128, 8)
    own = {Own: convert.as_neuron(*limits)} if how == "as_neuron" else None
    snn = convert.to_spiking(net, x, 1024, threshold="max", delay="full", correct="none", handlers=own)
    with torch.no_grad():
        assert snn.provenance["analog_error"] < 1e-5
        assert relative(snn(x), net(x)) < 0.01


@pytest.mark.parametrize("limits", [(-0.2, 0.4), (None, 0.5), (-0.3, None)], ids=str)
def test_a_neuron_that_could_not_count_so_far_is_refused(limits: tuple[float | None, float | None]) -> None:
    with pytest.raises(InputError, match="as far below 0 as above"):
        IFNeuron(floor=limits[0], ceiling=limits[1])


class Gated(nn.Module):
    """Squeeze and excitation whose little ReLUs are silent on every image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), nn.Linear(2, 8), nn.Linear(8, 3)
        nn.init.constant_(self.down.bias, -3.0)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        low = self.down(y.mean((2, 3)))
        gate = self.up(torch.relu(low) + F.relu6(low)).sigmoid()
        return self.head((y * gate[:, :, None, None]).mean((2, 3)))


def test_layers_that_never_fire_are_named_and_kept(tmp_path) -> None:
    x = torch.rand(32, 3, 8, 8)
    with pytest.warns(CalibrationWarning, match=r"'relu_1', 'relu6'"):
        snn = convert.to_spiking(Gated().eval(), x, allow_hybrid=True)
    assert [snn.neurons[name].threshold.max().item() for name in ("relu_1", "relu6")] == [1.0, 6.0]
    snn.recalibrate()
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    assert torch.equal(again(x), snn(x))


class Images(nn.Module):
    """A convolution, a function of its result, and neurons; `export` makes torch.fx give up."""

    def __init__(self, function: Callable[..., Tensor], export: bool = False, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.function, self.export, self.layer = nn.Conv2d(3, 4, 3, padding=1), function, export, layer
        self.register_buffer("rows", torch.tensor([[0, 2], [-1, 5]]))
        self.register_buffer("mask", torch.arange(8) % 3 == 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.export and x.shape[1] != 3:
            raise ValueError
        y = torch.relu(self.conv(x))
        return torch.relu(self.function(y) if self.layer is None else self.layer(y))


INDEXED: dict[str, Callable[[Tensor], Tensor]] = {
    "..., None": lambda y: y.mean((2, 3))[..., None],
    "..., None, :": lambda y: y[..., None] - y[..., None, :],
    ":, None": lambda y: y[:, None],
    ":, None, ..., None": lambda y: y[:, None, ..., None],
    ":, 0": lambda y: y[:, 0],
    ":, -1, None": lambda y: y[:, -1, None],
    "..., 1:-1, ::2": lambda y: y[..., 1:-1, ::2],
    ":, 2, ..., -3:": lambda y: y[:, 2, ..., -3:],
    "whole": lambda y: y[:],
    "...": lambda y: y[...],
    "batch as 0:": lambda y: y[0:, 1:3],
    "list": lambda y: y[:, [3, 0, 1]],
    "list and None": lambda y: y[:, :, [1, 2], None],
    "mask": lambda y: y[..., torch.arange(8) % 3 == 0],
    "mask of two dimensions": lambda y: y[:, :, torch.ones(8, 8).tril().bool()],
    "tensor of two dimensions": lambda y: y[:, :, torch.tensor([[0, 2], [-1, 5]]), 1:],
    "two tensors": lambda y: y[:, :, torch.tensor([0, 1, 2]), torch.tensor([-1, -2, -3])],
    "two tensors that broadcast": lambda y: y[:, torch.tensor([[0], [1]]), torch.tensor([2, 3, -1])],
    "number beside a tensor": lambda y: y[:, 1, torch.tensor([0, 7])],
    "tensor, then None": lambda y: y[..., torch.tensor([0, 7]), None],
    "tensor of one number": lambda y: y[:, torch.tensor(2)],
}
REFUSED = {
    "batch": lambda y: y[0],
    "batch sliced": lambda y: y[1:],
    "new dimension in front": lambda y: y[None],
    "tensors apart": lambda y: y[:, torch.tensor([0, 1]), :, torch.tensor([0, 1])],
    "batch by a tensor": lambda y: y[torch.arange(2)],
    "computed index": lambda y: y[:, y.argmax(1)],
}
SIZES = {
    "scale 2": {"scale_factor": 2},
    "scale 0.5": {"scale_factor": 0.5},
    "scale 1.3": {"scale_factor": 1.3},
    "scale a dimension": {"scale_factor": (0.5, 1.7)},
    "scale 1.5, bilinear": {"scale_factor": 1.5, "mode": "bilinear"},
    "scale 1.3, recomputed": {"scale_factor": 1.3, "mode": "bilinear", "recompute_scale_factor": True},
    "scale 1.3, nearest, recomputed": {"scale_factor": (1.3, 1.3), "recompute_scale_factor": True},
    "scale 0.5, antialiased": {"scale_factor": 0.5, "mode": "bilinear", "antialias": True},
    "size, antialiased bicubic": {"size": (3, 5), "mode": "bicubic", "antialias": True},
    "size, bicubic, corners": {"size": 11, "mode": "bicubic", "align_corners": True},
    "size, nearest-exact": {"size": (5, 13), "mode": "nearest-exact"},
    "scale 1.3, nearest-exact": {"scale_factor": 1.3, "mode": "nearest-exact"},
    "size, area": {"size": (4, 3), "mode": "area"},
}  # fmt: skip
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Dropout": lambda: nn.Dropout(0.3),
    "ReLU6": lambda: nn.ReLU6(),
    "Dropout2d": lambda: nn.Dropout2d(0.3),
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "LayerNorm": lambda: nn.LayerNorm((4, 8, 8)),
    "Softmax": lambda: nn.Softmax(1),
    "GELU": lambda: nn.GELU("tanh"),
    "ELU": lambda: nn.ELU(0.7),
    "LeakyReLU": lambda: nn.LeakyReLU(0.3),
    "PReLU": lambda: nn.PReLU(4, 0.1),
    "AvgPool2d": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False, divisor_override=5),
    "MaxPool2d": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "Conv2d": lambda: nn.Conv2d(4, 6, 3, (2, 1), (0, 1), (1, 2), 2, padding_mode="circular"),
    "Upsample 0.5": lambda: nn.Upsample(scale_factor=0.5),
    "Upsample 1.3, recomputed": lambda: nn.Upsample(scale_factor=1.3, mode="bilinear", recompute_scale_factor=True),
    "Upsample to a size": lambda: nn.Upsample((3, 17), mode="bicubic", align_corners=False),
    "UpsamplingBilinear2d": lambda: nn.UpsamplingBilinear2d(scale_factor=1.5),
    "ConvTranspose2d, output_size": lambda: Up(output_size=(16, 15)),
    "ConvTranspose2d, output_size as the third": lambda: Up((15, 16)),
    "ConvTranspose2d without": lambda: Up(),
}


class Up(nn.Module):
    """A transposed convolution that is told the size of its result."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.up, self.args, self.kwargs = nn.ConvTranspose2d(4, 3, 3, 2, 1), args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x, *self.args, **self.kwargs)


def _equal(net: nn.Module, tracer: str) -> None:
    """The analog reading is the source's answer, read by this tracer; spikes run."""
    x = torch.randn(16, 3, 8, 8)
    report = convert.inspect(net.eval(), x, allow_hybrid=True)
    assert (report.tracer, [(row.path, row.why) for row in report.problems]) == (tracer, [])
    snn = convert.to_spiking(net, x, allow_hybrid=True)
    with torch.no_grad(), snn.reading("analog"):
        torch.testing.assert_close(snn(x), net(x), rtol=1e-4, atol=1e-5)
    assert snn(x).shape == net(x).shape


@pytest.mark.parametrize("tracer", ["fx", "export"])
@pytest.mark.parametrize("name", INDEXED)
def test_every_form_of_index(name: str, tracer: str) -> None:
    _equal(Images(INDEXED[name], tracer == "export"), tracer)


@pytest.mark.parametrize("name", REFUSED)
def test_indices_that_move_the_batch_are_refused(name: str) -> None:
    with pytest.raises(ConversionError):
        convert.to_spiking(Images(REFUSED[name]).eval(), torch.randn(4, 3, 8, 8), allow_hybrid=True)


@pytest.mark.parametrize("tracer", ["fx", "export"])
@pytest.mark.parametrize("name", SIZES)
def test_every_option_of_interpolate(name: str, tracer: str) -> None:
    _equal(Images(lambda y: F.interpolate(y, **SIZES[name]), tracer == "export"), tracer)


@pytest.mark.parametrize("tracer", ["fx", "export"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_options(name: str, tracer: str) -> None:
    _equal(Images(lambda y: y, tracer == "export", LAYERS[name]()), tracer)


OPTIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "dropout in evaluation": (lambda y: F.dropout(y, 0.5), "also drops"),
    "attention with dropout": (lambda y: F.scaled_dot_product_attention(y, y, y, dropout_p=0.1), "dropout_p"),
    "grouped attention": (lambda y: F.scaled_dot_product_attention(y, y, y, enable_gqa=True), "option enable_gqa=True"),
    "whole numbers": (lambda y: y.to(torch.int32).float(), "int32"),
    "sum of whole numbers": (lambda y: y.sum(1, dtype=torch.int64).float(), "option dtype=torch.int64"),
    "add with alpha": (lambda y: torch.add(y, y, alpha=2), "alpha"),
    "division that rounds": (lambda y: torch.div(y, 2, rounding_mode="floor"), "rounds"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_is_not_read_is_refused_by_name(name: str) -> None:
    function, said = OPTIONS[name]
    report = convert.inspect(Images(function).eval(), torch.randn(4, 3, 8, 8), allow_hybrid=True)
    assert any(said in f"{row.why}; {row.advice}" for row in report.problems), report.problems


ALIASES: dict[str, Callable[[Tensor], Tensor]] = {
    "axis": lambda y: torch.cat((y, y), axis=1).mean(axis=-1),
    "keepdims": lambda y: torch.sum(y, axis=1, keepdims=True),
    "input by name": lambda y: torch.flatten(input=y, start_dim=2),
    "sums in double precision": lambda y: y.mean((2, 3), dtype=torch.float32),
}


@pytest.mark.parametrize("name", ALIASES)
def test_options_by_their_other_names(name: str) -> None:
    _equal(Images(ALIASES[name]), "fx")


def test_the_registry_refuses_what_a_handler_of_the_package_leaves_out() -> None:
    """A setting of a module, an argument by place and one by name; one at its default or without effect passes."""

    def row(call: convert.Call) -> convert.Ref:
        return call.ref()

    monkey = pytest.MonkeyPatch()
    monkey.setattr(ops, "_OWN", frozenset({row}))
    try:
        for target, module, args, kwargs, said in (
            ("0", nn.Softplus(beta=2.0), (), {}, "beta=2.0"),
            ("0", nn.Hardtanh(-1.0, 2.0, inplace=True), (), {}, "max_val=2.0"),
            ("0", nn.ReLU(inplace=True), (), {}, ""),
            (F.interpolate, None, (None,), {"antialias": True}, "antialias=True"),
            (torch.mean, None, (1,), {}, "dim=1"),
            ("sum", None, (), {"keepdim": True}, "keepdim=True"),
            ("sum", None, (), {"keepdim": False, "dtype": torch.float64}, ""),
            (torch.ops.aten.hardtanh.default, None, (-1, 3), {}, "max_val=3"),
            (torch.ops.aten.hardtanh.default, None, (-1, 1), {}, ""),
        ):
            call = convert.Call(Builder(), module, (convert.Ref("x", (2, 3)), *args), kwargs, (2, 3))
            row(call)
            if not said:
                ops.require_read(call, row, target)
                continue
            with pytest.raises(convert.Unsupported, match=f"its option {said} is not read"):
                ops.require_read(call, row, target)
    finally:
        monkey.undo()
