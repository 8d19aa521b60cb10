"""Reconstruction: blocks and the whole get better on images that did not train, the same bits every time, never worse."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import speedysnn
from speedysnn import convert, finetune
from speedysnn.errors import InputError, TrainingError
from speedysnn.finetune import ReconstructConfig
from speedysnn.finetune.augment import hold_out
from speedysnn.finetune.blocks.training import BlockTrainer, worse
from speedysnn.finetune.step import Need
from speedysnn.network import SpikingNetwork, weights_tuned

SHORT = ReconstructConfig(epochs=3, output_epochs=3)


class Residual(nn.Module):
    """Two residual blocks of linear bottlenecks, as they are in mobile networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.a, self.b = (nn.Sequential(nn.Conv2d(6, 12, 1), nn.ReLU6(), nn.Conv2d(12, 6, 1)) for _ in range(2))
        self.out = nn.Linear(6, 4)
        with torch.no_grad():  # answers that differ from image to image
            for module in (self.stem, *self.a, *self.b):
                if isinstance(module, nn.Conv2d):
                    module.weight.mul_(2.5)
            self.out.weight.mul_(30)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        y = y + self.a(y)
        y = y + self.b(y)
        return self.out(y.mean((2, 3)))


def made(timesteps: int = 2, **options: object) -> tuple[SpikingNetwork, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(80, 1, 1, 1) * torch.rand(80, 1, 6, 6)
    return convert.to_spiking(Residual(), x, timesteps, correct="none", **options), x


@pytest.mark.parametrize("delay", [0, "full"])
def test_the_network_gets_closer_to_its_source(delay) -> None:
    snn, x = made(delay=delay)
    done = finetune.reconstruct(snn, x, SHORT)
    before, after = done.output["before"]["quantized"], done.output["after"]["quantized"]
    assert after["loss"] < 0.8 * before["loss"]
    assert not done.taken_back
    kept = done.blocks[done.blocks.kept]
    assert len(kept)
    assert (kept.error_after < kept.error_before).all()
    assert snn.provenance["reconstructed"][0]["output"] == done.output


def test_the_figures_are_the_networks_own() -> None:
    snn, x = made(delay="full")
    _, held = hold_out(x, SHORT.holdout, SHORT.seed)
    images = torch.cat([held[i][0][None] for i in range(len(held))])  # type: ignore[arg-type]
    with torch.no_grad(), snn.reading("analog"):
        goal = snn(images).double().log_softmax(1)
    done = finetune.reconstruct(snn, x, SHORT)
    with torch.no_grad(), snn.reading("quantized"):
        ours = snn(images).double().log_softmax(1)
    expected = float((goal.exp() * (goal - ours)).sum(1).mean())
    assert done.output["after"]["quantized"]["loss"] == pytest.approx(expected, rel=1e-3)


def test_the_same_call_gives_the_same_bits_and_resumes_to_them(tmp_path: Path) -> None:
    first, x = made()
    second, _ = made()
    finetune.reconstruct(first, x, SHORT, folder=tmp_path / "run")
    finetune.reconstruct(second, x, SHORT)
    third, _ = made()
    again = finetune.reconstruct(third, x, SHORT, folder=tmp_path / "run", resume=True)
    for other in (second, third):
        own = other.state_dict()
        assert own.keys() == first.state_dict().keys()
        assert all(torch.equal(value, own[name]) for name, value in first.state_dict().items())
    assert len(again.blocks) == len(BlockTrainer(*_work(made()[0], x)).blocks)


def _work(snn: SpikingNetwork, x: Tensor) -> tuple[SpikingNetwork, SpikingNetwork, list[list[Tensor]], ReconstructConfig]:
    return snn, snn, [[x[:60]], [x[60:]]], SHORT


def test_resuming_goes_on_after_the_blocks_that_are_done(tmp_path: Path, monkeypatch) -> None:
    whole, x = made()
    finetune.reconstruct(whole, x, SHORT)
    cut, _ = made()
    plain, calls = BlockTrainer.train_block, 0

    def stops(self: BlockTrainer, *given: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return plain(self, *given)

    monkeypatch.setattr(BlockTrainer, "train_block", stops)
    with pytest.raises(KeyboardInterrupt):
        finetune.reconstruct(cut, x, SHORT, folder=tmp_path)
    monkeypatch.setattr(BlockTrainer, "train_block", plain)
    resumed, _ = made()
    finetune.reconstruct(resumed, x, SHORT, folder=tmp_path, resume=True)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("delay", [0, "full"])
def test_a_network_that_became_worse_is_given_back_as_it_was(delay, monkeypatch) -> None:
    snn, x = made(timesteps=8, delay=delay)
    before = {name: value.clone() for name, value in snn.state_dict().items()}

    def ruin(self: BlockTrainer, progress: bool) -> None:
        for module in self.snn.layers.children():
            module.weight.data.mul_(-1)

    monkeypatch.setattr(BlockTrainer, "train_whole", ruin)
    done = finetune.reconstruct(snn, x, dataclasses.replace(SHORT, regress=False))  # which would mend it
    assert done.taken_back
    assert "correction" not in snn.provenance
    assert not weights_tuned(snn)
    assert snn.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())


@pytest.mark.parametrize(("before", "after", "expected"), [
    ((0.05, 101 / 102), (0.03, 100 / 102), False),  # one image
    ((0.05, 101 / 102), (0.06, 101 / 102), True),
    ((0.05, 0.90), (0.03, 0.86), True),  # a standard error is 0.03
    ((0.05, 0.90), (0.03, 0.88), False),
    ((0.05, 0.86), (0.09, 0.90), False),
    ((0.05, 0.90), (float("nan"), 0.90), True),
])  # fmt: skip
def test_the_loss_judges_where_chance_explains_the_answers(before, after, expected) -> None:
    given = ({"loss": loss, "agreement": share, "images": 102} for loss, share in (before, after))
    assert worse(*given) is expected


def test_a_network_of_a_single_block() -> None:
    torch.manual_seed(0)
    x = torch.rand(40, 5)
    snn = convert.to_spiking(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), x, 2, delay="full")
    done = finetune.reconstruct(snn, x, SHORT)
    assert len(done.blocks) == 1
    assert done.output["after"]["quantized"]["loss"] <= done.output["before"]["quantized"]["loss"]


