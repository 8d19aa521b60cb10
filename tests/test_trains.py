"""Recorded spike trains: what the network emitted, step by step; packed, saved and read again without loss."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from speedysnn import spike_trains
from speedysnn.assets.digits import load_digits_net
from speedysnn.convert import to_spiking
from speedysnn.data import load
from speedysnn.errors import DataError, InputError
from speedysnn.network import SpikingNetwork
from speedysnn.spike_trains import SpikeTrain


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    data = load("digits", "test", limit=21)
    return torch.stack([data[i][0] for i in range(len(data))])


def network(images: torch.Tensor, spikes: str, delay: int | str) -> SpikingNetwork:
    snn = to_spiking(load_digits_net("avg"), images, timesteps=3, spikes=spikes)
    snn.set_delay(delay)  # type: ignore[arg-type]
    return snn


@pytest.mark.parametrize("delay", [0, 1, "full"])
@pytest.mark.parametrize("spikes", ["binary", "ternary", "graded:3", "power2:3"])
def test_trains_are_what_the_network_emitted(images, spikes, delay):
    snn = network(images, spikes, delay)
    seen = {}
    with torch.no_grad():
        snn(images, per_step=True, observer=lambda tap: seen.update({tap.name: tap}))
    found = spike_trains.record(snn, images)
    assert list(found) == list(snn.neurons)
    for name, train in found.items():
        neuron, tap = snn.neurons[name], seen[name]
        assert train.shape == (3, 21, *tap.output.shape[1:])
        value = train.counts.flatten(0, 1) * neuron.per_channel(neuron.threshold.detach(), tap.output.ndim)
        assert torch.equal(value, tap.output)
    if spikes == "binary":
        assert all(train.data.nbytes == math.ceil(math.prod(train.shape) / 8) for train in found.values())


def test_some_layers_alone(images):
    snn = network(images, "binary", 1)
    name = list(snn.neurons)[1]
    assert list(spike_trains.record(snn, images, layers=[name])) == [name]
    with pytest.raises(InputError, match="no neuron is called 'nose'"):
        spike_trains.record(snn, images, layers=["nose"])


@given(arrays("int16", st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 5)), elements=st.integers(-3, 3)))
def test_packing_loses_nothing(values):
    for counts in (torch.from_numpy(values), torch.from_numpy(values).abs().clamp_max(1)):
        assert torch.equal(SpikeTrain.of(counts).counts, counts.to(torch.int8))


def test_more_than_a_byte_is_refused():
    with pytest.raises(InputError, match="at most 127 spikes a step"):
        SpikeTrain.of(torch.tensor([[200]]))


def test_files(images, tmp_path: Path):
    found = spike_trains.record(network(images, "ternary", 0), images)
    path = tmp_path / "trains.safetensors"
    spike_trains.save(found, path)
    again = spike_trains.load(path)
    assert list(again) == list(found)
    assert all(torch.equal(again[name].counts, train.counts) for name, train in found.items())
    with pytest.raises(DataError, match="cannot be written"):
        spike_trains.save(found, tmp_path / "trains.safetensors" / "inside")
    assert spike_trains.load(path)


def test_other_files_are_refused(tmp_path: Path):
    odd = SpikeTrain(torch.zeros(2, dtype=torch.uint8), (3, 10**9))
    spike_trains.save({"a": odd}, tmp_path / "lies")
    (tmp_path / "text").write_text("no spikes")
    for name in ("lies", "text", "missing", "."):
        with pytest.raises(DataError, match="expected a file written by"):
            spike_trains.load(tmp_path / name)
