"""knobs: every row is what setting it by hand gives; nothing is left changed; prediction beside measurement."""

import copy

import pandas as pd
import pytest
import torch
from torch import nn

from speedysnn import analysis
from speedysnn.convert import to_spiking
from speedysnn.errors import InputError

MOVES = {
    "timesteps": (2, 8), "theta_scale": (0.5, 2.0), "v_init": (0.0, 0.25), "delay": (1, "full"),
    "spikes": ("ternary", "graded:2"),
}  # fmt: skip


def by_hand(snn, knob, value):
    snn = copy.deepcopy(snn)
    if knob == "timesteps":
        snn.timesteps = value
    elif knob == "delay":
        snn.set_delay(value)
    elif knob == "spikes":
        snn.set_spikes(value)
    for neuron in snn.neurons.values():
        if knob == "theta_scale":
            neuron.set_threshold(neuron.threshold.detach() * value)
        if knob == "v_init":
            neuron.v_init.data.fill_(value)
    return snn


def test_every_row_is_what_setting_it_by_hand_gives(build, digits):
    snn = build("max")
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    table = analysis.knobs(snn, digits, **MOVES)
    assert len(table) == 10
    for row in table.itertuples():
        one = analysis.evaluate(by_hand(snn, row.knob, row.value), digits)
        assert row.sqnr_db == pytest.approx(one.sqnr_db, abs=1e-3)
        assert row.accuracy == pytest.approx(one.accuracy)
        assert row.spikes_per_neuron == pytest.approx(one.spikes_per_neuron, rel=1e-4)
        assert (row.latency, row.timesteps) == (one.latency, one.timesteps)
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())
    assert (snn.timesteps, {n.delay for n in snn.neurons.values()}, {n.spikes for n in snn.neurons.values()}) == (
        4, {0}, {"binary"},
    )  # fmt: skip


def test_prediction_stands_beside_measurement(build, digits):
    """On other images than the calibration's, the mean of the layers within 1 dB."""
    table = analysis.knobs(build("max"), digits, timesteps=(1, 2, 4, 8, 16), theta_scale=(0.6, 1.0, 1.5), v_init=(0.0, 0.5))
    assert (table["layer_sqnr_db"] - table["predicted_sqnr_db"]).abs().max() < 1.0
    rows = table.set_index(["knob", "value"])["predicted_sqnr_db"]
    assert rows["timesteps"].is_monotonic_increasing
    assert rows["theta_scale", 1.0] > max(rows["theta_scale", 0.6], rows["theta_scale", 1.5])
    assert rows["v_init", 0.5] > rows["v_init", 0.0]


def test_prediction_equals_the_calibration_images_own_noise():
    torch.manual_seed(0)
    x = torch.rand(400, 1, 8, 8)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 20), nn.ReLU())
    table = analysis.knobs(to_spiking(net, x, timesteps=4), x, timesteps=(1, 4, 16))
    assert (table["layer_sqnr_db"] - table["predicted_sqnr_db"]).abs().max() < 0.1


def test_everything_comes_back_after_an_exception(build, digits):
    snn = build("max")
    before = snn.timesteps, {n.delay for n in snn.neurons.values()}
    thetas = [n.threshold.detach().clone() for n in snn.neurons.values()]

    def fails():
        yield digits[0][:20], None
        raise OSError("gone")

    with pytest.raises(Exception, match="gone"):
        analysis.knobs(snn, fails(), timesteps=(2,), delay=("full",), theta_scale=(3.0,))
    assert (snn.timesteps, {n.delay for n in snn.neurons.values()}) == before
    assert all(torch.equal(n.threshold, theta) for n, theta in zip(snn.neurons.values(), thetas, strict=True))


def test_values_out_of_range(build, digits):
    for words, match in (
        ({}, "expected values of some of"), ({"theta_scale": (0.0,)}, "above 0"), ({"v_init": (1.5,)}, "0..1"),
        ({"timesteps": (0,)}, "at least 1"), ({"spikes": ("loud",)}, "spikes"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            analysis.knobs(build("max"), digits, **words)


def test_pareto_by_hand():
    table = pd.DataFrame({"latency": [4, 4, 6, 8, 9], "accuracy": [0.5, 0.7, 0.7, 0.9, 0.8]})
    front = analysis.pareto(table)
    assert front["latency"].tolist() == [4, 8]
    with pytest.raises(InputError, match="pareto"):
        analysis.pareto(table, cost="money")


def test_the_distance_is_zero_at_the_best_and_six_decibels_at_twice_that(build):
    snn = build("max")
    assert analysis.theta_distance(snn)["ratio_db"].max() < 1e-5
    for neuron in snn.neurons.values():
        neuron.set_threshold(2 * neuron.threshold.detach())
    assert analysis.theta_distance(snn)["ratio_db"].tolist() == pytest.approx([6.0206] * 5, abs=1e-3)
    assert snn.calibration.rules


def test_the_figure_draws_the_table(build, digits):
    table = analysis.knobs(build("max"), digits, timesteps=(1, 4), delay=(0, 1, "full"))
    figure = analysis.knob_curves(table)
    above = figure.axes[0].get_lines()
    assert list(above[0].get_ydata()) == table["agreement"][:2].tolist()
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["0", "1", "full"]
    predicted = figure.axes[2].get_lines()[3]
    assert list(predicted.get_ydata()) == table["predicted_sqnr_db"][:2].tolist()
