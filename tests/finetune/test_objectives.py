"""What a run is trained towards, against numpy; labels beside a teacher and mixtures of labels."""

import numpy as np
import pytest
import torch

from speedysnn import finetune
from speedysnn.errors import InputError
from speedysnn.finetune.augment import mix
from speedysnn.finetune.objectives import aim_of, answers_of, beside, columns, labels


def _log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def _drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ours, teacher = torch.randn(2, 8, 5, generator=generator, dtype=torch.float64)
    return ours, teacher, torch.randint(0, 5, (8,), generator=generator)


def test_mixed_labels_are_cross_entropy_with_the_mixture() -> None:
    ours, _, y = _drawn()
    x = torch.rand(8, 1, 2, 2)
    generator, same = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    mixed, target = mix(x, 0.4, generator, y)
    assert torch.equal(mixed, mix(x, 0.4, same)[0]), "labels change no draw"
    assert target is not None
    one_hot = np.eye(5)
    weight = target[:, 2:].double().numpy()
    soft = weight * one_hot[y] + (1 - weight) * one_hot[target[:, 1].long()]
    assert labels(ours, target, 1.0).item() == pytest.approx(-(soft * _log_softmax(ours.numpy())).sum(1).mean())
    assert labels(ours, columns(y), 1.0).item() == pytest.approx(labels(ours, y, 1.0).item())
    assert 0 < float(weight.min()) < float(weight.max()) < 1


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_labels_beside_a_teacher(weight: float, temperature: float) -> None:
    ours, teacher, y = _drawn()
    target = beside(teacher, y) if weight else teacher
    aim = aim_of(finetune.Config(label_weight=weight))
    p, q = (_log_softmax(x.numpy() / temperature) for x in (teacher, ours))
    expected = (1 - weight) * temperature**2 * (np.exp(p) * (p - q)).sum(1).mean()
    expected -= weight * _log_softmax(ours.numpy())[range(8), y].mean()
    assert aim(ours, target, temperature).item() == pytest.approx(expected)
    assert torch.equal(answers_of(target, ours), teacher)


def test_what_cannot_be_compared_is_named() -> None:
    ours, teacher, y = _drawn()
    for target in (y + 1, columns(y - 1), columns(y, y + 3)):
        with pytest.raises(InputError, match="expected classes 0..4"):
            labels(ours, target, 1.0)
    with pytest.raises(InputError, match="expected classes"):
        labels(ours[..., None], y, 1.0)
    with pytest.raises(InputError, match="label_weight: expected outputs"):
        beside(teacher[..., None], y)
    for settings in ({"label_weight": 1.0}, {"label_weight": -0.1}, {"label_weight": 0.5, "objective": "labels"}):
        with pytest.raises(InputError, match="label_weight: expected at least 0 and below 1"):
            finetune.Config(**settings)
