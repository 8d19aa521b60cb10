"""By default a large network is measured in passes of several images, and the same ones on every call."""

from operator import length_hint

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from speedysnn.analysis import memory
from speedysnn.analysis.memory import DEFAULT_MIB, SENSIBLE_IMAGES, planned
from speedysnn.analysis.reference import passes
from speedysnn.analysis.sensitivity import memory as sensitivity_memory
from speedysnn.analysis.sensitivity.memory import planned_sensitivity
from speedysnn.neurons import IFNeuron

SHAPES = {f"relu{i}": (64, 112, 112) for i in range(12)}  # 9.6 million neurons, as in a ResNet-50 of 224 pixels


def plan(shapes, limit, images=16):
    neurons = {name: IFNeuron(1.0, timesteps=8) for name in shapes}
    return planned(shapes, neurons, full=False, limit_mib=limit, seed=0, images=images, at_once=2, width=802_816)


def test_a_large_network_does_not_fall_to_one_image_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 32 * 2**30)
    assert plan(SHAPES, DEFAULT_MIB).images == 1
    found = plan(SHAPES, None)
    assert (found.images, found.at_once, found.sampled) == (SENSIBLE_IMAGES, 2, {})
    assert found.predicted_mib <= found.limit_mib <= 8 * 1024
    assert not found.tight
    assert plan(SHAPES, None) == found


def test_a_small_machine_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 8 * 2**30)
    found = plan(SHAPES, None)
    assert found.limit_mib == 2 * 1024
    assert found.predicted_mib <= 2 * 1024
    assert found.images > 1


def test_a_small_network_is_planned_as_before() -> None:
    shapes = {"relu": (16, 8, 8)}
    neurons = {"relu": IFNeuron(1.0, timesteps=4)}
    given = {"full": False, "seed": 0, "images": 32, "at_once": 2, "width": 1024}
    assert planned(shapes, neurons, limit_mib=None, **given) == planned(shapes, neurons, limit_mib=DEFAULT_MIB, **given)


def test_the_sensitivity_of_a_large_network_takes_passes_of_several_images(build, digits, monkeypatch) -> None:
    snn, (one, *_) = build(), passes(build(), digits[0], 1)
    small = planned_sensitivity(snn, one, ("prefix",), (), None, 0)
    assert small == planned_sensitivity(snn, one, ("prefix",), (), DEFAULT_MIB, 0)
    monkeypatch.setattr(sensitivity_memory, "_live", lambda *_: (20_000_000, 40_000_000))  # as of a large network
    monkeypatch.setattr(memory, "machine_bytes", lambda: 128 * 2**30)
    large = planned_sensitivity(snn, one, ("prefix",), (), None, 0)
    assert large.pass_images == SENSIBLE_IMAGES
    assert not large.short
    assert large.predicted_mib <= large.limit_mib <= 32 * 1024
    assert planned_sensitivity(snn, one, ("prefix",), (), DEFAULT_MIB, 0).pass_images == 1
    monkeypatch.setattr(memory, "machine_bytes", lambda: 16 * 2**30)
    bounded = planned_sensitivity(snn, one, ("prefix",), (), None, 0)
    assert bounded.limit_mib == 4 * 1024
    assert bounded.pass_images * bounded.at_once > 1
    assert bounded.predicted_mib <= 4 * 1024


def test_passes_know_how_many_they_are(build, digits) -> None:
    snn, images = build(), digits[0][:50]
    assert length_hint(passes(snn, images, 8)) == len(list(passes(snn, images, 8))) == 7
    assert length_hint(passes(snn, images, 8, limit=20)) == len(list(passes(snn, images, 8, limit=20))) == 3
    loader = DataLoader(TensorDataset(images, torch.zeros(50, dtype=torch.int64)), batch_size=16)
    assert length_hint(passes(snn, loader, 8)) == 7
    assert length_hint(passes(snn, [images], 8)) == 0  # a list of batches does not say
