"""Networks that torch.fx reads wrongly, that float32 cannot prove, and that only torch.export can trace."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speedysnn import convert
from speedysnn.errors import ConversionError


class Net(nn.Module):
    """A convolution, a read-out, and a function that uses both; `export` makes torch.fx give up."""

    def __init__(self, function: Callable[[Any, Tensor], Any], export: bool = False) -> None:
        super().__init__()
        self.function, self.export, self.conv, self.fc = function, export, nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, *args: Tensor, **options: Any) -> Any:
        if self.export and x.shape[1] != 3:
            raise ValueError
        return self.function(self, x)


def _added(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    kept = y
    y += 1
    return net.fc(torch.relu(y + kept).mean((2, 3)))


def _view(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    y.view(y.shape[0], -1).relu_()
    return net.fc(y.mean((2, 3)))


def _part(net: Any, x: Tensor) -> Tensor:
    y = torch.relu(net.conv(x))
    y[:, 1:].mul_(-2)
    return net.fc(torch.relu(y + 0.1).mean((2, 3)))


def _pooled(net: Any, x: Tensor) -> Tensor:
    return net.fc(torch.relu(net.conv(x)).mean((2, 3)))


def _list(net: Any, x: Tensor) -> list[Tensor]:
    y = torch.relu(net.conv(x))
    return [y, net.fc(y.mean((2, 3)))]


NETWORKS = {
    "another name": _added, "relu_ on a view": _view, "a part changed in place": _part, "*args, **options": _pooled,
    "a list": _list,
}  # fmt: skip


@pytest.mark.parametrize("export", [False, True], ids=["fx", "export"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_read_as_what_it_is(name: str, export: bool) -> None:
    net, x = Net(NETWORKS[name], export).eval(), torch.randn(8, 3, 8, 8)
    snn = convert.to_spiking(net, x)
    with torch.no_grad(), snn.reading("analog"):
        torch.testing.assert_close(list(snn(x)), list(net(x)), rtol=1e-4, atol=1e-5)
    assert len(snn.neurons) == 1 + (name == "a part changed in place")


def test_float64_proves_what_float32_is_too_coarse_for() -> None:
    """A large offset, which batch-norm takes away: the source in float32 is itself 1e-4 off."""
    torch.manual_seed(0)
    x = 2000 + torch.randn(64, 6)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    for _ in range(300):
        net(x)
    net.eval()
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
        assert float((net(x) - exact).norm() / exact.norm()) > 2e-5
    assert convert.to_spiking(net, x).provenance["analog_error"] < 1e-9


def test_a_wrong_graph_is_refused_in_float64_too() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    wrong = convert.as_neuron(ceiling=0.1)
    with pytest.raises(ConversionError, match="differs from the source network"):
        convert.to_spiking(net, torch.rand(8, 4), handlers={nn.ReLU: wrong})


SCRIPTED: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "script": lambda net, x: torch.jit.script(net),
    "trace": lambda net, x: torch.jit.trace(net, x),
    "freeze": lambda net, x: torch.jit.freeze(torch.jit.script(net)),
    "a part": lambda net, x: nn.Sequential(torch.jit.script(net), nn.ReLU()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", SCRIPTED)
@pytest.mark.parametrize("call", [convert.inspect, convert.to_spiking])
def test_torchscript_is_refused_in_one_sentence(how: str, call: Callable[..., Any]) -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.rand(4, 3, 8, 8)
    with pytest.raises(ConversionError, match="is a TorchScript program, which cannot be read: give the Python network"):
        call(SCRIPTED[how](net, x), x)
