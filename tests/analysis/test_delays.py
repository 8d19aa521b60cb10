"""Look-aheads chosen layer by layer: what is kept, what is least, and what is left as it was."""

import itertools
import json

import pytest
import torch
from torch import nn

from speedysnn.analysis import DelayChoice, choose_delay, evaluate, measure_noise
from speedysnn.convert import to_spiking
from speedysnn.data import load
from speedysnn.errors import DataError, InputError


@pytest.fixture(scope="module")
def validation():
    """Images of the train split that no calibration saw, and their labels."""
    data = list(load("digits", "train", limit=330))[200:]
    return torch.stack([x for x, _ in data]), torch.tensor([int(y) for _, y in data])


def delays_of(snn):
    return {name: neuron.delay for name, neuron in snn.neurons.items()}


def halfway(snn, data, most):
    """Output SQNR in the middle between no look-ahead and that of `most` steps everywhere; the network has none."""
    ends = []
    for d in (most, 0):
        snn.set_delay(d)
        ends.append(evaluate(snn, data).sqnr_db)
    assert ends[0] > ends[1] + 0.2
    return sum(ends) / 2


def test_the_target_is_kept_as_an_evaluation_finds_it(build, validation):
    snn = build("max", 4)
    goal = halfway(snn, validation, 2)
    choice = choose_delay(snn, validation, sqnr_db=goal)
    choice.apply(snn)
    found = evaluate(snn, validation)
    assert delays_of(snn) == choice.delays
    assert found.sqnr_db == choice.figures["sqnr_db"] >= goal
    assert found.accuracy == choice.figures["accuracy"]
    assert found.agreement == choice.figures["agreement"]
    assert found.latency == choice.latency == snn.latency <= choice.uniform_latency
    assert sum(choice.delays.values()) > 0


def test_no_single_layer_can_do_with_less(build, validation):
    snn = build("max", 4)
    goal = halfway(snn, validation, 1)
    choice = choose_delay(snn, validation, sqnr_db=goal, largest=1)
    lowered = [name for name, d in choice.delays.items() if d]
    assert lowered
    for name in lowered:
        snn.set_delay({**choice.delays, name: 0})
        assert evaluate(snn, validation).sqnr_db < goal


def test_exhaustive_search_finds_nothing_quicker_on_three_layers():
    torch.manual_seed(0)
    sizes = (20, 24, 24, 24)
    body = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b, bias=False), nn.ReLU())]
    images = torch.randn(96, 20)
    snn = to_spiking(nn.Sequential(*body, nn.Linear(24, 5, bias=False)), images, timesteps=4)
    goal = halfway(snn, images, 2)
    choice = choose_delay(snn, images, sqnr_db=goal)
    latencies = []
    for setting in itertools.product(range(3), repeat=3):
        snn.set_delay(dict(zip(snn.neurons, setting, strict=True)))
        if evaluate(snn, images).sqnr_db >= goal:
            latencies.append(snn.latency)
    assert choice.latency == min(latencies) > 4
    assert next(iter(choice.delays.values())) == 0  # constant drive: look-ahead corrects nothing in the first layer
    assert next(iter(choice.temporal_db.values())) == float("inf")


def test_temporal_error_is_that_of_the_noise_report(build, validation):
    snn = build("avg", 4)
    choice = choose_delay(snn, validation, agreement=0)
    rows = measure_noise(snn, validation).layers.set_index("layer")
    for name, decibels in choice.temporal_db.items():
        assert (decibels == float("inf")) == (rows.loc[name, "share_temporal"] == 0)


def test_no_look_ahead_where_none_is_needed(build, validation):
    choice = choose_delay(build("avg", 4), validation, agreement=0)
    assert set(choice.delays.values()) == {0}
    assert choice.latency == choice.timesteps == 4
    assert choice.tried["lookahead"].min() == 0


@pytest.mark.parametrize("start", [0, 2, "full"])
def test_the_network_is_left_as_it_was(build, validation, start):
    snn = build("avg", 4, start)
    before = delays_of(snn)
    choose_delay(snn, validation, agreement=0.9, largest=1)
    assert delays_of(snn) == before


def test_and_after_an_error(build, validation):
    snn = build("avg", 4, 1)
    for broken in (validation[0][:, :, :4], validation[0] * float("nan")):
        with pytest.raises(DataError):
            choose_delay(snn, broken, agreement=0.9)
        assert set(delays_of(snn).values()) == {1}
    with pytest.raises(InputError, match="sqnr_db 500"):
        choose_delay(snn, validation, sqnr_db=500)
    assert set(delays_of(snn).values()) == {1}


def test_batches_do_not_matter(build, validation):
    x, y = validation
    goal = halfway(build("max", 4), validation, 2)
    found = [choose_delay(build("max", 4), [(x[i : i + n], y[i : i + n]) for i in range(0, len(x), n)], sqnr_db=goal)
             for n in (7, 64, len(x))]  # fmt: skip
    assert json.dumps(found[0].to_json()) == json.dumps(found[1].to_json()) == json.dumps(found[2].to_json())


def test_table_and_json(build, validation):
    choice = choose_delay(build("avg", 4), validation, accuracy=0.5, agreement=0.5, largest=1)
    assert isinstance(choice, DelayChoice)
    kept = (choice.tried["accuracy"] >= 0.5) & (choice.tried["agreement"] >= 0.5)
    assert (choice.tried["kept"] == kept).all()
    columns = [f"delay {name}" for name in choice.delays]
    assert not choice.tried.duplicated(columns).any()
    assert (choice.tried[columns].sum(axis=1) == choice.tried["lookahead"]).all()
    assert json.loads(json.dumps(choice.to_json(), allow_nan=False))["delays"] == choice.delays


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "expected a target"),
        ({"accuracy": 95}, "accuracy: expected a fraction"),
        ({"agreement": -0.1}, "agreement: expected a fraction"),
        ({"sqnr_db": float("nan")}, "sqnr_db: expected a number of dB"),
        ({"agreement": 0.9, "largest": 5}, "largest: expected a whole number of steps from 0 to T = 4, got 5"),
        ({"agreement": 0.9, "largest": True}, "largest"),
    ],
)
def test_bad_options(build, validation, options, said):
    with pytest.raises(InputError, match=said):
        choose_delay(build("avg", 4), validation, **options)


def test_accuracy_needs_labels(build, validation):
    with pytest.raises(InputError, match="accuracy: expected labels"):
        choose_delay(build("avg", 4), validation[0], accuracy=0.9)


def test_a_choice_fits_its_network_and_its_steps_only(build, validation):
    snn = build("avg", 4)
    choice = choose_delay(snn, validation, agreement=0)
    snn.timesteps = 8
    with pytest.raises(InputError, match="chosen for T = 4"):
        choice.apply(snn)
    other = to_spiking(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.rand(4, 3), timesteps=4)
    with pytest.raises(InputError, match="expected the network of the choice"):
        choice.apply(other)
