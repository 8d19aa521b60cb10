"""What the figures of neurons draw is what was computed; nothing is left changed."""

import numpy as np
import pytest
import torch
from torch import nn

from speedysnn import analysis
from speedysnn.convert import to_spiking
from speedysnn.errors import InputError


@pytest.fixture
def one():
    """A layer whose drive is its input: two constant neurons."""
    return to_spiking(nn.Sequential(nn.ReLU()), torch.rand(50, 2), timesteps=4, threshold={"0": 1.0}, granularity="layer")


def test_membranes_by_hand(one):
    x = torch.tensor([[0.3, 0.75]])
    figure = analysis.figure_membrane(one, "0", x, neurons=(0, 1))
    first, second = (axes.get_lines()[0].get_ydata() for axes in figure.axes)
    np.testing.assert_allclose(first, [0.8, 0.1, 0.4, 0.7], atol=1e-6)
    np.testing.assert_allclose(second, [0.25, 0.0, 0.75, 0.5], atol=1e-6)
    assert list(figure.axes[0].get_lines()[1].get_xdata()) == [2]
    assert list(figure.axes[1].get_lines()[1].get_xdata()) == [1, 2, 4]


def test_the_staircase_is_the_quantizer(one):
    x = torch.linspace(0, 1.2, 50).reshape(25, 2)
    figure = analysis.figure_staircase(one, "0", x)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    a, q = lines["quantized reading"].get_data()
    np.testing.assert_allclose(q, np.clip(np.floor(4 * a + 0.5), 0, 4) / 4, atol=1e-6)
    np.testing.assert_allclose(lines["spiking"].get_ydata(), q, atol=1e-6)


def test_the_raster_counts_the_spikes(build, digits):
    snn, x = build("max", spikes="ternary"), digits[0][:1]
    figure = analysis.figure_raster(snn, "relu2", x, neurons=30)
    rates = figure.axes[1].get_lines()[0].get_xdata()
    drawn = sum(len(marks.get_offsets()) for marks in figure.axes[0].collections)
    assert 0 < drawn <= 30 * 4
    assert len(rates) == 30
    assert max(rates) <= 1


def test_the_density_marks_both_thetas(build):
    snn = build("max")
    for neuron in snn.neurons.values():
        neuron.set_threshold(0.5 * neuron.threshold.detach())
    figure = analysis.figure_activation_density(snn, "relu3")
    now, best = (float(line.get_xdata()[0]) for line in figure.axes[0].get_lines())
    assert best == pytest.approx(2 * now, rel=1e-4)
    assert float(snn.neurons["relu3"].threshold.detach().mean()) == pytest.approx(now)


def test_what_cannot_be_drawn(build, digits, one):
    with pytest.raises(InputError, match="neuron layers"):
        analysis.figure_activation_density(build("max"), "relu9")
    with pytest.raises(InputError, match="look-ahead"):
        analysis.figure_membrane(build("max", delay=1), "relu1", digits[0][:1])
    with pytest.raises(InputError, match="places"):
        analysis.figure_membrane(one, "0", torch.rand(1, 2), neurons=(5,))
