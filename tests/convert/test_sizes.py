"""Inputs of another size than the traced one: as the source answers them, or refused where the size was fixed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import speedysnn
from speedysnn import convert
from speedysnn.errors import InputError


class Net(nn.Module):
    """A convolution, a function of its result and the input, and a read-out."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.function = function
        self.conv, self.head = nn.Conv2d(3, 8, 3, stride, padding), nn.Conv2d(8, 2, 1)
        self.up, self.fc, self.fixed = nn.ConvTranspose2d(8, 8, 2, 2), nn.Linear(8, 4), nn.Linear(8 * 256, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _same_padding(net: Any, x: Tensor) -> Tensor:
    """TensorFlow's padding for a stride of 2, from the input's size."""
    pads = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in (x.shape[3], x.shape[2])]
    x = F.pad(x, (pads[0] // 2, pads[0] - pads[0] // 2, pads[1] // 2, pads[1] - pads[1] // 2))
    return net.fc(torch.relu(net.conv(x)).mean((2, 3)))


def _mask(net: Any, x: Tensor) -> Tensor:
    return F.interpolate(net.head(F.max_pool2d(torch.relu(net.conv(x)), 2)), size=x.shape[-2:])


def _divided(net: Any, x: Tensor) -> Tensor:
    y = torch.relu(net.conv(x))
    return net.fc(y.sum((2, 3)) / (y.shape[2] * y.shape[3]))


def _unet(net: Any, x: Tensor) -> Tensor:
    """Its shortcut needs even sizes."""
    y = torch.relu(net.conv(x))
    return net.head(torch.relu(net.up(F.max_pool2d(y, 2))) + y)


FIXED = {
    "padding from the size": (Net(_same_padding, 2, 0), (3, 16, 16), [[]]),
    "mask of the input's size": (Net(_mask), (3, 16, 16), [[]]),
    "sum divided by the size": (Net(_divided), (3, 16, 16), [[]]),
    "linear layer over all pixels": (Net(lambda net, x: net.fixed(torch.relu(net.conv(x)).flatten(1))), (3, 16, 16), [[]]),
    "features": (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), (8,), [[]]),
}
FREE = {
    "pooled": (Net(lambda net, x: net.fc(torch.relu(net.conv(x)).mean((2, 3)))), (3, 16, 16), [[1, 2]], (3, 11, 21)),
    "mask": (Net(lambda net, x: net.head(torch.relu(net.conv(x)))), (3, 16, 16), [[1, 2]], (3, 17, 9)),
    "even sizes": (Net(_unet), (3, 16, 16), [[1, 2]], (3, 24, 12)),
    "sequence": (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), (5, 8), [[0]], (9, 8)),
    "signal": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1)), (2, 30), [[1]], (2, 44)),
}


@pytest.mark.parametrize("name", FIXED)
def test_another_size_is_refused_where_it_was_fixed(name: str, tmp_path) -> None:
    net, shape, free = FIXED[name]
    snn = convert.to_spiking(net.eval(), torch.randn(8, *shape))
    snn = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    assert snn.free_sizes == free
    other = torch.randn(2, *(size + 9 for size in shape))
    for call in (snn, snn.step, lambda x: snn(x.expand(snn.timesteps, *x.shape))):
        with pytest.raises(InputError, match=f"{', '.join(map(str, shape))}.*fixed to this size"):
            call(other)


@pytest.mark.parametrize("name", FREE)
def test_networks_that_are_free_of_a_size_say_so_and_run(name: str, tmp_path) -> None:
    net, shape, free, other = FREE[name]
    snn = convert.to_spiking(net.eval(), torch.randn(32, *shape))
    snn = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    assert snn.free_sizes == free
    x = torch.randn(4, *other)
    with torch.no_grad(), snn.reading("analog"):
        torch.testing.assert_close(snn(x), net(x))
    assert snn(x).shape == net(x).shape


def test_an_artifact_that_says_nothing_of_sizes_takes_any(tmp_path) -> None:
    net, shape, _ = FIXED["sum divided by the size"]
    snn = convert.to_spiking(net.eval(), torch.randn(8, *shape))
    del snn.provenance["free_sizes"]
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    assert again.free_sizes is None
    assert again(torch.randn(2, 3, 9, 9)).shape == (2, 4)
