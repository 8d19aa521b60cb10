"""Tuning with rounded weights: what trains is what a chip gets, and few bits then cost less."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import speedysnn
from speedysnn import convert, data, finetune, integer
from speedysnn.assets.digits import load_digits_net
from speedysnn.errors import ConversionError, InputError
from speedysnn.finetune.batch_norm import unfolded
from speedysnn.finetune.optimization import Rounding
from speedysnn.network import SpikingNetwork
from tests.finetune.test_fit import _config, _data, _network


def _weights(snn: SpikingNetwork) -> dict[str, torch.Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in snn.layers.items() if layer.weight.ndim > 1}


@pytest.mark.parametrize(
    "options", [{}, {"train": ("thresholds", "weights")}, {"stages": (finetune.Stage("blockwise", 1),)}]
)
def test_what_was_judged_is_what_the_chip_gets(options: dict[str, Any]) -> None:
    snn, seen = _network(), list[dict[str, torch.Tensor]]()

    def objective(ours: torch.Tensor, target: finetune.Target, temperature: float) -> torch.Tensor:
        seen.append(_weights(snn))
        return (ours - target.teacher()).square().mean()

    before = _weights(snn)
    config = _config(weight_bits=3, batch_norm=False, average=0.0, monitor="last", epochs_spiking=1, **options)
    result = finetune.fit(snn, _data(), config=config, objective=objective)
    last, after = seen[-1], _weights(snn)
    assert result.history.epoch.iloc[-1] >= 1
    expected = integer.rounded_weights(snn, 3)
    for name, weight in last.items():
        assert torch.equal(weight, expected[name].float())
        assert not torch.equal(after[name], before[name])  # the gradient came through
        assert not torch.equal(after[name], weight)  # what is kept has not been rounded
    assert all(len(row.unique()) <= 7 for row in last["0"])


def test_batch_norm_in_place_sees_the_folded_network_s_rounded_weights() -> None:
    snn, x = _network(), _data(40)[0]
    normed = unfolded(snn, [x[:1]])
    assert normed is not None
    with torch.no_grad():
        for name, layer in normed.layers.items():
            if name.endswith("batch_norm"):
                layer.weight.mul_(torch.linspace(-1.0, 2.0, len(layer.weight)))
                layer.var.mul_(torch.linspace(0.5, 3.0, len(layer.var)))
    before = _weights(normed)
    with torch.no_grad(), Rounding(3).seen(normed, snn):
        ours = normed.read("analog", x)
    assert all(torch.equal(value, before[name]) for name, value in _weights(normed).items())
    with torch.no_grad(), Rounding(3).seen(snn):
        expected = snn.read("analog", x)
    assert torch.allclose(ours, expected, atol=1e-4)


def test_few_bits_cost_less_after_tuning() -> None:
    """Digits, two bits: the chip of the tuned network against the chip of the converted one, on the test images."""
    train, test = data.load("digits", "train"), data.load("digits", "test")
    pixels = torch.stack([(test[i][0] * 255).round().to(torch.uint8) for i in range(len(test))])
    labels = torch.tensor([test[i][1] for i in range(len(test))])

    def accuracy(snn: SpikingNetwork) -> float:
        chip = speedysnn.to_integer(snn, 2)
        return float(((chip(pixels) * chip.scale).argmax(1) == labels).float().mean())

    snn = convert.to_spiking(load_digits_net("avg"), train, timesteps=4, delay=1)
    before = accuracy(snn)
    finetune.fit(snn, train, config=finetune.Config(epochs_quantized=4, epochs_spiking=0, weight_bits=2))
    after = accuracy(snn)
    assert after > before + 0.02
    assert snn.provenance["finetuned"][-1]["config"]["weight_bits"] == 2


def test_a_resumed_run_gives_the_same_bits(tmp_path: Any) -> None:
    whole, parts = _network(), _network()
    config = _config(weight_bits=4, epochs_spiking=0)
    finetune.fit(whole, _data(), config=config)

    class Stop(Exception):
        """Ends a run after an epoch."""

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            raise Stop

    with pytest.raises(Stop):
        finetune.fit(parts, _data(), config=config, folder=tmp_path / "run", on_epoch=stop)
    again = _network()
    finetune.fit(again, _data(), config=config, folder=tmp_path / "run", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("bits", [1, 17, 4.0, True, "4"])
def test_other_numbers_of_bits_are_refused(bits: Any) -> None:
    with pytest.raises(InputError, match="weight_bits: expected a whole number of 2 to 16"):
        finetune.Config(weight_bits=bits)


def test_what_cannot_be_rounded_is_refused_by_name() -> None:
    config = _config(weight_bits=4)
    hybrid = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 2))
    x = torch.rand(40, 4)
    with pytest.raises(ConversionError, match="silu"):
        finetune.fit(convert.to_spiking(hybrid, x, allow_hybrid=True), x, config=config)
    snn = convert.to_spiking(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), x)
    parametrizations.weight_norm(snn.layers["0"])
    with pytest.raises(InputError, match="own their weights, got 0, whose weights are pruned"):
        finetune.fit(snn, x, config=config)
    with pytest.raises(InputError, match="weight_bits"):
        finetune.TrainConfig(weight_bits=4)
