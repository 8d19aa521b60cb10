"""finetune.fit: it improves what it trains, keeps the best state, resumes to the same result, restores everything."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from speedysnn import convert, finetune
from speedysnn.errors import ArtifactError, DataError, InputError, TrainingError
from speedysnn.files.atomic import claimed
from speedysnn.finetune.augment import AUGMENTATIONS
from speedysnn.finetune.objectives import layer_distance, outputs_and_layers
from speedysnn.finetune.optimization import grouped
from speedysnn.network import SpikingNetwork


def _data(count: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(count, 1, 8, 8, generator=generator) * torch.rand(count, 1, 8, 1, generator=generator) * 3
    return x, (x[:, :, :4].mean((1, 2, 3)) > x[:, :, 4:].mean((1, 2, 3))).long()


def _network(**options: Any) -> SpikingNetwork:
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip
    ann[-1].weight.data.mul_(20)  # logits that differ from image to image
    return convert.to_spiking(ann, _data()[0], timesteps=2, **options)


def _config(**options: Any) -> finetune.Config:
    base = {"epochs_quantized": 2, "epochs_spiking": 2, "batch_size": 40, "holdout": 0.25, "layer_match_weight": 0.0}
    return finetune.Config(**{**base, **options})


@pytest.mark.parametrize("objective", ["kl", "mse", "labels"])
@pytest.mark.parametrize("options", [{}, {"delay": 1}, {"spikes": "ternary"}, {"spikes": "power2:3"}, {"delay": "full"}])
def test_held_out_loss_never_ends_above_its_start(objective: str, options: dict[str, Any]) -> None:
    snn = _network(**options)
    result = finetune.fit(snn, _data(), config=_config(objective=objective))
    last = result.history[result.history.stage == "spiking"]
    assert last.held_out_loss.min() <= last.held_out_loss.iloc[0]
    assert -result.best_score == pytest.approx(last.held_out_loss.min())


def test_tuning_the_quantized_reading_lowers_its_loss() -> None:
    snn = _network()
    x = _data()[0]
    result = finetune.fit(snn, x, validation=x, config=_config(epochs_quantized=15, epochs_spiking=0, mixup=0.0))
    history = result.history.held_out_loss
    assert history.iloc[-1] < 0.8 * history.iloc[0]
    assert result.best_epoch > 0


@pytest.mark.parametrize("group", ["thresholds", "v_init", "biases", "weights"])
def test_only_the_chosen_group_moves(group: str) -> None:
    snn = _network()
    before = copy.deepcopy(snn.state_dict())
    every = {"learning_rates": dict.fromkeys(("thresholds", "v_init", "biases", "weights"), 1e-3)}
    finetune.fit(snn, _data()[0], config=_config(train=(group,), epochs_quantized=0, epochs_spiking=6, **every))
    members = grouped(snn)
    moved = {name for name, value in snn.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= set(members[group])
    assert moved, "nothing moved at all"


def test_flags_and_modes_come_back() -> None:
    snn = _network()
    snn.neurons["2"].v_init.requires_grad_(False)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Dropout())
    teacher[0].eval()
    finetune.fit(snn, _data()[0], teacher=teacher, config=_config(epochs_spiking=0))
    assert not snn.neurons["2"].v_init.requires_grad
    assert snn.neurons["5"].v_init.requires_grad
    assert [module.training for module in teacher.modules()] == [True, False, True, True]
    assert all(parameter.grad is None for parameter in snn.parameters())


def test_gradient_reaches_every_step() -> None:
    snn = _network()
    x = _data(8)[0].unsqueeze(0).repeat(2, 1, 1, 1, 1).requires_grad_()
    snn(x).sum().backward()
    assert all(float(step.abs().sum()) > 0 for step in x.grad)


def test_same_seed_same_result() -> None:
    first, second = _network(), _network()
    for snn in (first, second):
        finetune.fit(snn, _data()[0], config=_config(augment="flip-crop", mixup=1.0))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("epochs", [(6, 0), (0, 6)])
def test_matching_layers_brings_them_closer_to_the_source(epochs: tuple[int, int]) -> None:
    snn, x = _network(), _data()[0]
    source = copy.deepcopy(snn)
    config = _config(layer_match_weight=10.0, epochs_quantized=epochs[0], epochs_spiking=epochs[1])

    def distance() -> float:
        return layer_distance(outputs_and_layers(snn, (x,))[1], outputs_and_layers(source, (x,), "analog")[1]).item()

    with torch.no_grad(), snn.reading("quantized" if epochs[0] else "spiking"):
        before = distance()
        finetune.fit(snn, x, validation=x, config=config)
        assert distance() < 0.97 * before


def test_matching_needs_a_teacher_with_the_same_layers() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(InputError, match="match"):
        finetune.fit(_network(), _data()[0], teacher=teacher, config=_config(layer_match_weight=1.0))


@pytest.mark.parametrize("stop_after", [1, 2, 4, 5])
def test_an_interrupted_run_resumes_to_the_same_weights(stop_after: int, tmp_path: Path) -> None:
    config = _config(augment="shift")
    whole = _network()
    finetune.fit(whole, _data()[0], config=config)

    seen: list[Any] = []

    def interrupt(row: dict[str, Any]) -> None:
        seen.append(row)
        if len(seen) > stop_after:
            raise KeyboardInterrupt

    broken = _network()
    with pytest.raises(KeyboardInterrupt):
        finetune.fit(broken, _data()[0], config=config, folder=tmp_path, on_epoch=interrupt)
    resumed = _network()
    if not (tmp_path / "run.safetensors").exists():
        assert stop_after < 2, "more than one epoch was lost"
        return
    result = finetune.fit(resumed, _data()[0], config=config, folder=tmp_path, resume=True)
    assert len(result.history) == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_run_is_resumed_where_thresholds_were_calibrated_in_another_order(tmp_path: Path) -> None:
    """Another processor adds up otherwise: its thresholds differ in their last bits."""
    config, begun = _config(epochs_spiking=0), _network()
    finetune.fit(begun, _data()[0], config=config, folder=tmp_path)
    elsewhere = _network()
    with torch.no_grad():
        for neuron in elsewhere.neurons.values():
            neuron.log_threshold.copy_(neuron.log_threshold.nextafter(torch.tensor(torch.inf)))
    finetune.fit(elsewhere, _data()[0], config=config, folder=tmp_path, resume=True)
    for name, value in begun.state_dict().items():
        assert torch.equal(value, elsewhere.state_dict()[name]), name


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    finetune.fit(_network(), _data()[0], config=_config(epochs_spiking=0), folder=tmp_path)
    with pytest.raises(TrainingError, match="other settings"):
        finetune.fit(_network(), _data()[0], config=_config(epochs_spiking=0, seed=1), folder=tmp_path, resume=True)
    other = _network()
    with torch.no_grad():
        next(iter(other.neurons.values())).log_threshold.add_(0.01)
    with pytest.raises(TrainingError, match=r"another network \(.*log_threshold' differs\)"):
        finetune.fit(other, _data()[0], config=_config(epochs_spiking=0), folder=tmp_path, resume=True)
    (tmp_path / "run.safetensors").write_bytes(b"not this")
    with pytest.raises(TrainingError, match="damaged"):
        finetune.fit(_network(), _data()[0], config=_config(epochs_spiking=0), folder=tmp_path, resume=True)
    with pytest.raises(TrainingError, match="nothing to resume"):
        finetune.fit(_network(), _data()[0], config=_config(), folder=tmp_path / "none", resume=True)


@pytest.mark.parametrize("shared", ["folder", "log"])
def test_a_second_run_into_one_folder_is_refused_and_the_first_goes_on(shared: str, tmp_path: Path) -> None:
    place, refused = tmp_path / "a" / "run", []

    def second(_: dict[str, Any]) -> None:
        begun = []
        with pytest.raises(ArtifactError, match=f"{'log ' if shared == 'log' else ''}.*run: another run is writing there now"):
            finetune.fit(_network(), _data()[0], config=_config(), on_epoch=begun.append, **{shared: place})
        refused.append(len(begun))

    finetune.fit(_network(), _data()[0], config=_config(epochs_spiking=0), on_epoch=second, **{shared: place})
    assert refused == [0] * 3
    assert (place / ("run.safetensors" if shared == "folder" else "epochs.csv")).is_file()
    assert [path.name for path in place.parent.iterdir()] == ["run"]
    finetune.fit(_network(), _data()[0], config=_config(epochs_spiking=0), **{shared: place})


def test_training_holds_its_folder_too(tmp_path: Path) -> None:
    ann, labelled = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2)), _data()
    with claimed(tmp_path / "run"), pytest.raises(ArtifactError, match="another run"):
        finetune.train(ann, labelled, 2, folder=tmp_path / "run")


def test_what_cannot_be_written_is_refused_before_the_first_epoch(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    rows: list[Any] = []
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        for name in ("folder", "log"):
            with pytest.raises(TrainingError, match="expected a folder that can be written to"):
                finetune.fit(_network(), _data()[0], config=_config(), on_epoch=rows.append, **{name: place})
    assert rows == []
    with pytest.raises(TrainingError, match="nothing to resume"):
        finetune.fit(_network(), _data()[0], config=_config(), folder=tmp_path / "no" / "run", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nan_stops_with_the_best_state(monkeypatch: pytest.MonkeyPatch) -> None:
    snn = _network()
    before = copy.deepcopy(snn.state_dict())
    monkeypatch.setitem(finetune.OBJECTIVES, "broken", lambda ours, target, _: (ours - target.logits).square().mean() * float("nan"))
    with pytest.raises(TrainingError, match="NaN or infinite"):
        finetune.fit(snn, _data()[0], config=_config(objective="broken"))
    for name, value in snn.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"train": ("weighs",)}, InputError, "expected some of thresholds"),
        ({"train": ()}, InputError, "got nothing"),
        ({"epochs_quantized": 0, "epochs_spiking": 0}, InputError, "at least one epoch"),
        ({"batch_size": 0}, InputError, "batch_size"),
        ({"holdout": 1.0}, InputError, "holdout"),
        ({"learning_rates": {"weights": -1.0}}, InputError, "learning rate of weights"),
        ({"objective": "cosine"}, InputError, "objective: expected one of"),
        ({"augment": "cutout"}, InputError, "augment: expected one of"),
        ({"objective": "labels"}, InputError, "has none"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        finetune.fit(_network(), _data()[0], config=_config(**options))


def test_no_data_is_named() -> None:
    with pytest.raises(DataError):
        finetune.fit(_network(), [], config=_config())
    with pytest.raises(DataError, match="two images"):
        finetune.fit(_network(), _data(1)[0], config=_config())


def test_a_second_tuning_needs_the_source_as_teacher() -> None:
    snn = _network()
    source = copy.deepcopy(snn)
    finetune.fit(snn, _data()[0], config=_config(epochs_spiking=0))
    with pytest.raises(TrainingError, match="before tuning"):
        finetune.fit(snn, _data()[0], config=_config(epochs_spiking=0))
    x = _data()[0]
    result = finetune.fit(snn, x, validation=x, teacher=source,
                          config=_config(epochs_quantized=0, layer_match_weight=1.0, temperature=1.0))  # fmt: skip
    with torch.no_grad(), source.reading("analog"):
        target = source(x)
    with torch.no_grad():
        ours = snn(x)
    loss = finetune.OBJECTIVES["kl"](ours, finetune.Target(target), 1.0)
    assert loss.item() == pytest.approx(-result.best_score, rel=1e-4)


def test_config_survives_json() -> None:
    config = _config(train=("thresholds",), learning_rates={"thresholds": 0.02})
    assert finetune.Config.from_json(config.to_json()) == config


def test_history_is_recorded_in_the_network() -> None:
    snn = _network()
    finetune.fit(snn, _data(), config=_config(epochs_spiking=0))
    assert snn.provenance["finetuned"][0]["history"][1]["epoch"] == 1


@pytest.mark.parametrize("options", [{"objective": "labels", "mixup": 0.1}, {"label_weight": 0.5, "mixup": 0.4},
                                     {"label_weight": 0.5, "layer_match_weight": 1.0}, {"label_weight": 0.5}])  # fmt: skip
def test_labels_beside_the_teacher_train(options: dict[str, Any]) -> None:
    snn = _network()
    result = finetune.fit(snn, _data(), config=_config(epochs_quantized=15, epochs_spiking=0, **options))
    held = result.history.held_out_loss
    assert held.min() < held.iloc[0]
    assert (result.history.held_out_agreement.isna() == ("objective" in options)).all()


def test_labels_beside_the_teacher_that_are_missing_or_none_of_the_classes() -> None:
    x, y = _data()
    with pytest.raises(InputError, match="label_weight 0.5: the training data has none"):
        finetune.fit(_network(), x, config=_config(label_weight=0.5))
    for settings in ({"label_weight": 0.5}, {"objective": "labels"}):
        with pytest.raises(InputError, match=r"expected classes 0\.\.1 .* got 2\.\.3"):
            finetune.fit(_network(), (x, y + 2), config=_config(**settings))


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentations_keep_shape_and_repeat_by_seed(name: str) -> None:
    x = torch.randn(6, 3, 16, 16)
    first, again, other = (AUGMENTATIONS[name](x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == x.shape
    assert first.dtype == x.dtype
    assert torch.equal(first, again)
    if name != "none":
        assert not torch.equal(first, other)
        assert float(first.max()) <= float(x.max()) + 1e-4
    state = torch.get_rng_state()
    AUGMENTATIONS[name](x, torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())
