"""Regression of weights: patches are what a layer reads, the ridge is solved, and no layer gets worse."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speedysnn import convert, finetune
from speedysnn.convert.matching import ImageWalk
from speedysnn.finetune.blocks.regression import (
    RIDGES,
    ROUNDS,
    _error,
    _Flat,
    _lowest,
    _patches,
    _Ridge,
    _Rows,
    regress,
)
from speedysnn.network import SpikingNetwork

LAYERS = [
    (nn.Linear(5, 3), (4, 5)),
    (nn.Linear(5, 3), (4, 6, 5)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9)),
    (nn.Conv1d(4, 6, 4, padding="same", dilation=2), (3, 4, 11)),
    (nn.Conv2d(3, 5, (3, 1), padding=(2, 0), dilation=(2, 1)), (2, 3, 7, 6)),
    (nn.Conv2d(6, 6, 3, padding="valid", groups=6), (2, 6, 7, 5)),
    (nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding=1), (2, 2, 4, 5, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
def test_patches_times_weights_are_what_the_layer_gives(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    with torch.no_grad():
        z = layer(x)
    rows, goals = _patches(layer, x, z, 7, torch.Generator().manual_seed(0))
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.detach().flatten(1).unflatten(0, (groups, -1))
    given = rows @ weight.mT + layer.bias.detach().view(groups, 1, -1)
    torch.testing.assert_close(given, goals)
    assert rows.shape[1] == goals.shape[1]


def test_the_ridge_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    x, z, weight = rng.normal(size=(40, 6)) + 1, rng.normal(size=(40, 2)), rng.normal(size=(2, 6))
    rows = _Rows(torch.tensor(x[None]), torch.tensor(z[None]))
    found, bias = _Ridge(rows, torch.tensor(weight[None]), None).solve(0.5)
    strength = 0.5 * np.trace(np.cov(x.T, bias=True)) / 6
    centred, goal = x - x.mean(0), z - z.mean(0)
    tall = np.vstack([centred / np.sqrt(40), np.sqrt(strength) * np.eye(6)])
    expected = np.linalg.lstsq(tall, np.vstack([goal / np.sqrt(40), np.sqrt(strength) * weight.T]), rcond=None)[0].T
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(bias[0].numpy(), z.mean(0) - expected @ x.mean(0), rtol=1e-9)


def clipped(x: Tensor, top: float) -> Tensor:
    return x.clamp(0, top)


def test_the_error_bounds_that_of_the_answers() -> None:
    """Below 0 and above the top nothing counts; a drive on another side than its goal is off by the whole way to it."""
    x, z, weight, bias = (
        torch.randn(shape, dtype=torch.float64) for shape in ((2, 9, 4), (2, 9, 3), (2, 3, 4), (2, 3))
    )
    drive = x @ weight.mT + bias[:, None]
    assert _error(_Rows(x, z), weight, bias, None) == pytest.approx(float((drive - z).square().sum()))
    flat = _Flat(torch.full((2, 3), 0.7))
    goal = flat.goal(drive, z)
    d, t = drive.numpy(), z.numpy()
    off = np.where(t <= 0, np.maximum(d, 0), np.where(t >= 0.7, np.minimum(d - 0.7, 0), d - t))
    assert _error(_Rows(x, z), weight, bias, flat) == pytest.approx(float((off**2).sum()), rel=1e-5)
    torch.testing.assert_close(clipped(goal, 0.7), clipped(z, 0.7), rtol=0, atol=1e-6)
    outside = (z <= 0) & (drive <= 0) | (z >= 0.7) & (drive >= 0.7)
    assert torch.equal(goal[outside], drive[outside])
    assert torch.equal(goal[(z > 0) & (z < 0.7)], z[(z > 0) & (z < 0.7)])
    assert bool(((drive - goal).abs() + 1e-6 >= (clipped(drive, 0.7) - clipped(z, 0.7)).abs()).all())


def test_rounds_bring_answers_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    x, start = torch.randn(1, 300, 6), torch.randn(1, 4, 6, dtype=torch.float64)
    z = (x @ torch.randn(6, 4)).pow(3) / 3 - 0.5  # which no weights give
    rows, flat, errors = _Rows(x, z), _Flat(torch.ones(1, 4)), []
    for rounds in (0, 1, ROUNDS, 40):
        monkeypatch.setattr("speedysnn.finetune.blocks.regression.ROUNDS", rounds)
        weight, bias = _Ridge(rows, start, flat).solve(1e-4)
        errors.append(float((clipped(rows.drive(weight, bias), 1.0) - clipped(z, 1.0)).square().sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.8 * errors[0]


def test_constant_inputs_leave_the_weights_to_the_ridge() -> None:
    """Their squares cancel against the square of their mean, but for rounding."""
    x, z = torch.full((1, 50, 4), 1234.567), torch.randn(1, 50, 2)
    x[..., 0] += torch.linspace(0, 1, 50)
    weight = torch.randn(1, 2, 4, dtype=torch.float64)
    found, _ = _Ridge(_Rows(x, z), weight, None).solve(RIDGES[0])
    torch.testing.assert_close(found[..., 1:], weight[..., 1:], rtol=1e-3, atol=1e-3)
    x[..., 0] = 1234.567
    found, bias = _Ridge(_Rows(x, z), weight, None).solve(RIDGES[0])
    torch.testing.assert_close(found, weight)
    torch.testing.assert_close(_Rows(x, z).drive(found, bias).mean(1), z.mean(1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("lowest", range(len(RIDGES)))
def test_the_ridge_of_least_error_is_found(lowest: int) -> None:
    asked: list[float] = []

    def error(ridge: float) -> float:
        asked.append(ridge)
        return abs(RIDGES.index(ridge) - lowest)

    assert _lowest(error) == (RIDGES[lowest], 0)
    assert len(asked) == len(set(asked))


class Stream(nn.Module):
    """A sum of a stream and what two layers make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 24), nn.Linear(24, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.first(x).relu()
        return self.head((stream + self.outer(self.inner(stream).relu())).relu())


def test_a_layer_takes_off_the_errors_of_the_stream_it_is_added_to() -> None:
    torch.manual_seed(0)
    x = torch.rand(200, 6)
    snn = convert.to_spiking(Stream(), x, 2, correct="none", delay="full")
    source = copy.deepcopy(snn)
    walk = ImageWalk(snn, [x], "quantized", source)
    node = next(node for node in snn.graph.nodes if node.name == "outer")
    other = next(name for add in snn.graph.nodes if add.op == "add" for name in add.inputs if name != "outer")
    position = walk.come_near(node)
    for part in walk.parts:
        read, goal = walk.around(part, node, position)
        theirs, ours = part.source, part.ours
        with torch.no_grad():
            own = source.layer("outer")(theirs[node.inputs[0]].tensor)
        torch.testing.assert_close(goal, own + theirs[other].tensor - ours[other].tensor)
        assert torch.equal(read, ours[node.inputs[0]].tensor)
        assert not torch.allclose(theirs[other].tensor, ours[other].tensor)


def made(model: nn.Module, **options: object) -> tuple[SpikingNetwork, Tensor]:
    x = torch.rand(120, 1, 1, 1) * torch.rand(120, 1, 6, 6)
    return convert.to_spiking(model, x[:80], 2, correct="none", **options), x


@pytest.mark.parametrize(("delay", "spikes"), [("full", "binary"), (0, "ternary"), (1, "binary")])
def test_outputs_come_nearer_on_images_that_took_no_part(delay: int | str, spikes: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    snn, x = made(model, delay=delay, spikes=spikes)
    plain, source = copy.deepcopy(snn), copy.deepcopy(snn)
    convert.apply_correction(plain, x[:80], "moments")
    taken = regress(snn, source, [x[:80]])
    assert taken.keys() == {"0", "2", "5"}
    assert max(taken.values()) > 0
    with torch.no_grad():
        goal = model(x[80:])
        by_moments, by_regression = ((net(x[80:]) - goal).square().mean() for net in (plain, snn))
    assert by_regression < by_moments


def test_what_cannot_be_fitted_stays_as_it_is() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 2, 3), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(72, 4, bias=False))
    snn, x = made(model, delay="full")
    source = copy.deepcopy(snn)
    assert set(regress(snn, source, [x])) == {"0"}
    for name in ("2", "5"):
        assert torch.equal(snn.layer(name).weight, source.layer(name).weight)


def test_the_closed_form_alone_and_only_where_weights_and_biases_train() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    with torch.no_grad():
        model[-1].weight.mul_(30)
    snn, x = made(model, delay="full")
    fixed = copy.deepcopy(snn)
    done = finetune.reconstruct(snn, x, finetune.ReconstructConfig(epochs=0, output_epochs=0))
    assert done.output["after"] == done.output["closed_form"]
    assert done.output["after"]["quantized"]["loss"] < done.output["before"]["quantized"]["loss"]
    weight = fixed.layer("0").weight.clone()
    finetune.reconstruct(fixed, x, finetune.ReconstructConfig(epochs=0, output_epochs=0, train=("thresholds",)))
    assert torch.equal(fixed.layer("0").weight, weight)
