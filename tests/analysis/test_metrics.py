"""Every column of the layer table against numpy on the taps; the split adds up; no figure depends on the batches."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from speedysnn import settings
from speedysnn.analysis import COLUMNS, OUTPUTS, NoiseSums, evaluate, measure_noise
from speedysnn.convert import to_spiking
from speedysnn.errors import InputError

CASES = [(pool, delay, spikes) for pool in ("avg", "max") for delay in (0, 1, "full")
         for spikes in ("binary", "ternary", "graded:2")]  # fmt: skip
FLOATS = ("sqnr_db", "floor_db", "gap_db", "twin_sqnr_db", "gain", "cosine", "rmse_steps", "rmse_ideal", "rate_ideal",
          "share_clip", "share_round", "share_propagated", "share_temporal", "bias", "bias_share", "affine_share",
          "drive_gain", "own_gain")  # fmt: skip
TIES = ("share_round", "share_propagated", "share_temporal", "affine_share", "own_gain")  # Q is float64 here: a tie may flip, 1e-4 each
COUNTED = ("n", "saturated", "silent", "source_silent", "rate", "spikes_per_neuron")


def taps(snn, x):
    """Per layer (source drive, mean spiking drive, spike trains), float64; the trains as they come out step by step."""
    drives, seen = {}, {}
    with torch.no_grad():
        with snn.reading("analog"):
            snn(x, observer=lambda tap: drives.update({tap.name: tap.drive.double().numpy()}))

        def spiking(tap):
            drive, out = tap.drive.double().numpy(), tap.output.double().numpy()
            out = out.reshape(tap.neuron.timesteps, -1, *out.shape[1:])
            mean = drive if tap.static_drive else drive.reshape(tap.neuron.timesteps, -1, *drive.shape[1:]).mean(0)
            seen[tap.name] = mean, out

        snn(x, per_step=True, observer=spiking)
    return {name: (drives[name], *seen[name]) for name in drives}


def affine(z, reached, propagated):
    """Propagated error that the best lines of z on z' remove, by numpy's least squares; the slope of z' on z."""
    rows = [np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]).T for x in (z, reached, propagated)]
    removed = across = down = 0.0
    for own, seen, part in zip(*rows, strict=True):
        line, error = np.stack([seen, np.ones_like(seen)], 1), ((seen - own) ** 2).sum()
        left = ((line @ np.linalg.lstsq(line, own, rcond=None)[0] - own) ** 2).sum()
        removed += part.sum() * (1 - left / error) if error > 0 else 0.0
        across += ((seen - seen.mean()) * (own - own.mean())).sum()
        down += ((own - own.mean()) ** 2).sum()
    return removed, across / down


def own_slope(quantized, a):
    """Slope of the quantizer's output on the activation within channels."""
    q, x = (np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]) for x in (quantized, a))
    return ((q - q.mean(0)) * (x - x.mean(0))).sum() / ((x - x.mean(0)) ** 2).sum()


