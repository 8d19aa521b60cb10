"""finetune.train: it learns from scratch, folds batch-norm exactly, repeats itself, leaves the user's model alone."""

import copy

import pytest
import torch
from torch import nn

from speedysnn import finetune
from speedysnn.data import load
from speedysnn.errors import InputError
from speedysnn.finetune.batch_norm import fold_batch_norms, run_training
from speedysnn.finetune.train import _start
from speedysnn.neurons import Reading


def _net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def _data(count: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return x, (x[:, :, :4].mean((1, 2, 3)) > x[:, :, 4:].mean((1, 2, 3))).long()


def _config(**options: object) -> finetune.TrainConfig:
    return finetune.TrainConfig(**{"epochs_spiking": 2, "batch_size": 50, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_are_learnt_from_scratch(seed: int) -> None:
    config = _config(epochs_spiking=3, learning_rates={"weights": 5e-3, "biases": 5e-3}, seed=seed)
    _, result = finetune.train(_net(seed), load("digits", "train"), 4, config=config)
    accuracy = result.history.held_out_accuracy
    assert accuracy.iloc[0] < 0.4
    assert accuracy.iloc[result.best_epoch] > 0.9


def test_folding_changes_no_output() -> None:
    x, _ = _data()
    snn = _start(_net(), torch.utils.data.TensorDataset(*_data()), 4, _config())
    with torch.no_grad():
        for _ in range(3):
            run_training(snn, [x[:50] + 0.2])
        plain = fold_batch_norms(snn)
        for reading in ("analog", "spiking"):
            with snn.reading(reading), plain.reading(reading):
                torch.testing.assert_close(plain(x), snn(x), rtol=1e-5, atol=1e-5)
    assert not any(node.op == "batch_norm" for node in plain.graph.nodes)


def test_digits_are_learnt_from_their_levels_in_one_pass_and_then_through_time() -> None:
    stages = (finetune.Stage("quantized", 2), finetune.Stage("spiking", 1, rate=0.3))
    config = _config(stages=stages, learning_rates={"weights": 5e-3, "biases": 5e-3})
    snn, result = finetune.train(_net(), load("digits", "train"), 4, config=config, delay=1)
    assert result.history.query("epoch > 0").stage.tolist() == ["quantized", "quantized", "spiking"]
    assert result.history.held_out_accuracy.iloc[-1] > 0.85
    assert not any(node.op == "batch_norm" for node in snn.graph.nodes)


@pytest.mark.parametrize("reading", ["spiking", "quantized"])
def test_statistics_are_those_of_the_whole_batch_over_time(reading: Reading) -> None:
    snn = _start(_net(), torch.utils.data.TensorDataset(*_data()), 4, _config())
    name = next(node.name for node in snn.graph.nodes if node.op == "batch_norm")
    before, x = snn.tensors(name)["mean"].clone(), _data()[0] + 1
    conv = next(node.name for node in snn.graph.nodes if node.op == "conv2d")
    own = snn.tensors(conv)
    drive = torch.nn.functional.conv2d(x, own["weight"], own["bias"], padding=1).mean((0, 2, 3))
    with torch.no_grad():
        run_training(snn, [x], reading)
    torch.testing.assert_close(snn.tensors(name)["mean"], 0.9 * before + 0.1 * drive, rtol=1e-4, atol=1e-5)


def test_the_users_model_is_left_alone_and_a_seed_repeats() -> None:
    ann = _net()
    state, modes = copy.deepcopy(ann.state_dict()), [m.training for m in ann.modules()]
    first, one = finetune.train(ann, _data(), 2, config=_config(augment="flip-crop"))
    second, two = finetune.train(ann, _data(), 2, config=_config(augment="flip-crop"))
    assert [m.training for m in ann.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in ann.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert one.history.train_loss.iloc[1:].tolist() == two.history.train_loss.iloc[1:].tolist()


def test_a_source_goes_on_learning_from_itself_and_labels_under_a_budget() -> None:
    source, (x, y) = _net(), _data()
    finetune.train(source, (x, y), 4, config=_config(epochs_spiking=1))
    source.train()(x), source.eval()
    stats = source[1].running_mean.clone()
    start = _start(source, torch.utils.data.TensorDataset(x, y), 4, _config())
    norms = [node.name for node in start.graph.nodes if node.op == "batch_norm"]
    torch.testing.assert_close(start.tensors(norms[0])["mean"], stats, rtol=0, atol=0)
    source.train()
    config = _config(stages=(finetune.Stage("quantized", 10),), objective="kl", label_weight=0.5, budget=0.5,
                     learning_rates={"weights": 1e-2, "thresholds": 0.2})  # fmt: skip
    _, result = finetune.train(source, (x, y), 4, validation=(x, y), teacher=source, config=config, delay=1)
    history = result.history
    assert history.budget_rate.iloc[0] > 0.7
    assert history[history.best].budget_rate.iloc[-1] <= 0.5
    assert history.held_out_agreement.notna().all()
    assert source.training
    assert torch.equal(source[1].running_mean, stats)


@pytest.mark.parametrize(("objective", "teacher"), [("kl", None), ("labels", _net())])
def test_a_teacher_is_asked_for_where_it_counts(objective: str, teacher: nn.Module | None) -> None:
    with pytest.raises(InputError, match="teacher"):
        finetune.train(_net(), _data(), 2, teacher=teacher, config=_config(objective=objective))


def test_sgd_trains_and_mistakes_are_named() -> None:
    _, result = finetune.train(_net(), _data(101), 2, config=_config(optimizer="sgd", holdout=0.2))
    assert len(result.history) == 3
    with pytest.raises(InputError, match="quantized or spiking stages"):
        _config(stages=(finetune.Stage("blockwise", 1),))
    with pytest.raises(InputError, match="optimizer"):
        _config(optimizer="magic")
    x, y = _data()
    with pytest.raises(InputError, match="classes 0..9"):
        finetune.train(_net(), (x, y + 10), 2, config=_config())
    with pytest.raises(InputError, match="none"):
        finetune.train(_net(), x, 2, config=_config())
