"""Batch-norm in place while tuning: no function changes, whole batches, memory by recomputation, rates in own scales."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speedysnn import convert, finetune
from speedysnn.assets.digits import load_digits_net
from speedysnn.data import load
from speedysnn.finetune.batch_norm import fold_into, run_training, set_statistics, unfolded
from speedysnn.finetune.blocks import whole
from speedysnn.finetune.blocks.whole import WholeStep
from speedysnn.finetune.config import GROUPS
from speedysnn.finetune.objectives import Target, outputs_and_layers
from speedysnn.finetune.optimization import grouped, optimizer, scales_of
from speedysnn.finetune.penalties import Budget
from speedysnn.finetune.run import Run
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Reading

X = torch.rand(24, 2, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A convolution, a residual block whose second one leads to a neuron through an add, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(n, 6, 3, padding=1) for n in (2, 6, 6))
        self.end = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x).relu()
        x = (self.b(self.a(x).relu()) + x).relu()
        return self.end(x.mean((2, 3))) * 20


def network(**options: Any) -> SpikingNetwork:
    torch.manual_seed(0)
    return convert.to_spiking(Residual(), X, timesteps=2, **options)


def normed(snn: SpikingNetwork) -> SpikingNetwork:
    out = unfolded(snn, [X[:1]])
    assert out is not None
    return out


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_a_batch_norm_stands_behind_every_layer_that_leads_to_a_neuron() -> None:
    nodes = normed(network()).graph.nodes
    assert [node.inputs[0] for node in nodes if node.op == "batch_norm"] == ["stem", "a", "b"]
    add = next(node for node in nodes if node.op == "add")
    assert set(add.inputs) & {node.name for node in nodes if node.op == "batch_norm"}


@pytest.mark.parametrize("reading", ["analog", "quantized", "spiking"])
@torch.no_grad()
def test_put_in_measured_and_folded_no_output_changes(reading: Reading) -> None:
    snn = network(delay=1)
    before, ours = {r: snn.read(r, X) for r in ("analog", "quantized", "spiking")}, normed(snn)
    keys, layers, graph = list(snn.state_dict()), dict(snn.layers.items()), snn.graph
    for each, expected in before.items():
        close(ours.read(each, X), expected)
    set_statistics(ours, [X], reading)
    norm = next(node for node in ours.graph.nodes if node.op == "batch_norm")
    assert bool(ours.tensors(norm.name)["mean"].any())
    torch.testing.assert_close(ours.tensors(norm.name)["var"], torch.ones(6))
    for each, expected in before.items():
        close(ours.read(each, X), expected)
    fold_into(ours, snn)
    for each, expected in before.items():
        close(snn.read(each, X), expected)
    assert list(snn.state_dict()) == keys
    assert snn.graph is graph
    assert all(snn.layers[key] is layer for key, layer in layers.items())


@torch.no_grad()
def test_statistics_are_the_drives_mean_and_variance() -> None:
    ours = normed(network())
    set_statistics(ours, [X], "quantized")
    layer = ours.layer("stem")
    assert layer is not None
    drive = nn.functional.conv2d(X, layer.weight, padding=1).double()
    tensors = ours.tensors("stem.batch_norm")
    torch.testing.assert_close(tensors["mean"].double(), drive.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tensors["var"].double(), drive.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_layers_that_a_user_changed_keep_what_they_are() -> None:
    snn = network()
    hooked, parametrized = snn.layer("a"), snn.layer("b")
    assert hooked is not None
    assert parametrized is not None
    hooked.register_forward_hook(lambda *_: None)
    nn.utils.parametrizations.weight_norm(parametrized)
    ours = normed(snn)
    assert [node.inputs[0] for node in ours.graph.nodes if node.op == "batch_norm"] == ["stem"]
    assert ours.layer("a") is hooked
    assert ours.layer("b") is parametrized
    close(ours(X), snn(X))


def step_of(snn: SpikingNetwork, reading: Reading, **options: Any) -> tuple[Tensor, list[Tensor], WholeStep]:
    config = finetune.Config(membrane=0.5, **options)
    source = {name: x.detach() for name, x in outputs_and_layers(copy.deepcopy(snn), (X,), "analog")[1].items()}
    target = Target(torch.randn(24, 3, generator=torch.Generator().manual_seed(1)))
    step = WholeStep(snn, config, reading, list(snn.parameters()), budget=Budget(0.1, 1.0, running=1.0))
    loss = step.run((X,), target, source)
    return loss, [p.grad.clone() for p in snn.parameters() if p.grad is not None], step


@pytest.mark.parametrize("reading", ["quantized", "spiking"])
def test_computed_twice_gradients_and_statistics_are_the_same(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for short in (False, True):
        ours = normed(network())
        set_statistics(ours, [X], reading)
        if short:
            need = whole.saved_bytes(ours, (X,), reading) * len(X)
            monkeypatch.setattr(whole, "free_bytes", lambda _, need=need: need)
        loss, gradients, step = step_of(ours, reading)
        assert (len(step._blocks) > 1) is short
        found[short] = [loss, *gradients, *(x.clone() for x in ours.buffers())]
    assert len(found[True]) > 12
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(a.abs().max()))


def test_a_whole_step_is_autograds(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = normed(network())
    config = finetune.Config(layer_match_weight=0.0, temperature=2.0)
    target = Target(torch.randn(24, 3, generator=torch.Generator().manual_seed(1)))
    loss = finetune.OBJECTIVES["kl"](run_training(ours, (X,), "quantized", momentum=0.0), target, 2.0)
    expected = torch.autograd.grad(loss, list(ours.parameters()), allow_unused=True)
    WholeStep(ours, config, "quantized", list(ours.parameters())).run((X,), target, {})
    for parameter, gradient in zip(ours.parameters(), expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient)


def config(**options: Any) -> finetune.Config:
    return finetune.Config(**{"epochs_quantized": 2, "epochs_spiking": 1, "batch_size": 8, "holdout": 0.25, **options})


@pytest.mark.parametrize("stop_after", [0, 1, 2, 4])
def test_a_run_repeats_itself_and_resumes_to_the_same_bits(stop_after: int, tmp_path: Path) -> None:
    states = []
    for _ in range(2):
        snn = network()
        finetune.fit(snn, X, config=config())
        states.append(snn.state_dict())
    seen: list[Any] = []

    def interrupt(row: dict[str, Any]) -> None:
        seen.append(row)
        if len(seen) > stop_after:
            raise KeyboardInterrupt

    broken, resumed = network(), network()
    with pytest.raises(KeyboardInterrupt):
        finetune.fit(broken, X, config=config(), folder=tmp_path, on_epoch=interrupt)
    assert not any(node.op == "batch_norm" for node in broken.graph.nodes)
    begun = (tmp_path / "run.safetensors").is_file()
    finetune.fit(resumed, X, config=config(), folder=tmp_path, resume=begun)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_only_weights_and_thresholds_of_the_same_network_change() -> None:
    snn, needs = network(), list[str]()
    layers, graph, before = list(snn.layers.values()), snn.graph, copy.deepcopy(snn.state_dict())
    finetune.fit(snn, X, validation=X, config=config(), on_memory=lambda _, need: needs.append(str(need)))
    assert snn.graph is graph
    assert all(a is b for a, b in zip(snn.layers.values(), layers, strict=True))
    assert list(snn.state_dict()) == list(before)
    assert all(need.endswith("batch-norm in place") for need in needs)
    assert any(not torch.equal(value, before[name]) for name, value in snn.state_dict().items())


@pytest.mark.parametrize(
    ("options", "why"),
    [({"batch_norm": False}, "batch_norm is off"), ({"batch_size": 1}, "one image"),
     ({"train": ("thresholds",)}, "weights or biases do not train")],
)  # fmt: skip
def test_without_batch_norm_the_plan_says_why(options: dict[str, Any], why: str) -> None:
    needs: list[str] = []
    few = config(epochs_quantized=1, epochs_spiking=0, **options)
    finetune.fit(network(), X, config=few, on_memory=lambda _, need: needs.append(str(need)))
    assert why in needs[0]


def test_a_run_of_stages_that_goes_astray_ends_in_the_network_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage keeps its best state in its own reading, which may be a bad one in that of the next."""
    snn = network()
    before = copy.deepcopy(snn.state_dict())
    enter = Run._enter

    def spoil(run: Run, stage: finetune.Stage, index: int) -> None:
        with torch.no_grad():
            run.trainer.snn.neurons["relu"].log_threshold.add_(3.0)
        enter(run, stage, index)

    monkeypatch.setattr(Run, "_enter", spoil)
    result = finetune.fit(snn, X, config=config(epochs_quantized=1, learning_rates=dict.fromkeys(GROUPS, 1e-9)))
    assert result.best_epoch == 0
    assert all(-result.best_score < loss for loss in result.history.held_out_loss)
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())