def test_only_what_is_named_trains_and_the_source_stays() -> None:
    snn, x = made(delay="full")
    weights = {name: value.clone() for name, value in snn.layers.state_dict().items()}
    finetune.reconstruct(snn, x, ReconstructConfig(epochs=2, output_epochs=2, train=("thresholds", "v_init")))
    assert all(torch.equal(value, weights[name]) for name, value in snn.layers.state_dict().items())
    assert all(not parameter.requires_grad or parameter.grad is None for parameter in snn.parameters())


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    snn, x = made(delay=1)
    finetune.reconstruct(snn, x, SHORT)
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    with torch.no_grad():
        assert torch.equal(snn(x), again(x))


def test_a_second_run_needs_the_source() -> None:
    snn, x = made(delay="full")
    source, _ = made(delay="full")
    finetune.reconstruct(snn, x, SHORT)
    assert weights_tuned(snn)
    with pytest.raises(TrainingError, match="weights were tuned before"):
        finetune.reconstruct(snn, x, SHORT)
    done = finetune.reconstruct(snn, x, SHORT, teacher=source)
    assert done.output["after"]["quantized"]["loss"] <= done.output["before"]["quantized"]["loss"]


def test_images_of_ones_own_judge() -> None:
    snn, x = made(delay="full")
    with torch.no_grad():
        goal, ours = (snn.read(reading, x[60:]).log_softmax(1) for reading in ("analog", "quantized"))
    done = finetune.reconstruct(snn, x[:60], SHORT, validation=x[60:])
    expected = float((goal.exp() * (goal - ours)).sum(1).mean())
    assert done.output["before"]["quantized"]["loss"] == pytest.approx(expected, rel=1e-3)


def test_the_memory_is_told_before_anything_is_done(monkeypatch) -> None:
    snn, x = made(delay="full")
    told: list[tuple[str, Need]] = []
    finetune.reconstruct(snn, x, SHORT, on_memory=lambda stage, need: told.append((stage, need)))
    (stage, need), = told  # fmt: skip
    assert (stage, need.images) == ("reconstruct", len(x))
    assert need.image == 4 * (6 * 6 + 3 * 6 * 6 * 6)  # bytes that enter the first block, and thrice what leaves it
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    monkeypatch.setattr("speedysnn.finetune.blocks.training.free_bytes", lambda device: need.peak - 1)
    with pytest.raises(TrainingError, match=r"reconstruct stage: reconstruction needs about .* use fewer images"):
        finetune.reconstruct(snn, x, SHORT, teacher=made(delay="full")[0])
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())


def test_progress_begins_with_the_memory_and_the_closed_form(monkeypatch, capsys) -> None:
    monkeypatch.setattr("speedysnn.display._EVERY_S", 0.0)
    snn, x = made(delay="full")
    finetune.reconstruct(snn, x, SHORT, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("reconstruct stage: reconstruction needs about")
    assert lines[1].startswith("regress weights: 1/")
    assert any(line.startswith("reconstruct: 1/") for line in lines)


def test_what_is_refused() -> None:
    snn, x = made()
    with pytest.raises(TrainingError, match="resume: expected the folder"):
        finetune.reconstruct(snn, x, SHORT, resume=True)
    for options, words in (({"train": ("bias",)}, "train: expected some of"), ({"source_share": 2.0}, "source_share"),
                           ({"correct": "mean"}, "correct: expected one of"), ({"holdout": 0.0}, "holdout"),
                           ({"batch_size": 0}, "batch_size"), ({"epochs": -1}, "epochs")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            ReconstructConfig(**options)  # type: ignore[arg-type]
