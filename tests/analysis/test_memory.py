"""Memory of a noise measurement: predicted to the byte, below its limit, and a sample that is part of the whole."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from speedysnn.analysis import SUMS, NoiseSums, Sum, measure_noise
from speedysnn.analysis.memory import LEAST, MIB, places, planned
from speedysnn.convert import to_spiking
from speedysnn.errors import InputError
from speedysnn.neurons import IFNeuron

WHOLE = ("units_read", "dead_units", "lost_units", "saturated_units", "channel_correlation", "channels_compared")


@pytest.fixture(scope="module")
def wide():
    """A network with one layer of 16,384 neurons, one of 256 and one of 12; and images."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(8), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_((weight * 64).round() / 64)  # sums without rounding, whatever the number of images in a pass
    x = (torch.randn(21, 1, 32, 32) * 8).round() / 8
    return to_spiking(net.eval(), x, timesteps=3), x


def least(snn, x, **options):
    """The smallest limit that is accepted, in MiB."""
    with pytest.raises(InputError, match="memory_mib: expected at least") as error:
        measure_noise(snn, x, memory_mib=0.01, **options)
    return float(str(error.value).split("at least ")[1].split()[0])


def held(sums):
    return {
        name: sum(x.nbytes for x in layer.sums.values()) + (0 if layer.places is None else layer.places.nbytes)
        for name, layer in sums.layers.items()
    }


@pytest.mark.parametrize("detail", ["standard", "full"])
@pytest.mark.parametrize("limit", [1024, 1.2])
@pytest.mark.parametrize("delay", [0, "full"])
def test_what_is_held_is_what_was_predicted(wide, detail, limit, delay):
    snn, x = wide
    snn.set_delay(delay)
    sums = NoiseSums(snn, detail=detail, memory_mib=limit).add(x)
    snn.set_delay(0)
    assert held(sums) == {name: layer.bytes for name, layer in sums.memory.layers.items()}
    assert sums.memory.predicted_mib <= limit
    assert bool(sums.memory.sampled) == sums.memory.tight == (limit < 2)


def test_a_users_sums_are_held_and_predicted(wide, monkeypatch):
    snn, x = wide
    plain = NoiseSums(snn).add(x[:4]).memory
    monkeypatch.setitem(SUMS, "low", Sum("channel", "elements", "Too small.", lambda block: block.e < 0))
    monkeypatch.setitem(SUMS, "busy", Sum("count", "images", "Busy.", lambda i: i.fired.flatten(1).any(1), "image"))
    monkeypatch.setitem(SUMS, "off", Sum("total", "activation", "Off.", lambda block: block.e.abs()))
    sums = NoiseSums(snn).add(x)
    assert held(sums) == {name: layer.bytes for name, layer in sums.memory.layers.items()}
    for name, layer in sums.memory.layers.items():
        assert layer.bytes == plain.layers[name].bytes + 8 * (layer.channels + 2)
    assert sums.memory.image_bytes > plain.image_bytes
    with pytest.raises(InputError, match="memory_mib"):
        measure_noise(snn, x, memory_mib=plain.sums_bytes / MIB / 4)


def test_a_sample_is_part_of_the_whole(wide):
    snn, x = wide
    whole, part = NoiseSums(snn, detail="full").add(x), NoiseSums(snn, detail="full", memory_mib=1.2, seed=3).add(x)
    first, *rest = part.layers
    assert list(part.memory.sampled) == [first]
    chosen = part.layers[first].places.long()
    assert LEAST <= len(chosen) == part.memory.layers[first].read < 16384
    assert (chosen.diff() > 0).all()
    for name in ("fires", "full", "peak"):
        assert torch.equal(part.layers[first].sums[name], whole.layers[first].sums[name][chosen]), name
        for layer in rest:
            torch.testing.assert_close(part.layers[layer].sums[name], whole.layers[layer].sums[name])
    a, b = whole.report(), part.report()
    same = [name for name in a.layers.columns if name not in WHOLE]
    torch.testing.assert_close(
        torch.tensor(a.layers[same].select_dtypes("number").to_numpy(float)),
        torch.tensor(b.layers[same].select_dtypes("number").to_numpy(float)), rtol=1e-6, atol=1e-9, equal_nan=True,
    )  # fmt: skip
    known = {unit.index: unit.value for unit in a.details[first].units.worst_saturated}
    full = whole.layers[first].sums["full"].reshape(16, 32, 32)
    for unit in b.details[first].units.worst_saturated:  # named by its place in the layer, not in the sample
        assert unit.value == pytest.approx(full[unit.index].item() / len(x))
    assert known
    assert b.layers["units"].tolist() == a.layers["units"].tolist() == [16384, 256, 12]


