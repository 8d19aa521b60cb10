"""What an observer says it sees of a drive: each step, their sum, or nothing; the network answers the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from speedysnn.convert import to_spiking
from speedysnn.execution.observers import LayerRecord, needs_input
from speedysnn.network import SpikingNetwork


@pytest.fixture(scope="module")
def network() -> tuple[SpikingNetwork, Tensor]:
    """A residual network whose sums and convolutions may be written over, and images."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            return (self.second(x).relu() + x).relu().mean((2, 3))

    torch.manual_seed(0)
    x = torch.randn(5, 3, 6, 6)
    return to_spiking(Block().eval(), x, 6), x


Look = Callable[[LayerRecord], None]


def taps(
    network: tuple[SpikingNetwork, Tensor], mark: Callable[[Look], Look]
) -> tuple[dict[str, LayerRecord], Tensor]:
    """What the marked observer was handed, layer by layer, and the answer."""
    snn, x = network
    found: dict[str, LayerRecord] = {}
    with torch.no_grad():
        out = snn.read("spiking", x, observer=mark(lambda tap: found.update({tap.name: tap})))
    return found, out


def test_an_observer_sees_what_it_asks_for(network: tuple[SpikingNetwork, Tensor]) -> None:
    each, answer = taps(network, lambda observer: observer)
    assert any(not tap.static_drive for tap in each.values())
    for word in ("sum", "nothing"):
        found, same = taps(network, needs_input(word))
        assert torch.equal(same, answer)
        for name, tap in found.items():
            whole = each[name]
            assert torch.equal(tap.output, whole.output)
            assert tap.is_sum is (word == "sum" and not whole.static_drive)
            if whole.static_drive:  # one drive for all steps is handed over as it is
                assert torch.equal(tap.drive, whole.drive)
            elif word == "nothing":
                assert tap.drive.numel() == 0
            else:
                steps = whole.drive.view(6, 5, *whole.drive.shape[1:])
                expected = steps[0].clone()
                for step in steps[1:]:
                    expected = expected + step
                assert torch.equal(tap.drive, expected)


def test_the_sum_has_the_offset_of_every_step(network: tuple[SpikingNetwork, Tensor]) -> None:
    neuron = next(iter(network[0].neurons.values()))
    x = torch.randn(6 * 5, 4, 6, 6)
    plain = neuron.total(x)
    neuron.offset = torch.tensor(0.25)
    try:
        torch.testing.assert_close(neuron.total(x), plain + 6 * 0.25)
    finally:
        neuron.offset = None