def reference(neuron, z, reached, trains):
    """The row of one layer, straight from the definitions."""
    steps, most = neuron.timesteps, neuron.levels_per_step
    shape = (1, -1, *[1] * (z.ndim - 2))
    theta = neuron.threshold.detach().double().numpy().reshape(shape)
    v = float(neuron.v_init.detach())

    def q(u):
        return np.clip(np.floor(steps * u / theta + v), 0, steps * most) * theta / steps

    a, r = np.maximum(z, 0), trains.mean(0)
    clipped = np.clip(z, 0, most * theta)
    e, parts = r - a, (clipped - a, q(z) - clipped, q(reached) - q(z), r - q(reached))
    ideal = math.sqrt((v**3 + (1 - v) ** 3) / 3)
    inside = (z > 0) & (z < most * theta)
    counts = np.rint(trains.sum(0) / theta)
    channels = np.moveaxis(e, 1, -1).reshape(-1, e.shape[1])
    removed, slope = affine(z, reached, parts[2] * e)
    share = max(0, min(removed, (parts[2] * e).sum())) / (e**2).sum()
    sqnr = 10 * math.log10((a**2).sum() / (e**2).sum())
    floor = 10 * math.log10((a**2).sum() / (inside * (theta / steps * ideal) ** 2).sum())
    return {
        "n": z.size, "sqnr_db": sqnr, "floor_db": floor, "gap_db": floor - sqnr,
        "twin_sqnr_db": None,
        "gain": (a * r).sum() / (a**2).sum(), "cosine": (a * r).sum() / math.sqrt((a**2).sum() * (r**2).sum()),
        "rmse_steps": math.sqrt(((e * steps / theta) ** 2).mean()), "rmse_ideal": ideal,
        "saturated": (counts == steps * most).mean(), "silent": (r == 0).mean(), "source_silent": (a == 0).mean(),
        "rate": np.count_nonzero(trains) / trains.size, "rate_ideal": (a / theta).mean(),
        "spikes_per_neuron": np.count_nonzero(trains) / z.size, "bias": e.mean(),
        "drive_gain": slope, "affine_share": share, "own_gain": own_slope(q(z), a),
        "bias_share": (channels.sum(0) ** 2 / len(channels)).sum() / (e**2).sum(),
        **{f"share_{name}": (part * e).sum() / (e**2).sum()
           for name, part in zip(("clip", "round", "propagated", "temporal"), parts, strict=True)},
    }  # fmt: skip


@pytest.mark.parametrize(("pool", "delay", "spikes"), CASES)
def test_every_column_is_what_numpy_finds(build, digits, pool, delay, spikes):
    snn, x = build(pool, 4, delay, spikes), digits[0][:40]
    twins = {}
    with torch.no_grad(), snn.reading("quantized"):
        snn(x, observer=lambda tap: twins.update({tap.name: tap.output.double().numpy()}))
    layers = measure_noise(snn, x).layers.set_index("layer")
    seen = taps(snn, x)
    assert list(layers.index) == list(snn.neurons) == list(seen)
    for name, (z, reached, trains) in seen.items():
        row, expected = layers.loc[name], reference(snn.neurons[name], z, reached, trains)
        a = np.maximum(z, 0)
        expected["twin_sqnr_db"] = 10 * math.log10((a**2).sum() / ((twins[name] - a) ** 2).sum())
        for column in COUNTED:
            assert row[column] == pytest.approx(expected[column], rel=1e-12), (name, column)
        for column in FLOATS:
            near = 5e-4 if column in TIES else 1e-6
            assert row[column] == pytest.approx(expected[column], rel=1e-6, abs=near), (name, column)


@pytest.mark.parametrize(("pool", "delay", "spikes"), CASES)
def test_the_four_parts_add_up(build, digits, pool, delay, spikes):
    layers = measure_noise(build(pool, 4, delay, spikes), digits).layers
    shares = layers[["share_clip", "share_round", "share_propagated", "share_temporal"]]
    assert (layers["residual"] < 1e-6).all()
    assert (shares.sum(axis=1) - 1).abs().max() < 1e-6
    if delay == "full":
        assert (layers["share_temporal"] == 0).all()
    assert layers["share_propagated"].iloc[0] == 0
    assert ((layers["affine_share"] >= 0) & (layers["affine_share"] <= layers["share_propagated"].clip(0))).all()
    assert layers["share_temporal"].iloc[0] == 0  # its drive is constant


def test_temporal_share_is_there_without_look_ahead(build, digits):
    assert measure_noise(build(), digits).layers["share_temporal"].iloc[1:].max() > 0.05


SPLITS = [("avg", 0, "binary"), ("max", 1, "ternary"), ("avg", "full", "graded:2")]


