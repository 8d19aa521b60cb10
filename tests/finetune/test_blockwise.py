"""The blockwise stage: gradients stay within a layer, the closed form lowers every layer's error."""

import copy

import pytest
import torch

from speedysnn import finetune
from speedysnn.finetune.blocks.layerwise import fit_closed_form, local_gradients, run_blocks
from speedysnn.finetune.config import Stage
from speedysnn.finetune.objectives import outputs_and_layers, powers
from tests.finetune.test_fit import _config, _data, _network


def _parts(**options):
    snn, x = _network(**options), _data(40)[0]
    with torch.no_grad():
        source = outputs_and_layers(copy.deepcopy(snn), (x,), "analog")[1]
    return snn, x, source


def test_blocks_give_the_quantized_readings_output() -> None:
    snn, x, _ = _parts()
    with torch.no_grad(), snn.reading("quantized"):
        torch.testing.assert_close(run_blocks(snn, [x], lambda *_: None), snn(x))


def test_a_layers_loss_reaches_its_own_block_only() -> None:
    """Gradients equal those of each layer's distance alone, its input held fixed."""
    snn, x, source = _parts()
    names = [name for name, _ in snn.named_parameters()]
    parameters = [p for _, p in snn.named_parameters()]
    _, gradients = local_gradients(snn, [x], source, powers(source), parameters, lambda out: out.sum() * 0)
    own: dict[str, torch.Tensor] = {}

    def visit(name, drive, out):
        loss = (out - source[name]).square().sum() / source[name].square().sum() / len(source)
        given = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        reached = {n for n, g in zip(names, given, strict=True) if g is not None}
        assert not reached & set(own), "two layers reached one parameter"
        own.update({n: g for n, g in zip(names, given, strict=True) if g is not None})

    run_blocks(snn, [x], visit)
    assert len(own) >= 6
    for name, gradient in zip(names, gradients, strict=True):
        if name in own:
            torch.testing.assert_close(gradient, own[name])


@pytest.mark.parametrize("options", [{}, {"granularity": "layer"}, {"v_init": 0.0}])
def test_the_closed_form_lowers_every_layers_error(options) -> None:
    snn, x, source = _parts(**options)
    for neuron in snn.neurons.values():
        neuron.set_threshold(neuron.threshold.detach() * 1.4)
    gained = fit_closed_form(snn, [x], source)
    assert set(gained) == set(snn.neurons)
    assert min(gained.values()) >= 0
    assert max(gained.values()) > 1


def test_it_trains_and_no_memory_of_the_whole_network_is_needed() -> None:
    snn, x = _network(), _data()[0]
    config = _config(stages=(Stage("blockwise", 6),), learning_rates={"weights": 5e-3})
    result = finetune.fit(snn, x, validation=x, config=config)
    losses = result.history.train_loss.dropna()
    assert losses.iloc[-1] < losses.iloc[0]
    held = result.history.held_out_loss
    assert held.min() < held.iloc[0]
