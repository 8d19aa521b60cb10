"""Delayed read-out, early exit and the choice of its threshold, each against numpy on the running means."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speedysnn import analysis, convert
from speedysnn.analysis.early_exit import MEASURES, exit_steps
from speedysnn.analysis.readout import read_after
from speedysnn.encoders import EncodedImages
from speedysnn.errors import DataError, InputError


def numpy_confidence(means, measure):
    """(T, B, C) -> (T, B), straight from the definitions."""
    if measure == "softmax":
        p = np.exp(means - means.max(-1, keepdims=True))
        return (p / p.sum(-1, keepdims=True)).max(-1)
    ordered = np.sort(means, -1)
    return ordered[..., -1] - ordered[..., -2]


def numpy_exits(means, measure, threshold):
    """Exit step and answer of every image, one at a time."""
    confidence, steps, answers = numpy_confidence(means, measure), [], []
    for image in range(means.shape[1]):
        sure = np.flatnonzero(confidence[:, image] >= threshold)
        steps.append(int(sure[0]) + 1 if len(sure) else len(means))
        answers.append(int(means[steps[-1] - 1, image].argmax()))
    return np.array(steps), np.array(answers)


@given(steps=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_read_after_is_the_mean_of_the_later_steps(steps, seed):
    outputs = np.random.default_rng(seed).normal(size=(steps, 5, 3))
    means = np.cumsum(outputs, 0) / np.arange(1, steps + 1)[:, None, None]
    for skip in range(steps):
        out = read_after(torch.from_numpy(means), skip).numpy()
        np.testing.assert_allclose(out, outputs[skip:].mean(0), atol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
@given(steps=st.integers(1, 8), seed=st.integers(0, 10**6), threshold=st.floats(0, 1.2))
def test_exits_are_what_numpy_finds(measure, steps, seed, threshold):
    means = np.random.default_rng(seed).normal(size=(steps, 20, 4)) * 2
    confidence = MEASURES[measure](torch.from_numpy(means))
    np.testing.assert_allclose(confidence.numpy(), numpy_confidence(means, measure), rtol=1e-12)
    assert exit_steps(confidence, threshold).tolist() == numpy_exits(means, measure, threshold)[0].tolist()


def test_exit_does_not_change_what_it_is_given():
    confidence = torch.zeros(3, 2)
    assert exit_steps(confidence, 0.5).tolist() == [3, 3]
    assert not confidence.any()
    assert exit_steps(confidence, -1).tolist() == [1, 1]


def per_step(snn, x):
    """Running means and every neuron's train, numpy."""
    trains = {}
    with torch.no_grad():
        means = snn(x, per_step=True, observer=lambda tap: trains.update({tap.name: tap.output.numpy()}))
        with snn.reading("analog"):
            source = snn(x)
    steps = snn.timesteps
    trains = {name: out.reshape(steps, -1, *out.shape[1:]) for name, out in trains.items()}
    return means.double().numpy(), source.double().numpy(), trains


@pytest.mark.parametrize(("delay", "spikes"), [(0, "binary"), (1, "ternary"), ("full", "graded:2")])
def test_delayed_readout_against_numpy(build, digits, delay, spikes):
    snn, (x, y) = build("avg", 4, delay, spikes), digits
    means, source, trains = per_step(snn, x)
    table = analysis.delayed_readout(snn, (x, y), (0, 1, 3, 1)).set_index("skip")
    assert list(table.index) == [0, 1, 3]
    for skip, row in table.iterrows():
        out = (means[-1] * 4 - (means[skip - 1] * skip if skip else 0)) / (4 - skip)
        assert row.steps_read == 4 - skip
        assert row.accuracy == pytest.approx((out.argmax(1) == y.numpy()).mean())
        assert row.agreement == pytest.approx((out.argmax(1) == source.argmax(1)).mean())
        assert row.logit_error == pytest.approx(np.linalg.norm(out - source) / np.linalg.norm(source), rel=1e-4)
        neurons = sum(train[0, 0].size for train in trains.values())
        assert row.spikes_per_neuron == pytest.approx(sum(map(np.count_nonzero, trains.values())) / neurons / len(x))
    whole = analysis.evaluate(snn, (x, y))
    assert table.accuracy[0] == whole.accuracy
    assert table.spikes_per_neuron[0] == pytest.approx(whole.spikes_per_neuron)
    assert set(table.latency) == {snn.latency}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("delay", "spikes"), [(0, "binary"), (1, "ternary"), ("full", "graded:2")])
def test_early_exit_against_numpy(build, digits, delay, spikes, measure):
    snn, (x, y) = build("avg", 4, delay, spikes), digits
    means, source, trains = per_step(snn, x)
    table = analysis.early_exit(snn, (x, y), (0.3, 0.97, 1e9), measure=measure).set_index("confidence")
    lag, lags = 0, {}
    for name in snn.neurons:  # a chain: every layer trails the one before by its look-ahead
        lag += snn.neurons[name].lookahead
        lags[name] = lag
    for threshold, row in table.iterrows():
        steps, answers = numpy_exits(means, measure, threshold)
        assert row.mean_steps == pytest.approx(steps.mean())
        assert row.mean_latency == pytest.approx(steps.mean() + snn.latency - 4)
        assert (row.median_steps, row.p90_steps) == (np.quantile(steps, 0.5, method="lower"),
                                                     np.quantile(steps, 0.9, method="higher"))  # fmt: skip
        assert [row[f"exit_{t}"] for t in range(1, 5)] == pytest.approx([(steps == t).mean() for t in range(1, 5)])
        assert row.accuracy == pytest.approx((answers == y.numpy()).mean())
        assert row.agreement == pytest.approx((answers == source.argmax(1)).mean())
        assert row.unchanged == pytest.approx((answers == means[-1].argmax(1)).mean())
        spent = sum(np.count_nonzero(train[: min(4, step + lag - lags[name]), i])
                    for name, train in trains.items() for i, step in enumerate(steps))  # fmt: skip
        neurons = sum(train[0, 0].size for train in trains.values())
        assert row.spikes_per_neuron == pytest.approx(spent / neurons / len(x))
    never = table.loc[1e9]
    assert (never.mean_steps, never.unchanged, never.mean_latency) == (4, 1, snn.latency)