def test_default_rates_are_in_the_scale_of_each_parameter() -> None:
    snn, scaled = network(), network()
    with torch.no_grad():
        scaled.layer("a").weight.mul_(100)  # type: ignore[union-attr]
    rates = []
    for each in (snn, scaled):
        groups = grouped(each)
        scales = scales_of(groups, finetune.Config())
        made = optimizer(groups, finetune.Config(), 0.5, scales)
        rates.append({id(p): group["lr"] for group in made.param_groups for p in group["params"]})
    weights = [each.layer("a").weight for each in (snn, scaled)]  # type: ignore[union-attr]
    own = [rate[id(weight)] for rate, weight in zip(rates, weights, strict=True)]
    assert own[1] == pytest.approx(100 * own[0])
    rms = float(weights[0].detach().square().mean().sqrt())
    assert own[0] == pytest.approx(0.5 * finetune.Config().rate("weights") * rms)
    given = finetune.Config(learning_rates={"weights": 1e-3})
    assert not given.relative("weights")
    assert set(scales_of(grouped(snn), given)) == {n for g, m in grouped(snn).items() if g != "weights" for n in m}
    assert not scales_of(grouped(snn), finetune.TrainConfig())


@pytest.mark.parametrize("timesteps", [1, 2])
def test_defaults_improve_the_digits_or_leave_them(timesteps: int) -> None:
    train = load("digits", "train", limit=240)
    snn = convert.to_spiking(load_digits_net("max"), train, timesteps=timesteps)
    result = finetune.fit(snn, train)
    own = result.history[result.history.stage == result.history.stage.iloc[-1]]
    assert -result.best_score <= own.held_out_loss.iloc[0]
    quantized = result.history[result.history.stage == "quantized"].held_out_loss
    assert quantized.min() < 0.9 * quantized.iloc[0]