@pytest.mark.parametrize(("pool", "delay", "spikes"), SPLITS)
def test_no_figure_depends_on_the_batches(build, digits, pool, delay, spikes):
    snn = build(pool, 4, delay, spikes)
    x, y = digits
    whole = measure_noise(snn, digits)
    for size in (1, 7, 64):
        batches = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
        for split in (measure_noise(snn, batches), measure_noise(snn, digits, batch_size=size)):
            for column in COUNTED:
                assert (split.layers[column] == whole.layers[column]).all(), column
            for column in FLOATS:
                np.testing.assert_allclose(split.layers[column], whole.layers[column], rtol=1e-9, atol=1e-15)
            assert split.outputs == whole.outputs
            assert split.verdict == whole.verdict


def test_evaluate_does_not_depend_on_the_batches(build, digits):
    snn, (x, y) = build("max"), digits
    whole = evaluate(snn, digits)
    assert all(evaluate(snn, [(x[i : i + n], y[i : i + n]) for i in range(0, 130, n)]) == whole for n in (1, 7, 64))


def test_bfloat16_is_measured_beside_float32(build, digits):
    snn, (x, y) = build("max", 4, 1), digits
    exact, half = evaluate(snn, digits), evaluate(snn, digits, precision="bfloat16")
    with torch.no_grad():
        plain = snn(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = snn(x)
    assert not torch.equal(rough.float(), plain)
    assert half.accuracy == (rough.argmax(1) == y).double().mean().item()
    assert half.float32_accuracy == exact.accuracy
    assert half.float32_agreement == (rough.argmax(1) == plain.argmax(1)).double().mean().item()
    assert half.twin_accuracy == exact.twin_accuracy  # the other readings stay in float32
    assert (exact.precision, exact.float32_accuracy) == ("float32", None)
    with pytest.raises(InputError, match="float32, bfloat16"):
        evaluate(snn, digits, precision="float16")


@pytest.mark.parametrize(("delay", "spikes"), [(0, "binary"), (1, "graded:2"), ("full", "ternary")])
def test_evaluate_is_the_hand_computation(build, digits, delay, spikes):
    snn, (x, y) = build("max", 4, delay, spikes), digits
    out, events = {}, 0
    with torch.no_grad():
        for reading in ("analog", "quantized", "spiking"):
            with snn.reading(reading):
                out[reading] = snn(x)
        trains = taps(snn, x)
    events = sum(np.count_nonzero(train) for _, _, train in trains.values())
    neurons = sum(z[0].size for z, _, _ in trains.values())
    found = evaluate(snn, digits)
    right = {name: (value.argmax(1) == y).float().mean().item() for name, value in out.items()}
    noise = ((out["spiking"].double() - out["analog"].double()) ** 2).sum().item()
    power = (out["analog"].double() ** 2).sum().item()
    assert (found.images, found.neurons, found.timesteps, found.delay, found.spikes) == (130, neurons, 4, delay, spikes)
    assert found.accuracy == pytest.approx(right["spiking"], abs=1e-7)
    assert found.twin_accuracy == pytest.approx(right["quantized"], abs=1e-7)
    assert found.analog_accuracy == pytest.approx(right["analog"], abs=1e-7)
    same = (out["spiking"].argmax(1) == out["analog"].argmax(1)).float().mean().item()
    assert found.agreement == pytest.approx(same, abs=1e-7)
    assert found.sqnr_db == pytest.approx(10 * math.log10(power / noise), rel=1e-4)
    assert found.logit_error == pytest.approx(math.sqrt(noise / power), rel=1e-4)
    assert found.temporal_gap_db == pytest.approx(found.twin_sqnr_db - found.sqnr_db, abs=1e-12)
    assert found.spikes_per_inference == events / 130
    assert found.spikes_per_neuron == pytest.approx(events / 130 / neurons, rel=1e-12)
    assert found.latency == snn.latency
    assert found.depth == snn.depth


def test_measure_and_evaluate_tell_the_same(build, digits):
    snn = build("max", 4, 1)
    outputs, found = measure_noise(snn, digits).outputs, evaluate(snn, digits).to_json()
    for name in ("accuracy", "agreement", "sqnr_db", "twin_sqnr_db", "spikes_per_inference", "neurons", "latency"):
        assert outputs[name] == found[name], name


def test_without_labels_accuracies_are_none_and_agreement_is_not(build, digits):
    found = evaluate(build(), digits[0])
    assert found.accuracy is found.twin_accuracy is found.analog_accuracy is None
    assert found.agreement is not None


def test_against_the_network_before_tuning(build, digits):
    before, tuned = build(), build()
    for neuron in tuned.neurons.values():
        neuron.set_threshold(0.7 * neuron.threshold)
    against = measure_noise(tuned, digits, before)
    assert (against.layers["residual"] < 1e-6).all()
    assert against.outputs["reference"] == "analog reading of the source network"
    with torch.no_grad():  # other weights in the source: what the first layer brings in is its own error then
        next(iter(before.layers.values())).weight.mul_(1.3)
    moved = measure_noise(tuned, digits, before)
    assert (moved.layers["residual"] < 1e-6).all()
    assert moved.layers["share_propagated"].iloc[0] > 0.01


def test_against_the_original_module(build, digits):
    from speedysnn.assets.digits import load_digits_net

    found = measure_noise(build(), digits, load_digits_net("avg")).outputs
    own = measure_noise(build(), digits).outputs
    assert found["reference"] == "source module"
    assert found["sqnr_db"] == pytest.approx(own["sqnr_db"], abs=1e-3)


def test_a_report_says_how_numbers_were_summed(build, digits):
    snn, (x, _) = build(), digits
    with settings.using(events="never", tiles="never"):
        found = measure_noise(snn, x)
    expected = {"events": "never", "tiles": "never", "kernel": "fastest"}
    assert found.outputs["execution"] == expected
    assert found.to_json()["outputs"]["execution"] == expected
    with settings.using(events="measure", tiles="measure"):  # no stopwatch decides here, whichever way sums are made
        assert measure_noise(snn, x).outputs["execution"]["events"] == "fixed"
        sums = NoiseSums(snn).add(x)
        assert sums.report().outputs["execution"]["tiles"] == "never"


def test_every_column_is_documented(build, digits):
    noise = measure_noise(build(), digits)
    assert list(noise.layers.columns) == list(COLUMNS)
    assert set(noise.outputs) <= set(OUTPUTS)
    for name, column in {**COLUMNS, **OUTPUTS}.items():
        assert column.unit, name
        assert column.meaning, name
        assert column.meaning.endswith("."), name
        assert column.higher_is_better in (True, False, None)
    for name in ("sqnr_db", "twin_sqnr_db", "cosine"):
        assert COLUMNS[name].higher_is_better is True
    for name in ("gap_db", "rmse_steps", "saturated", "rate", "spikes_per_neuron", "residual"):
        assert COLUMNS[name].higher_is_better is False


def test_the_floor_is_what_uniform_rounding_leaves():
    """Uniform drive inside the range: SQNR is 6.02 + 20 log10 T, and the error is 0.289 steps."""
    net = nn.Sequential(nn.ReLU())
    x = torch.rand(400, 100, generator=torch.Generator().manual_seed(0))
    for steps in (4, 16):
        snn = to_spiking(net, x, timesteps=steps, threshold="max", granularity="layer")
        row = measure_noise(snn, x).layers.iloc[0]
        assert row["sqnr_db"] == pytest.approx(6.02 + 20 * math.log10(steps), abs=0.1)
        assert row["floor_db"] == pytest.approx(row["sqnr_db"], abs=0.1)
        assert row["rmse_steps"] == pytest.approx(1 / math.sqrt(12), rel=0.01)
        assert row["share_round"] == pytest.approx(1, abs=1e-6)
