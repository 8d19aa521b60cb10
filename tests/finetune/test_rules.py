"""The gradients of theta: through time, of the learned step size, and their mean."""

import numpy as np
import pytest
import torch

from speedysnn import finetune
from speedysnn.kernels.dispatch import using
from speedysnn.neurons import IFNeuron
from tests.finetune.test_fit import _config, _data, _network


def _gradient(rule: str, spikes: str = "binary", *, constant: bool = False, scaled: bool = True):
    torch.manual_seed(0)
    neuron = IFNeuron(torch.tensor([0.7, 1.3]), timesteps=4, spikes=spikes)
    neuron.threshold_gradient, neuron.scaled_gradient = rule, scaled
    x = torch.randn(3 if constant else 12, 2, 5, 5).requires_grad_()
    weight = torch.randn(12, 2, 5, 5)
    out = neuron.spiking(x, constant=constant)
    (out * weight).sum().backward()
    return neuron, x, out.detach(), weight, neuron.log_threshold.grad.clone(), x.grad.clone()


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
@pytest.mark.parametrize("constant", [False, True])
def test_the_step_rule_against_numpy(spikes, constant) -> None:
    _neuron, x, out, weight, gradient, _ = _gradient("step", spikes, constant=constant, scaled=False)
    theta = np.array([0.7, 1.3], np.float32)[None, :, None, None]
    drive = x.detach().numpy()
    z = (drive if constant else drive.reshape(4, 3, 2, 5, 5).mean(0)) / theta
    n = out.numpy().reshape(4, 3, 2, 5, 5).mean(0) / theta
    per = np.where((z > 0) & (z < 1), n - z, np.clip(z, 0, 1)) * weight.numpy().reshape(4, 3, 2, 5, 5).sum(0)
    expected = per.sum((0, 2, 3)) * theta.ravel()  # of log theta
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-4)


def test_the_mean_of_both_and_nothing_else_changes() -> None:
    surrogate, step, mixed = (_gradient(rule) for rule in ("surrogate", "step", "mixed"))
    for one in (step, mixed):
        assert torch.equal(one[2], surrogate[2])
        assert torch.equal(one[5], surrogate[5])
    torch.testing.assert_close(mixed[4], (surrogate[4] + step[4]) / 2)
    assert not torch.allclose(step[4], surrogate[4])


@pytest.mark.parametrize("rule", ["surrogate", "step", "mixed"])
def test_thresholds_alone_lower_the_loss(rule) -> None:
    x, snn = _data()[0], _network(threshold="max")
    config = _config(train=("thresholds",), epochs_quantized=0, epochs_spiking=10, threshold_gradient=rule,
                     learning_rates={"thresholds": 3e-2})  # fmt: skip
    result = finetune.fit(snn, x, validation=x, config=config)
    held = result.history.held_out_loss
    assert held.min() < 0.9 * held.iloc[0]
    assert {neuron.threshold_gradient for neuron in snn.neurons.values()} == {"surrogate"}


@pytest.mark.parametrize("constant", [False, True])
def test_every_block_of_a_wide_layer_has_its_gradient(constant) -> None:
    """More neurons than the compiled kernel takes at a time, against the reference."""
    found = []
    for kernel in ("cpu", "reference"):
        torch.manual_seed(0)
        neuron = IFNeuron(torch.linspace(0.5, 1.5, 6), timesteps=2)
        x = torch.randn(40 if constant else 80, 6, 8, 8).requires_grad_()
        with using(kernel):
            out = neuron.spiking(x, constant=constant)
            (out * torch.randn(out.shape)).sum().backward()
        found.append((x.grad, neuron.log_threshold.grad, neuron.v_init.grad))
    for compiled, reference in zip(*found, strict=True):
        torch.testing.assert_close(compiled, reference, rtol=1e-4, atol=1e-4)
