"""Gains of changes to a layer against the change carried out."""

import copy
import math

import pytest
import torch

import speedysnn
from speedysnn import convert
from speedysnn.analysis import evaluate, measure_sensitivity
from speedysnn.analysis.sensitivity.changes import CHANGES
from speedysnn.analysis.sensitivity.measure import GAINS
from speedysnn.data import load
from speedysnn.errors import InputError
from tests.material.by_hand import by_hand, sqnr


@pytest.mark.parametrize(("delay", "threshold"), [(0, "max"), (1, "mse")])
def test_every_gain_is_what_its_call_gives(delay, threshold):
    data = load("digits", "train", limit=60)
    from speedysnn.assets.digits import load_digits_net

    snn = convert.to_spiking(load_digits_net("max"), data, timesteps=4, threshold=threshold, delay=delay)
    before = evaluate(snn, data)
    sensitivity = measure_sensitivity(snn, data)
    assert set(sensitivity.gains["change"]) == set(CHANGES)
    assert list(sensitivity.gains.columns) == list(GAINS)
    gains = sensitivity.gains["gain_db"].tolist()
    assert gains == sorted(gains, reverse=True)
    assert "changed" not in snn.provenance
    for row in sensitivity.gains.to_dict("records"):
        fresh = copy.deepcopy(snn)
        eval(row["call"], {"snn": fresh, "sensitivity": sensitivity})
        made = {"layer": row["layer"], "change": row["change"], "timesteps": 4}
        assert fresh.provenance["changed"] == [made]
        after = evaluate(fresh, data)
        assert after.sqnr_db == pytest.approx(row["sqnr_db"], abs=1e-4), row
        assert after.sqnr_db - before.sqnr_db == pytest.approx(row["gain_db"], abs=1e-4), row
        assert (after.accuracy, after.agreement) == (row["accuracy"], row["agreement"])
        if row["change"] not in ("bit", "bit+threshold"):
            assert after.twin_sqnr_db - before.twin_sqnr_db == pytest.approx(row["twin_gain_db"], abs=1e-4), row


def test_a_bit_is_twice_the_steps_and_one_in_one_layer(build, digits):
    snn, x = build("avg", 4), digits[0][:40]
    found = measure_sensitivity(snn, x, gains=("bit",))
    before = sqnr(snn, by_hand(snn, dict.fromkeys(snn.neurons, "quantized")), (x,))
    for row in found.gains.to_dict("records"):
        finer = copy.deepcopy(snn)
        finer.neurons[row["layer"]].timesteps = 9
        with torch.no_grad():
            source, out = snn.read("analog", x).double(), finer.read("quantized", x).double()
        after = 10 * math.log10(float((source**2).sum() / ((source - out) ** 2).sum()))
        assert after - before == pytest.approx(row["twin_gain_db"], abs=1e-3)
    spikes = found.changes["relu1", "bit"].neuron
    assert (spikes.spikes, spikes.levels_per_step) == ("graded:2", 2)
    torch.testing.assert_close(spikes.threshold, snn.neurons["relu1"].threshold / 2)


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("pool", ["avg", "max"])
def test_the_best_change_keeps_its_promise_on_other_data(build, pool, delay):
    snn, other = build(pool, 4, delay), load("digits", "test", limit=300)
    found = measure_sensitivity(snn, load("digits", "train", limit=500), modes=())
    promised = found.gains["gain_db"].iloc[0]
    before = evaluate(snn, other).sqnr_db
    realised = evaluate(found.apply(copy.deepcopy(snn)), other).sqnr_db - before
    assert promised > 0.5
    assert 0.7 * promised < realised < 1.3 * promised


def test_changes_of_one_layer_add_up(build, digits):
    snn, x = build("avg", 4), digits[0][:40]
    found = measure_sensitivity(snn, x, modes=())
    for kind in ("bias", "look-ahead", "bit"):
        found.apply(snn, "relu2", kind)
    neuron = snn.neurons["relu2"]
    assert (neuron.delay, neuron.spikes) == (1, "graded:2")
    assert torch.equal(neuron.offset, found.changes["relu2", "bias"].neuron.offset)
    torch.testing.assert_close(neuron.threshold, found.changes["relu2", "bit"].neuron.threshold)
    assert [made["change"] for made in snn.provenance["changed"]] == ["bias", "look-ahead", "bit"]


def test_a_layer_that_sees_everything_cannot_look_further(build, digits):
    found = measure_sensitivity(build("avg", 4, "full"), digits[0][:20], gains=("look-ahead", "bit"))
    assert set(found.gains["change"]) == {"bit"}
    assert found.temporal_gap_db == 0
    with pytest.raises(InputError, match="no change of relu1"):
        measure_sensitivity(build("avg", 4, "full"), digits[0][:9], gains=("look-ahead",)).apply(build(), "relu1")


def test_theta_star_undoes_a_wrong_threshold(build):
    snn, data = build("avg", 4, 1), load("digits", "train", limit=100)
    right = snn.neurons["relu3"].threshold.detach().clone()
    snn.neurons["relu3"].set_threshold(6 * right)
    found = measure_sensitivity(snn, data, gains=("threshold",))
    assert (found.gains["layer"].iloc[0], found.gains["change"].iloc[0]) == ("relu3", "threshold")
    assert found.gains["gain_db"].iloc[0] > 1
    torch.testing.assert_close(found.apply(snn).neurons["relu3"].threshold, right)


def test_theta_star_is_found_without_a_calibration(build):
    data = load("digits", "train", limit=200)
    snn, bare = build("avg", 4), build("avg", 4)
    bare.calibration.histograms.clear()
    stored, own = (measure_sensitivity(net, data, modes=(), gains=("threshold",)) for net in (snn, bare))
    for key, change in stored.changes.items():
        torch.testing.assert_close(own.changes[key].neuron.threshold, change.neuron.threshold, rtol=1e-5, atol=0)


def test_the_bias_takes_the_mean_error_away(build, digits):
    snn, x = build("max", 4), digits[0]
    found = measure_sensitivity(snn, x, modes=(), gains=("bias",))

    def errors(network):
        source, reached = {}, {}
        with torch.no_grad():
            network.read("analog", x, observer=lambda tap: source.update({tap.name: tap.output.double()}))
            network.read("spiking", x, observer=lambda tap: reached.update({tap.name: tap.output.double()}))
        dims = {name: [i for i in range(value.ndim) if i != 1] for name, value in source.items()}
        return {name: (reached[name].mean(dims[name]) - source[name].mean(dims[name])).abs() for name in source}

    before = errors(snn)
    for (layer, kind), change in found.changes.items():
        after = errors(found.apply(copy.deepcopy(snn), layer, kind))[layer]
        assert bool((after <= before[layer] + 1e-6).all())
        assert after.mean() < 0.8 * before[layer].mean()
        assert change.settings()["offset"] == change.neuron.offset.tolist()


def test_recalibrating_takes_a_bias_back_and_a_file_keeps_it(build, digits, tmp_path):
    snn, x = build("avg", 4), digits[0][:40]
    plain = snn(x).detach()
    measure_sensitivity(snn, x, modes=(), gains=("bias",)).apply(snn)
    changed = snn(x).detach()
    assert not torch.allclose(changed, plain)
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    torch.testing.assert_close(again(x).detach(), changed)
    torch.testing.assert_close(again.recalibrate()(x).detach(), plain)