@pytest.mark.parametrize("limit", [1024, 1.2])
@pytest.mark.parametrize("cut", [0, 1, 13])
def test_parts_of_a_sample_add_up(wide, limit, cut):
    snn, x = wide
    whole = NoiseSums(snn, memory_mib=limit, seed=1).add(x)
    merged = NoiseSums(snn, memory_mib=limit, seed=1)
    if cut:
        merged.add(x[:cut])
    merged.add_state(NoiseSums(snn, memory_mib=limit, seed=1).add(x[cut:]).state())
    for name, layer in whole.layers.items():
        for key in ("fires", "full", "peak", "counts", "bins"):
            torch.testing.assert_close(merged.layers[name].sums[key], layer.sums[key])
    report, expected = merged.report(), whole.report()
    assert report.memory.sampled == expected.memory.sampled
    assert [d.units for d in report.details.values()] == [d.units for d in expected.details.values()]


def test_another_sample_or_size_is_refused(wide):
    snn, x = wide
    own = NoiseSums(snn, memory_mib=1.2).add(x[:4])
    for other in (NoiseSums(snn, memory_mib=1.2, seed=1), NoiseSums(snn)):
        with pytest.raises(InputError, match="same memory_mib and seed"):
            own.add_state(other.add(x[4:]).state())


def test_a_limit_too_small_is_refused_with_one_that_does(wide):
    snn, x = wide
    for detail in ("standard", "full"):
        enough = least(snn, x, detail=detail)
        assert measure_noise(snn, x[:2], memory_mib=enough, detail=detail).memory.predicted_mib <= enough
    for wrong in (0, -1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(InputError, match="memory_mib"):
            measure_noise(snn, x, memory_mib=wrong)
    for wrong in (-1, 1.5, True):
        with pytest.raises(InputError, match="seed"):
            measure_noise(snn, x, seed=wrong)


def test_the_report_says_what_was_sampled(wide, tmp_path):
    snn, x = wide
    noise = measure_noise(snn, x, memory_mib=1.2, seed=5)
    folder = noise.save(tmp_path / "report")
    (name, layer), *_ = noise.memory.sampled.items()
    data = json.loads((folder / "noise.json").read_text())
    assert data["memory"]["sampled"] == {name: {"read": layer.read, "neurons": 16384}}
    assert (data["memory"]["seed"], data["memory"]["limit_mib"]) == (5, 1.2)
    assert data["memory"]["predicted_mib"] <= 1.2
    words = f"(seed 5) of 1 of 3 layers: {name} {layer.read:,} of 16,384"
    assert words in (folder / "report.html").read_text()
    assert words in (folder / "report.md").read_text()
    assert "All neurons were read." in measure_noise(snn, x).memory.sentence()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.floats(0.05, 40), st.booleans(), st.integers(1, 8), st.integers(1, 64),
)  # fmt: skip
def test_any_plan_stays_below_its_limit(shapes, limit, full, at_once, images):
    neurons = {f"n{i}": IFNeuron(1.0, 0.5, timesteps=4) for i in range(len(shapes))}
    given_shapes = dict(zip(neurons, shapes, strict=True))
    width = max(a * b * c for a, b, c in shapes)

    def plan(at_once, limit=limit):
        return planned(given_shapes, neurons, full=full, limit_mib=limit, seed=0, images=images, at_once=at_once, width=width)

    try:
        memory = plan(at_once)
    except InputError as err:
        enough = float(str(err).split("at least ")[1].split()[0])
        assert enough > limit
        memory, limit = plan(at_once, enough), enough
    assert memory.predicted_mib <= limit
    assert 1 <= memory.images <= images
    assert 1 <= memory.at_once <= at_once
    assert memory.sums_bytes + memory.passes_bytes <= limit * MIB
    reads = {layer.read for layer in memory.sampled.values()}
    assert len(reads) <= 1  # as many in every sampled layer
    assert all(layer.read >= min(LEAST, layer.neurons) for layer in memory.layers.values())
    assert plan(1, limit).sampled == memory.sampled  # whatever the number of threads


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 9), st.integers(0, 9))
def test_places_are_drawn_without_repeats(neurons, read, seed, place):
    read = min(read, neurons)
    drawn = places(neurons, read, (seed, place))
    assert len(drawn.unique()) == len(drawn) == read
    assert drawn.min() >= 0
    assert drawn.max() < neurons
    assert torch.equal(drawn, places(neurons, read, (seed, place)))
