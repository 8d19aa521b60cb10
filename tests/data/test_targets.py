"""What is an input and what a target is decided by what the network takes; targets and events of every kind pass."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from speedysnn import analysis, convert, finetune
from speedysnn.data.batches import inputs_of, iter_batches
from speedysnn.errors import InputError

X = torch.rand(16, 3, 8, 8)
CLASSES = torch.arange(16) % 5
TARGETS: dict[str, tuple[Tensor, ...]] = {
    "classes": (CLASSES,),
    "mask (B, H, W)": (torch.randint(0, 5, (16, 8, 8)),),
    "numbers (B,)": (torch.rand(16),),
    "several classes (B, 5)": ((torch.rand(16, 5) > 0.5).float(),),
    "whole numbers (B, 1)": (CLASSES[:, None],),
    "class and place": (CLASSES, torch.arange(16)),
    "mask and class": (torch.rand(16, 8, 8), CLASSES),
    "none": (),
}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1)).eval()


class Two(nn.Module):
    """A network of two inputs, the second of them whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        return self.last(torch.relu(self.layer(x) + place.float()[:, None]))


class Pairs(Dataset[Any]):
    """Samples of an image and boxes, as detection has them."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return X[index], {"boxes": torch.rand(index + 1, 4)}


@pytest.mark.parametrize("form", ["loader", "dataset", "tuple", "list of batches"])
@pytest.mark.parametrize("name", TARGETS)
def test_a_network_takes_its_inputs_and_the_rest_are_targets(name: str, form: str) -> None:
    whole = (X, *TARGETS[name])
    data = TensorDataset(*whole)
    given = {"loader": DataLoader(data, 4), "dataset": data, "tuple": whole, "list of batches": [list(whole)]}[form]
    first = next(iter_batches(given, inputs=1))
    assert [x.shape[1:] for x in first.inputs] == [(3, 8, 8)]
    count = len(first.inputs[0])
    labels = TARGETS[name][0] if TARGETS[name] and TARGETS[name][0] is CLASSES else None
    assert (first.labels is None) if labels is None else torch.equal(first.labels, labels[:count])
    others = [value for value in TARGETS[name] if value is not labels]
    kept = () if first.targets is None else first.targets if isinstance(first.targets, tuple) else (first.targets,)
    assert [value.tolist() for value in kept] == [value[:count].tolist() for value in others]


@pytest.mark.parametrize("name", TARGETS)
def test_conversion_analysis_and_tuning_need_no_classes(name: str) -> None:
    data = TensorDataset(X, *TARGETS[name])
    snn = convert.to_spiking(net(), data)
    assert snn.provenance["calibration_images"] == 16
    assert len(analysis.measure_noise(snn, data).layers) == 1
    config = finetune.Config(stages=(finetune.Stage.parse("quantized:1"),), batch_size=4)
    assert len(finetune.fit(snn, data, config=config).history) >= 1
    train = finetune.TrainConfig(stages=config.stages, batch_size=4)
    if name != "classes":
        with pytest.raises(InputError, match="labels|classes|output"):
            finetune.train(net(), TensorDataset(X, *(v for v in TARGETS[name] if v is not CLASSES)), 4, config=train)


def test_targets_that_are_no_tensors_pass() -> None:
    data = [([torch.rand(2, 3, 8, 8)], [{"boxes": torch.rand(3, 4)}, {"boxes": torch.rand(1, 4)}]) for _ in range(3)]
    flat = [(x[0], boxes) for x, boxes in data]
    assert convert.to_spiking(net(), flat).provenance["calibration_images"] == 6
    batch = next(iter_batches(flat, inputs=1))
    assert [len(item["boxes"]) for item in batch.targets] == [3, 1]


def test_a_second_input_of_whole_numbers_is_no_label() -> None:
    x, place = torch.rand(16, 4), torch.arange(16)
    snn = convert.to_spiking(Two(), (x, place))
    assert len(snn.input_shapes) == 2
    assert convert.to_spiking(Two(), TensorDataset(x, place, CLASSES)).provenance["calibration_images"] == 16


def test_the_number_of_inputs_is_known_where_forward_says_it() -> None:
    class Open(nn.Module):
        def forward(self, x: Tensor, *more: Tensor) -> Tensor:
            return x

    class Optional(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x

    assert [inputs_of(model) for model in (net(), Two(), Open(), Optional())] == [1, 2, None, None]


class Events(Dataset[Any]):
    """Event frames as they are stored, of any type."""

    timesteps = 4

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.x = (torch.rand(12, 4, 2, 8, 8) < 0.3).to(dtype)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return self.x[index], index % 3


KINDS = (torch.float32, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int64, torch.float16, torch.float64)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_events_of_every_type_are_read_alike(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    snn, known = convert.to_spiking(model, Events(dtype)), convert.to_spiking(model, Events(torch.float32))
    for name, neuron in snn.neurons.items():
        assert torch.equal(neuron.threshold, known.neurons[name].threshold)
    assert analysis.evaluate(snn, Events(dtype)).accuracy == analysis.evaluate(known, Events(torch.float32)).accuracy
    events = Events(dtype).x.transpose(0, 1)
    assert torch.equal(snn(events), known(events.float()))
    config = finetune.Config(stages=(finetune.Stage.parse("quantized:1"),), batch_size=4)
    assert len(finetune.fit(snn, Events(dtype), config=config).history) >= 1


def test_a_network_in_double_precision_takes_events_too() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double().eval()
    for dtype in (torch.bool, torch.float32, torch.float64):
        snn = convert.to_spiking(model, Events(dtype))
        assert snn(Events(dtype).x.transpose(0, 1)).shape == (12, 3)
