"""One training step in pieces: the gradients of the whole batch, and memory known beforehand."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from speedysnn import convert, finetune
from speedysnn.errors import TrainingError
from speedysnn.finetune import step as memory
from speedysnn.finetune.objectives import Target, objective, outputs_and_layers
from speedysnn.finetune.step import Step
from speedysnn.network import SpikingNetwork

X = torch.rand(30, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> SpikingNetwork:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(),
                        nn.Linear(288, 4))  # fmt: skip
    return convert.to_spiking(ann, X, timesteps=3)


def gradients(snn: SpikingNetwork, reading: Any, match: float, pieces: int) -> tuple[float, list[torch.Tensor]]:
    snn.images_per_pass = pieces
    target = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    source = outputs_and_layers(copy.deepcopy(snn), (X,), "analog")[1] if match else {}
    parameters = list(snn.parameters())
    step = Step(snn, finetune.Config(layer_match_weight=match, temperature=1.0), reading, parameters)
    loss = step.run((X,), Target(target), {name: x.detach() for name, x in source.items()})
    return float(loss), [p.grad.clone() for p in parameters if p.grad is not None]


@pytest.mark.parametrize("reading", ["quantized", "spiking"])
@pytest.mark.parametrize("match", [0.0, 2.0])
def test_pieces_add_up_to_the_batch(reading: str, match: float) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        loss, whole = gradients(network(), reading, match, 30)
        again, pieces = gradients(network(), reading, match, 7)
        _, same = gradients(network(), reading, match, 7)
    finally:
        torch.set_num_threads(before)
    assert again == pytest.approx(loss, rel=1e-5)
    for a, b, c in zip(whole, pieces, same, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.norm()))
        assert torch.equal(b, c)  # beside one another, yet summed in order


def test_gradients_are_those_of_autograd() -> None:
    snn = network()
    target = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    objective("kl")(snn(X), Target(target), 1.0).backward()
    expected = [p.grad.clone() for p in snn.parameters() if p.grad is not None]
    _, ours = gradients(snn, "spiking", 0.0, 30)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_saved_bytes_grow_with_steps_and_count_every_layer() -> None:
    snn = network()
    features = 6 * 64 + 8 * 36
    sizes = {}
    for steps in (2, 8):
        snn.timesteps = steps
        sizes[steps] = memory.saved_bytes(snn, (X,), "spiking")
        # the drives of both layers (the first is constant), the spikes that the second layer reads
        assert sizes[steps] >= 4 * (8 * 36 * steps + 6 * 64 + 6 * 64 * steps)
        assert sizes[steps] <= 4 * 3 * features * steps + 4 * 128 * 3
    assert sizes[8] > 2.5 * sizes[2]


def test_a_batch_that_does_not_fit_is_split_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    snn, told = network(), []
    need = memory.saved_bytes(snn, (X,), "spiking")
    parameters = list(snn.parameters())
    state = memory.state_bytes(parameters, torch.get_num_threads())
    target = Target(torch.zeros(30, 4))
    monkeypatch.setattr(memory, "free_bytes", lambda _: state + 10 * need)
    Step(snn, finetune.Config(), "spiking", parameters, lambda *told_of: told.append(told_of)).run((X,), target, {})
    reading, size = told[0]
    assert reading == "spiking"
    assert size.images < 30
    assert size.peak <= state + 10 * need
    assert "images at once" in str(size)
    monkeypatch.setattr(memory, "free_bytes", lambda _: need // 2)
    with pytest.raises(TrainingError, match=r"spiking stage: a step needs about .* free.*use fewer steps"):
        Step(snn, finetune.Config(), "spiking", parameters).run((X,), target, {})


def test_the_teacher_answers_once_where_images_come_unchanged() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.images, self.layer = 0, nn.Linear(128, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.images += len(x)
            return self.layer(x.flatten(1))

    def asked(**options: Any) -> int:
        teacher = Counting()
        config = finetune.Config(
            **{"epochs_quantized": 3, "epochs_spiking": 0, "batch_size": 8, "holdout": 0.2, "layer_match_weight": 0.0,
               "augment": "none", "mixup": 0.0, "batch_norm": False, **options}
        )  # fmt: skip
        finetune.fit(network(), X, teacher=teacher, config=config)
        return teacher.images

    held_out = 4 * 6  # scored before the stage and after each epoch
    assert asked() == 24 + held_out
    assert asked(augment="flip") == 3 * 24 + held_out
