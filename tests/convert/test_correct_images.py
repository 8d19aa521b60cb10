"""The images of a correction: drawn from all of the data, whatever its form and order, and events as events."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from speedysnn import convert
from speedysnn.convert.correct import Sample
from speedysnn.convert.matching import halves
from speedysnn.data.batches import iter_batches
from tests.material.corrections import alike, settings, two_layers


def sorted_images() -> tuple[Tensor, Tensor]:
    """2,000 images in ten classes, one class after the other; pixel 0 is the class."""
    labels = torch.arange(10).repeat_interleave(200)
    return torch.cat([labels.view(-1, 1).float(), torch.rand(2000, 3)], 1), labels


class Counted(Dataset[tuple[Tensor, int]]):
    """A dataset that counts how many images were read."""

    def __init__(self) -> None:
        self.x, self.y = sorted_images()
        self.read = 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        return self.x[index], int(self.y[index])


@pytest.mark.parametrize("size", [1, 64, 300])
def test_the_images_are_drawn_from_all_of_sorted_data(size: int) -> None:
    x, _ = sorted_images()
    sample = Sample(256)
    for _ in sample.passing(iter_batches(x, batch_size=size)):
        pass
    (found,) = sample.inputs()
    assert len(found) == 256
    counts = torch.bincount(found[:, 0].long(), minlength=10)
    assert int(counts.min()) >= 10, counts
    assert all(int(torch.bincount(found[half, 0].long(), minlength=10).min()) >= 3 for half in halves(256, 256))
    other = Sample(256)
    for _ in other.passing(iter_batches(x, batch_size=77)):
        pass
    assert torch.equal(found, other.inputs()[0])


def test_few_images_are_all_kept_and_other_shapes_passed_over() -> None:
    sample = Sample(8)
    for batch in ([torch.arange(3.0).view(3, 1)], [torch.rand(2, 5)], [torch.arange(3.0, 6).view(3, 1)]):
        list(sample.passing(iter_batches(batch)))
    (found,) = sample.inputs()
    assert sorted(found.flatten().tolist()) == list(range(6))


@pytest.mark.parametrize("kind", ["tensor", "dataset", "loader", "batches"])
def test_every_form_of_sorted_data_corrects_for_every_class(kind: str, monkeypatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr("speedysnn.convert.correct.correct_on", lambda snn, inputs, kind, progress=False: seen.append(inputs[0]))
    x, y = sorted_images()
    counted = Counted()
    forms = {"tensor": x, "dataset": counted, "loader": torch.utils.data.DataLoader(TensorDataset(x, y), batch_size=50),
             "batches": list(x.split(90))}  # fmt: skip
    snn = convert.to_spiking(two_layers(), x[::100], 2, correct="none")
    convert.apply_correction(snn, forms[kind], "bias")
    assert int(torch.bincount(seen[0][:, 0].long(), minlength=10).min()) >= 10
    assert counted.read in (0, 256), "what will not be used is not read"


def test_to_spiking_corrects_on_images_of_all_classes(monkeypatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr("speedysnn.convert.correct.correct_on", lambda snn, inputs, kind, **_: seen.append(inputs[0]))
    convert.to_spiking(two_layers(), sorted_images()[0], 2, correct="bias")
    assert int(torch.bincount(seen[0][:, 0].long(), minlength=10).min()) >= 10


class Events(Dataset[tuple[Tensor, int]]):
    """Events (T, 4) of which all come in the last step."""

    timesteps = 3

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(self):
            raise IndexError
        out = torch.zeros(3, 4)
        out[2] = 3 * torch.rand(4, generator=torch.Generator().manual_seed(index))
        return out, index % 2


def test_events_are_corrected_as_events() -> None:
    torch.manual_seed(1)
    net = two_layers()
    snn = convert.to_spiking(net, Events(), 3, threshold="max", correct="bias")
    events = torch.stack([Events()[i][0] for i in range(40)], 1)
    by_hand = convert.to_spiking(net, Events(), 3, threshold="max", correct="none")
    convert.apply_correction(by_hand, [events], "bias")
    assert alike(settings(snn), settings(by_hand))
    constant = convert.apply_correction(copy.deepcopy(by_hand), events.mean(0), "bias")
    assert not alike(settings(snn), settings(constant)), "spikes come late in one and evenly in the other"
    assert snn.provenance["correction"]["images"] == 40
    by_hand.timesteps = 2  # other steps than the events have: their mean
    convert.apply_correction(by_hand, [events], "bias")
    assert by_hand.provenance["correction"]["timesteps"] == 2
