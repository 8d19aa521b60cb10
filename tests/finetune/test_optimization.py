"""The running average of a network's state: its recurrence, what it leaves alone, and that a run keeps it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from speedysnn import finetune
from speedysnn.errors import InputError
from speedysnn.finetune.optimization import Average
from tests.finetune.test_fit import _config, _data, _network


def _moved(module: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_average_is_its_recurrence(decay: float) -> None:
    module, average, generator = nn.BatchNorm1d(3), Average(), torch.Generator().manual_seed(0)
    expected: np.ndarray | None = None
    for step in range(1, 30):
        _moved(module, generator)
        average.update(module, decay)
        d = min(decay, (1 + step) / (10 + step))
        now = torch.cat([module.weight.detach(), module.running_mean]).double().numpy()
        expected = now if expected is None else d * expected + (1 - d) * now
    before = copy.deepcopy(module.state_dict())
    with average.applied(module):
        held = torch.cat([module.weight.detach(), module.running_mean]).double().numpy()
    np.testing.assert_allclose(held, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(KeyError), average.applied(module):
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert set(average.values) == {"weight", "bias", "running_mean", "running_var"}


def test_a_run_keeps_the_average_and_trains_as_without() -> None:
    """The steps are the same, so the last state's average can be computed beside them."""
    states = []
    own = Average()

    def run(average: float) -> tuple[dict[str, torch.Tensor], finetune.Result]:
        snn = _network()
        options = {"epochs_quantized": 3, "epochs_spiking": 0, "monitor": "last", "average": average,
                   "batch_norm": False}  # fmt: skip
        result = finetune.fit(snn, _data()[0], config=_config(**options))
        return copy.deepcopy(snn.state_dict()), result

    update = Average.update

    def watched(self: Average, module: nn.Module, decay: float) -> None:
        update(self, module, decay)
        update(own, module, 0.8)
        states.append(copy.deepcopy(module.state_dict()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speedysnn.finetune.loop.Average.update", watched)
        plain, _ = run(0.0)
    kept, result = run(0.8)
    assert all(torch.equal(value, states[-1][name]) for name, value in plain.items())
    for name, value in own.values.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(kept[name], plain[name]) for name in kept)
    assert result.best_epoch == 3


@pytest.mark.parametrize("average", [-0.1, 1.0, float("nan")])
def test_averages_that_are_none(average: float) -> None:
    with pytest.raises(InputError, match="average: expected at least 0 and below 1"):
        _config(average=average)
