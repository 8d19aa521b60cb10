"""A budget of spikes is met and costs accuracy only; membranes outside [0, theta) are counted as numpy counts them."""

import numpy as np
import pytest
import torch

from speedysnn import finetune
from speedysnn.errors import InputError, TrainingError
from speedysnn.execution.observers import LayerRecord
from speedysnn.finetune.penalties import Budget, Rates, membrane_penalty
from speedysnn.neurons import IFNeuron
from tests.finetune.test_fit import _config, _data, _network


def _tap(neuron: IFNeuron, x: torch.Tensor) -> LayerRecord:
    return LayerRecord("n", neuron, x, neuron.spiking(x), False, False)


def _rate(snn, x) -> float:
    rates = Rates({})
    with torch.no_grad():
        snn(x, observer=lambda tap: rates.take(tap, False))
    return float(rates.rate)


@pytest.mark.parametrize("reading", ["quantized", "spiking"])
def test_the_budget_is_met(reading) -> None:
    snn, x = _network(), _data()[0]
    limit = 0.5 * _rate(snn, x)
    epochs = {"epochs_quantized": 30 * (reading == "quantized"), "epochs_spiking": 30 * (reading == "spiking")}
    result = finetune.fit(snn, x, validation=x, config=_config(budget=limit, spiking_rate=1.0, **epochs))
    best = result.history[result.history.best].iloc[-1]
    assert best.budget_rate <= limit
    assert result.history.budget_rate.iloc[0] > 1.5 * limit


def test_rate_counts_spikes_of_both_signs_and_weighs_layers() -> None:
    neuron = IFNeuron(1.0, timesteps=4, spikes="ternary")
    x = torch.tensor([[2.0, 0.3], [-1.0, 0.3], [-1.0, 0.3], [0.5, 0.3]])
    tap = _tap(neuron, x)
    counted = np.abs(tap.output.detach().numpy()).sum()
    rates = Rates({"n": 3.0})
    rates.take(tap, False)
    rates.take(LayerRecord("m", neuron, x, tap.output, False, False), False)
    assert float(rates.rate.detach()) == pytest.approx((3 * counted + counted) / (3 * 2 + 2))


def test_membrane_penalty_against_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * 30, 5, generator=generator) * 0.8
    neuron = IFNeuron(torch.rand(5, generator=generator) + 0.5, timesteps=4)
    theta, drive = neuron.threshold.detach().numpy(), x.view(4, 30, 5).numpy()
    u, n = np.full((30, 5), 0.5), np.zeros((30, 5))
    for step in drive:
        u = u + step / theta
        fired = (u >= 1).astype(float)
        u, n = u - fired, n + fired
    expected = (np.maximum(-u, 0) * (n > 0) + np.maximum(u - 1, 0) * (n < 4)) ** 2
    assert expected.mean() > 0
    assert float(membrane_penalty(_tap(neuron, x)).detach()) == pytest.approx(expected.mean(), rel=1e-4)


def test_the_membrane_penalty_lowers_the_temporal_error() -> None:
    def outside(snn) -> float:
        parts = []
        with torch.no_grad():
            snn(_data()[0], observer=lambda tap: parts.append(float(membrane_penalty(tap))))
        return sum(parts)

    plain, damped = _network(), _network()
    for snn, weight in ((plain, 0.0), (damped, 10.0)):
        x = _data()[0]
        config = _config(epochs_quantized=0, epochs_spiking=20, membrane=weight, spiking_rate=1.0)
        finetune.fit(snn, x, validation=x, config=config)
    assert outside(damped) < outside(plain)


def test_the_weight_doubles_after_epochs_above_the_limit() -> None:
    budget = Budget(1.0, 0.5)
    budget.begin([3.0])
    assert budget.factor == 0.5
    budget.begin([3.0, 2.0, 1.5])
    assert budget.factor == 2.0
    for _ in range(40):
        budget.update(0.5)
    assert budget.factor == 0.0


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="budget"):
        _config(budget=0.0)
    with pytest.raises(InputError, match="budget_of"):
        _config(budget_of="joules")
    with pytest.raises(TrainingError, match="fan_out"):
        finetune.fit(_network(), _data()[0], config=_config(budget=1.0, budget_of="synops"))
