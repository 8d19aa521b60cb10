"""What a run is trained towards, against numpy; labels beside a teacher and mixtures of labels."""

import numpy as np
import pytest
import torch

from speedysnn import finetune
from speedysnn.errors import InputError
from speedysnn.finetune.augment import mix
from speedysnn.finetune.objectives import Target, labels, loss_of, objective


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
    before = torch.random.get_rng_state()
    mixed, target = mix(x, 0.4, generator, y, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(mixed, mix(x, 0.4, same)[0]), "labels change no draw"
    assert not torch.equal(mixed, mix(x, 0.4, same)[0]), "every batch draws anew"
    assert target is not None
    neighbour, one_hot = x.roll(1, 0), np.eye(5)
    share = float(((mixed - neighbour) * (x - neighbour)).sum() / (x - neighbour).square().sum())
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * x + (1 - share) * neighbour)
    soft = share * one_hot[y] + (1 - share) * one_hot[y.roll(1)]
    expected = -(soft * _log_softmax(ours.numpy())).sum(1).mean()
    assert labels(ours, Target(labels=target), 1.0).item() == pytest.approx(expected, rel=1e-5)
    whole = Target(labels=torch.eye(5, dtype=torch.float64)[y])
    assert labels(ours, whole, 1.0).item() == pytest.approx(labels(ours, Target(labels=y), 1.0).item())


@pytest.mark.parametrize("shape", [(8, 3), (8, 1, 4, 4), (8, 2, 3, 4, 5)])
def test_inputs_of_any_rank_are_mixed(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    mixed, none = mix(x, 1.0, torch.Generator().manual_seed(0))
    assert none is None
    assert mixed.shape == x.shape
    torch.testing.assert_close(mixed.mean(0), x.mean(0))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_labels_beside_a_teacher(weight: float, temperature: float) -> None:
    ours, teacher, y = _drawn()
    target = Target(teacher, y if weight else None)
    loss_fn = loss_of(finetune.Config(label_weight=weight))
    p, q = (_log_softmax(x.numpy() / temperature) for x in (teacher, ours))
    expected = (1 - weight) * temperature**2 * (np.exp(p) * (p - q)).sum(1).mean()
    expected -= weight * _log_softmax(ours.numpy())[range(8), y].mean()
    assert loss_fn(ours, target, temperature).item() == pytest.approx(expected)


def test_a_target_is_split_with_its_batch() -> None:
    _, teacher, y = _drawn()
    for target in (Target(teacher, y), Target(teacher), Target(labels=y)):
        parts = target.split([3, 5])
        assert [len(part) for part in parts] == [3, 5]
        assert len(target) == 8
        for name, whole in (("logits", teacher), ("labels", y)):
            pieces = [getattr(part, name) for part in parts]
            given = getattr(target, name) is not None
            assert torch.equal(torch.cat(pieces), whole) if given else pieces == [None, None]


def test_what_cannot_be_compared_is_named() -> None:
    ours, teacher, y = _drawn()
    for wrong in (y + 1, y - 1, y + 3):
        with pytest.raises(InputError, match="expected classes 0..4"):
            labels(ours, Target(labels=wrong), 1.0)
    with pytest.raises(InputError, match="expected classes"):
        labels(ours[..., None], Target(labels=y), 1.0)
    with pytest.raises(InputError, match="labels: the data has none"):
        labels(ours, Target(teacher), 1.0)
    for name in ("kl", "mse"):
        with pytest.raises(InputError, match="expected a teacher's outputs"):
            objective(name)(ours, Target(labels=y), 1.0)
    with pytest.raises(InputError, match="label_weight: expected outputs"):
        loss_of(finetune.Config(label_weight=0.5))(ours[..., None], Target(teacher[..., None], y), 1.0)
    for settings in ({"label_weight": 1.0}, {"label_weight": -0.1}, {"label_weight": 0.5, "objective": "labels"}):
        with pytest.raises(InputError, match="label_weight: expected at least 0 and below 1"):
            finetune.Config(**settings)
