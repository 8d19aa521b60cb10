"""Regression of weights: patches are what a layer reads, the ridge is solved, and no layer gets worse."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speedysnn import convert, finetune
from speedysnn.finetune.blocks.regression import _Moments, _patches, regress
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
    found, bias = _Moments.of(iter([(torch.tensor(x[None]), torch.tensor(z[None]))])).solve(
        torch.tensor(weight[None]), 0.5
    )
    strength = 0.5 * np.trace(np.cov(x.T, bias=True)) / 6
    centred, goal = x - x.mean(0), z - z.mean(0)
    tall = np.vstack([centred / np.sqrt(40), np.sqrt(strength) * np.eye(6)])
    expected = np.linalg.lstsq(tall, np.vstack([goal / np.sqrt(40), np.sqrt(strength) * weight.T]), rcond=None)[0].T
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(bias[0].numpy(), z.mean(0) - expected @ x.mean(0), rtol=1e-9)


def test_the_error_is_that_of_the_rows() -> None:
    x, z, weight, bias = (
        torch.randn(shape, dtype=torch.float64) for shape in ((2, 9, 4), (2, 9, 3), (2, 3, 4), (2, 3))
    )
    sums = _Moments.of(iter([(x[:, :5], z[:, :5]), (x[:, 5:], z[:, 5:])]))
    expected = (x @ weight.mT + bias[:, None] - z).square().sum(1)
    torch.testing.assert_close(sums.error(weight, bias), expected)


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
