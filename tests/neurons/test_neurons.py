"""IFNeuron: its readings, its streaming, and its parameters."""

import pytest
import torch

from speedysnn import IFNeuron
from speedysnn.errors import InputError


@pytest.mark.parametrize("spikes", ["binary", "ternary", "graded:2", "power2:3"])
@pytest.mark.parametrize("steps", [1, 4, 5])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("floor", [0.0, None])
def test_step_by_step_equals_time_batched(spikes: str, steps: int, granularity: str, floor: float | None) -> None:
    """For every look-ahead, and two windows back to back without a reset."""
    theta = torch.tensor(0.6) if granularity == "layer" else torch.tensor([0.4, 0.6, 1.1])
    for delay in range(steps + 1):
        neuron = IFNeuron(theta, timesteps=steps, spikes=spikes, delay=delay, floor=floor)
        windows = [torch.randn(steps, 2, 3, 4) * 0.7 + 0.3 for _ in range(2)]
        expected = [neuron(x.flatten(0, 1)).view(steps, 2, 3, 4) for x in windows]
        feed = [*windows[0], *windows[1], *[None] * delay]
        out = [y for y in (neuron.step(x) for x in feed) if y is not None]
        assert len(out) == 2 * steps
        torch.testing.assert_close(torch.stack(out), torch.cat(expected).detach(), rtol=0, atol=0)
        assert neuron.step(None) is None


def test_readings() -> None:
    neuron = IFNeuron(2.0, timesteps=4, ceiling=3.0)
    z = torch.tensor([[-1.0, 0.2, 0.9, 1.6, 5.0]])
    neuron.reading = "analog"
    assert torch.equal(neuron(z), torch.tensor([[0.0, 0.2, 0.9, 1.6, 3.0]]))
    neuron.reading = "quantized"
    assert torch.equal(neuron(z), torch.tensor([[0.0, 0.0, 1.0, 1.5, 2.0]]))
    neuron.reading = "spiking"
    assert torch.equal(neuron(z, constant=True).view(4, 5).mean(0), torch.tensor([0.0, 0.0, 1.0, 1.5, 2.0]))


def test_a_signed_neuron_reads_negative_values() -> None:
    neuron = IFNeuron(2.0, timesteps=4, floor=-3.0, ceiling=3.0)
    z = torch.tensor([[-5.0, -1.6, -0.9, 0.2, 5.0]])
    assert torch.equal(neuron.analog(z), torch.tensor([[-3.0, -1.6, -0.9, 0.2, 3.0]]))
    assert torch.equal(neuron.quantized(z), torch.tensor([[-2.0, -1.5, -1.0, 0.0, 2.0]]))
    spikes = neuron(z, constant=True).view(4, 5)
    assert set(spikes.unique().tolist()) <= {-2.0, 0.0, 2.0}
    assert torch.equal(spikes.mean(0), neuron.quantized(z)[0])
    with pytest.raises(InputError, match="floor"):
        IFNeuron(1.0, floor=0.5)
    with pytest.raises(InputError, match="ceiling"):
        IFNeuron(1.0, ceiling=-1.0)


def test_full_look_ahead_equals_quantized() -> None:
    neuron = IFNeuron(torch.tensor([0.5, 0.9]), timesteps=6, delay="full")
    x = torch.randn(6, 3, 2, dtype=torch.float64)
    out = neuron(x.flatten(0, 1)).view(6, 3, 2).mean(0)
    torch.testing.assert_close(out, neuron.quantized(x.mean(0)), rtol=1e-12, atol=1e-12)


def test_analog_gradient_is_right() -> None:
    neuron = IFNeuron(1.0, ceiling=2.0)
    z = torch.tensor([-0.5, 0.4, 1.3, 2.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(neuron.analog, (z,))


def test_threshold_stays_positive_under_training() -> None:
    neuron = IFNeuron(0.05, timesteps=4)
    optimizer = torch.optim.SGD(neuron.parameters(), lr=5.0)
    for _ in range(20):
        optimizer.zero_grad()
        neuron(torch.full((1, 8), 0.3), constant=True).sum().backward()
        (neuron.log_threshold.grad.abs()).sum()
        optimizer.step()
    assert float(neuron.threshold.detach()) > 0


@pytest.mark.parametrize("theta", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_thresholds_are_named(theta: float) -> None:
    with pytest.raises(InputError, match="positive finite"):
        IFNeuron(theta)


@pytest.mark.parametrize(
    "options", [{"timesteps": 0}, {"delay": -1}, {"delay": "half"}, {"spikes": "wavy"}, {"surrogate": "none"}]
)
def test_bad_options_are_named(options: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        IFNeuron(1.0, **options)


def test_another_batch_without_reset_is_named() -> None:
    neuron = IFNeuron(1.0, timesteps=4)
    neuron.step(torch.zeros(2, 3))
    with pytest.raises(InputError, match="reset"):
        neuron.step(torch.zeros(5, 3))
    neuron.reset()
    assert neuron.step(torch.zeros(5, 3)) is not None