def test_no_figure_depends_on_the_batches(build, digits):
    snn, (x, y) = build(), digits
    whole = analysis.early_exit(snn, (x, y), (0.9,))
    parts = analysis.early_exit(snn, [(x[i : i + 7], y[i : i + 7]) for i in range(0, len(x), 7)], (0.9,))
    assert whole.equals(parts)
    assert analysis.early_exit(snn, (x, y), (0.9,), limit=13).images.tolist() == [13]


def test_without_labels(build, digits):
    snn, x = build(), digits[0]
    assert analysis.early_exit(snn, x, (0.9,)).accuracy.tolist() == [None]
    assert analysis.delayed_readout(snn, x, (1,)).accuracy.tolist() == [None]
    assert analysis.choose_confidence(snn, x, 0.02).criterion == "unchanged"


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("allowed", [0.0, 0.02, 0.1])
def test_the_choice_keeps_its_promise_and_is_the_lowest(build, digits, allowed, measure, labelled):
    snn, (x, y) = build("avg", 4, 0), digits
    means, _, _ = per_step(snn, x)
    chosen = analysis.choose_confidence(snn, (x, y) if labelled else x, allowed, measure=measure)
    last = means[-1].argmax(1)

    def loss(threshold):
        answers = numpy_exits(means, measure, threshold)[1]
        return ((last == y.numpy()) * 1.0 - (answers == y.numpy())) if labelled else (answers != last) * 1.0

    own = loss(chosen.confidence)
    assert chosen.loss == pytest.approx(own.mean())
    assert chosen.loss <= allowed
    assert chosen.loss_error == pytest.approx(own.std() / math.sqrt(len(x)))
    near = [numpy_exits(means, measure, chosen.confidence * (1 + d))[0].mean() for d in (-1e-9, 1e-9)]
    assert near[0] - 1e-6 <= chosen.mean_steps <= near[1] + 1e-6  # one image has that confidence, to the last bit or so
    confidences = numpy_confidence(means, measure)
    higher = np.quantile(confidences[confidences > chosen.confidence], np.linspace(0, 1, 30)) if allowed < 0.1 else []
    assert all(loss(value).mean() <= allowed + 0.02 for value in higher)
    lower = np.quantile(confidences, max(0, (confidences < chosen.confidence).mean() - 0.02))
    assert chosen.mean_steps == 1 or loss(lower).mean() > allowed - 0.02
    json.dumps(chosen.to_json(), allow_nan=False)


def test_events_are_read_out_too(build):
    from speedysnn.data import load

    snn, data = build(), EncodedImages(load("digits", "test", limit=70), 4, "poisson")
    events, labels = torch.stack([x for x, _ in data], 1), torch.tensor([y for _, y in data])
    means, _, _ = per_step(snn, events)
    row = analysis.early_exit(snn, data, (0.9,)).iloc[0]
    steps, answers = numpy_exits(means, "softmax", 0.9)
    assert row.mean_steps == pytest.approx(steps.mean())
    assert row.accuracy == pytest.approx((answers == labels.numpy()).mean())
    assert analysis.delayed_readout(snn, data, (0,)).accuracy[0] == analysis.evaluate(snn, data).accuracy


class Pixels(nn.Module):
    """Answers (B, 3, 4, 4), no classes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


MISTAKES = {
    "skip": (lambda snn, x: analysis.delayed_readout(snn, x, (0, 4)), "from 0 to 3 .T - 1., got 4"),
    "negative skip": (lambda snn, x: analysis.delayed_readout(snn, x, (-1,)), "got -1"),
    "no confidence": (lambda snn, x: analysis.early_exit(snn, x, ()), "expected one or more numbers"),
    "NaN": (lambda snn, x: analysis.early_exit(snn, x, (math.nan,)), "expected one or more numbers"),
    "measure": (lambda snn, x: analysis.early_exit(snn, x, measure="vote"), "expected one of margin, softmax, got 'vote'"),
    "loss": (lambda snn, x: analysis.choose_confidence(snn, x, 2), "a fraction in 0..1, got 2"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(build, digits, mistake):
    call, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message):
        call(build(), digits[0])


def test_outputs_that_are_no_classes_are_refused(build):
    x = torch.rand(8, 1, 4, 4)
    snn = convert.to_spiking(Pixels(), x)
    for call in (analysis.early_exit, analysis.delayed_readout, analysis.choose_confidence):
        with pytest.raises(InputError, match=r"expected outputs \(B, classes\) of at least two classes"):
            call(snn, x)
    with pytest.raises(DataError, match="does not run on a batch"):
        analysis.early_exit(build(), torch.rand(2, 3, 8, 8))
