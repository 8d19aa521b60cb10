"""Operators that are not linear: analog equals the source, the mean over time is exact, weight layers get spikes."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import speedysnn
from speedysnn import convert
from speedysnn.errors import ConversionError, InputError
from speedysnn.graph.operators import OPERATORS

IMAGE, SEQUENCE = (4, 6, 6), (5, 8)


class Net(nn.Module):
    """A layer, the operator under test, another layer."""

    def __init__(self, shape: tuple[int, ...], function: Callable[..., Tensor], module: nn.Module | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = (lambda: nn.Conv2d(4, 4, 3, padding=1)) if shape == IMAGE else (lambda: nn.Linear(8, 8))
        self.first, self.gate, self.last = layer(), layer(), nn.LazyLinear(6)
        self.op, self.function = module or nn.Identity(), function
        self.eval()(torch.zeros(4, *shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x)).flatten(1))


def _se(net: Net, x: Tensor) -> Tensor:
    return x * torch.sigmoid(F.adaptive_avg_pool2d(net.gate(F.relu(x)), 1))


def _attention(net: Net, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, net.gate(x), x)


def _qkv(net: Net, x: Tensor) -> Tensor:
    q, k, v = torch.stack([x, net.gate(x), x], 1).reshape(-1, 3, 5, 2, 4).permute(1, 0, 3, 2, 4)
    return ((q @ k.transpose(-2, -1)).mul(0.5).softmax(-1) @ v).transpose(1, 2)


def _self(net: Net, x: Tensor) -> Tensor:
    return net.op(x, x, x, need_weights=False)[0]


MODULES: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    **{
        kind.__name__: (IMAGE, kind)
        for kind in (
            nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.Mish,
            nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardshrink, nn.Softshrink,
        )
    },
    "gelu tanh": (IMAGE, lambda: nn.GELU("tanh")),
    "softmax": (IMAGE, lambda: nn.Softmax(1)),
    "log softmax": (SEQUENCE, lambda: nn.LogSoftmax(-1)),
    "glu": (IMAGE, lambda: nn.GLU(1)),
    "group norm": (IMAGE, lambda: nn.GroupNorm(2, 4)),
    "instance norm": (IMAGE, lambda: nn.InstanceNorm2d(4, affine=True)),
    "local response norm": (IMAGE, lambda: nn.LocalResponseNorm(3)),
    "layer norm": (SEQUENCE, lambda: nn.LayerNorm(8)),
    "rms norm": (SEQUENCE, lambda: nn.RMSNorm(8)),
}  # fmt: skip

FUNCTIONS: dict[str, tuple[tuple[int, ...], Callable[..., Tensor]]] = {
    "squeeze and excitation": (IMAGE, _se),
    "attention": (SEQUENCE, _attention),
    "attention from one projection": (SEQUENCE, _qkv),
    "product": (IMAGE, lambda net, x: x * net.gate(x)),
    "quotient": (IMAGE, lambda net, x: x / (2 + net.gate(x).abs())),
    "power": (IMAGE, lambda net, x: x**2 + x.pow(3)),
    "maximum": (IMAGE, lambda net, x: torch.maximum(x, net.gate(x))),
    "where": (IMAGE, lambda net, x: torch.where(x > 0, x, 0.1 * x)),
    "clamp above 0": (IMAGE, lambda net, x: x.clamp(0.1, 0.7)),
    "normalize": (IMAGE, lambda net, x: F.normalize(x, dim=1)),
    "amax": (IMAGE, lambda net, x: x.amax((2, 3))),
    "max": (IMAGE, lambda net, x: x.max(dim=2)[0]),
    "einsum": (SEQUENCE, lambda net, x: torch.einsum("bij,bkj->bik", x, net.gate(x))),
    "roll, flip, take": (SEQUENCE, lambda net, x: F.silu(x.roll(1, 1).flip(2))[:, torch.tensor([0, 2, 2])]),
    "batch moved and back": (SEQUENCE, lambda net, x: F.silu(x).permute(1, 0, 2)[0]),
}

ROWS = {
    **{name: (shape, lambda net, x: net.op(x), make) for name, (shape, make) in MODULES.items()},
    "multi-head attention": (SEQUENCE, _self, lambda: nn.MultiheadAttention(8, 2, batch_first=True)),
    **{name: (shape, function, None) for name, (shape, function) in FUNCTIONS.items()},
}


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


@pytest.mark.parametrize("name", ROWS)
def test_hybrid_operator(name: str) -> None:
    shape, function, make = ROWS[name]
    net = Net(shape, function, make() if make else None).eval()
    x = torch.randn(24, *shape)
    with torch.no_grad():
        expected = net(x)
        with pytest.raises(ConversionError, match="allow_hybrid"):
            convert.to_spiking(net, x)
        snn = convert.to_spiking(net, x, timesteps=4, allow_hybrid=True)
        assert snn.provenance["analog_error"] < 1e-5
        snn.set_delay("full")
        with snn.reading("quantized"):
            twin = snn(x)
        assert relative(snn(x, per_step=True)[-1], twin) < 1e-5
        snn.timesteps = 512
        snn.recalibrate()
        with snn.reading("quantized"):
            assert relative(snn(x), expected) < 0.02
        snn.set_delay(1)
        snn.timesteps = 64
        snn.recalibrate()
        assert relative(snn(x[:8]), expected[:8]) < 0.12


SPIKING = {
    "leaky": lambda: nn.LeakyReLU(0.2),
    "prelu": lambda: nn.PReLU(4),
    "rrelu": lambda: nn.RReLU(),
    "relu1": lambda: nn.Hardtanh(0, 1),
    "symmetric clamp": lambda: nn.Hardtanh(-0.5, 0.5),
}


@pytest.mark.parametrize("name", SPIKING)
def test_rectifiers_of_other_shapes_need_no_analog_unit(name: str) -> None:
    net = Net(IMAGE, lambda net, x: net.op(x), SPIKING[name]()).eval()
    x = torch.randn(24, *IMAGE)
    with torch.no_grad():
        expected = net(x)
        snn = convert.to_spiking(net, x, timesteps=256)
        assert convert.inspect(net, x).treatment == "spiking"
        assert snn.provenance["analog_error"] < 1e-5
        assert relative(snn(x), expected) < 0.05


def test_every_weight_layer_receives_spikes() -> None:
    """Every nonzero value that reaches the second and third layer is a whole multiple of one theta."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 6, 3), nn.Flatten()).eval()
    x = torch.randn(8, 3, 8, 8)
    snn = convert.to_spiking(net, x, allow_hybrid=True, granularity="layer")
    readers = {node.inputs[0] for node in snn.graph.nodes if OPERATORS.get(node.op) and OPERATORS[node.op].weighted}
    assert readers == {"input", *snn.neurons}
    assert [neuron.signed for neuron in snn.neurons.values()] == [True, True]
    taps = {}
    snn(x, observer=lambda tap: taps.update({tap.name: tap}))
    for tap in taps.values():
        spikes = tap.output / tap.neuron.threshold
        assert set(spikes.round(decimals=4).unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_leaky_relu_on_a_negative_slope_of_one_channel_each(tmp_path) -> None:
    net = Net(IMAGE, lambda net, x: net.op(x), nn.PReLU(4)).eval()
    nn.init.uniform_(net.op.weight, -0.3, 0.5)
    x = torch.randn(8, *IMAGE)
    snn = convert.to_spiking(net, x)
    speedysnn.save(snn, tmp_path / "net.snn")
    assert torch.equal(speedysnn.load(tmp_path / "net.snn")(x), snn(x))


def test_hybrid_networks_are_saved_and_loaded(tmp_path) -> None:
    net = Net(SEQUENCE, _self, nn.MultiheadAttention(8, 2, batch_first=True)).eval()
    x = torch.randn(8, *SEQUENCE)
    snn = convert.to_spiking(net, x, allow_hybrid=True)
    speedysnn.save(snn, tmp_path / "net.snn")
    assert torch.equal(speedysnn.load(tmp_path / "net.snn")(x), snn(x))


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_hybrid_networks_run_step_by_step(delay: int) -> None:
    net = Net(IMAGE, _se, None).eval()
    x = torch.randn(3, *IMAGE)
    snn = convert.to_spiking(net, x, timesteps=5, delay=delay, allow_hybrid=True)
    with torch.no_grad():
        together = snn(x)
        outs = [snn.step(x) for _ in range(5)] + [snn.step(None) for _ in range(snn.latency - 5)]
    mean = torch.stack([out for out in outs if out is not None]).mean(0)
    assert relative(mean, together) < 1e-4


def test_keep_analog_leaves_a_layer_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(8, 3, 8, 8)
    snn = convert.to_spiking(net, x, allow_hybrid=True, keep_analog=["1", "2"])
    assert list(snn.neurons) == ["3"]
    with pytest.raises(InputError, match="no module 'seven'"):
        convert.to_spiking(net, x, keep_analog=["seven"])


class Own(nn.Module):
    """A user's activation that tracing must not look into."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1) if float(x.sum()) > -math.inf else x


def own_leaky(x: Tensor) -> Tensor:
    return x if bool((x > 0).all()) else F.leaky_relu(x, 0.3)


def test_one_line_for_an_activation_of_ones_own() -> None:
    net = nn.Sequential(nn.Linear(8, 8), Own(), nn.Linear(8, 3)).eval()
    x = torch.randn(16, 8)
    snn = convert.to_spiking(net, x, handlers={Own: convert.as_neuron(ceiling=1.0)})
    assert snn.neurons["1"].ceiling == 1.0
    other = Net(SEQUENCE, lambda net, x: own_leaky(x), None).eval()
    x = torch.randn(16, *SEQUENCE)
    other(x)
    snn = convert.to_spiking(other, x, handlers={own_leaky: convert.as_leaky(0.3)})
    assert len(snn.neurons) == 2
    with pytest.raises(InputError, match="no tensors"):
        convert.as_operator("conv2d")
    with pytest.raises(InputError, match="constants"):
        convert.as_operator("elu")
