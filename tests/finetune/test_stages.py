"""Stages: written and read as text, composed into curricula, the network's own setting back at the end."""

import copy
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speedysnn import finetune
from speedysnn.errors import InputError
from speedysnn.finetune.config import Stage
from speedysnn.finetune.objectives import Target, kl
from speedysnn.finetune.run import carry_thresholds, stage_settings
from tests.finetune.test_fit import _config, _data, _network

stages = st.builds(
    Stage, st.sampled_from(("quantized", "spiking", "blockwise", "reconstruct")), st.integers(1, 9), st.none() | st.integers(1, 64),
    st.none() | st.integers(0, 9) | st.just("full"), st.none() | st.sampled_from(("binary", "ternary", "graded:3")),
    st.sampled_from((1.0, 0.5, 0.125)),
)  # fmt: skip


@given(stages)
def test_text_and_back(stage: Stage) -> None:
    assert Stage.parse(str(stage)) == stage


@pytest.mark.parametrize(
    ("text", "words"),
    [("quantised:2", "expected one of quantized"), ("spiking", "expected KIND:EPOCHS"), ("spiking:0", "at least 1"),
     ("spiking:1,t=4", "expected KIND:EPOCHS"), ("spiking:1,T=0", "T: expected"), ("spiking:1,delay=-1", "delay"),
     ("spiking:1,rate=0", "rate"), ("spiking:1,spikes=loud", "spikes")],
)  # fmt: skip
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Stage.parse(text)


def test_a_setting_comes_back_after_an_error() -> None:
    snn, seen = _network(delay=1), []

    def fail() -> None:
        with stage_settings(snn, Stage("spiking", 1, timesteps=8, delay="full", spikes="ternary")):
            seen.append((snn.timesteps, {(n.delay, n.spikes) for n in snn.neurons.values()}))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert seen == [(8, {("full", "ternary")})]
    assert snn.timesteps == 2
    assert {(n.delay, n.spikes) for n in snn.neurons.values()} == {(1, "binary")}


def test_thresholds_follow_the_calibrated_ones_to_another_t() -> None:
    snn = _network()
    fresh = copy.deepcopy(snn)
    fresh.timesteps = 8
    fresh.recalibrate()
    factor = 1.25
    for neuron in snn.neurons.values():
        neuron.set_threshold(neuron.threshold.detach() * factor)
    carry_thresholds(snn, 2, 8)
    for name, neuron in snn.neurons.items():
        torch.testing.assert_close(neuron.threshold, fresh.neurons[name].threshold * factor)


def test_a_curriculum_runs_at_its_settings_and_ends_at_the_networks_own() -> None:
    plan = ("blockwise:0", "quantized:2,T=8", "quantized:1", "spiking:1,delay=full", "spiking:1,delay=1,spikes=ternary",
            "spiking:1,rate=0.5")  # fmt: skip
    snn = _network()
    result = finetune.fit(snn, _data()[0], config=_config(stages=tuple(map(Stage.parse, plan)), layer_match_weight=1.0))
    rows = result.history.groupby("stage_index").agg({"stage": "first", "timesteps": "first", "epoch": "max"})
    assert rows.stage.tolist() == [text.split(":")[0] for text in plan]
    assert rows.timesteps.tolist() == [2, 8, 2, 2, 2, 2]
    assert rows.epoch.tolist() == [0, 2, 1, 1, 1, 1]
    assert snn.timesteps == 2
    assert {(n.delay, n.spikes) for n in snn.neurons.values()} == {(0, "binary")}
    assert snn.provenance["finetuned"][0]["config"]["stages"][1]["timesteps"] == 8


def test_starting_at_more_steps_helps_the_loss_there() -> None:
    """A stage at T=8 is judged at T=8: its first held-out loss is below that at T=2."""
    result = finetune.fit(_network(), _data()[0], config=_config(stages=(Stage("quantized", 1), Stage("quantized", 1, 8))))
    first = result.history[result.history.epoch == 0].held_out_loss.tolist()
    assert first[1] < first[0]


def test_a_curriculum_resumes_to_the_same_weights(tmp_path) -> None:
    config = _config(stages=tuple(map(Stage.parse, ("blockwise:1,T=4", "quantized:2,T=4", "spiking:2,delay=1"))))
    whole = _network()
    finetune.fit(whole, _data()[0], config=config)
    for stop in (2, 4, 5, 7):
        seen = []

        def interrupt(row, seen=seen, stop=stop) -> None:
            seen.append(row)
            if len(seen) > stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            finetune.fit(_network(), _data()[0], config=config, folder=tmp_path, on_epoch=interrupt)
        resumed = _network()
        finetune.fit(resumed, _data()[0], config=config, folder=tmp_path, resume=True)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (stop, name)


def test_config_with_stages_survives_json() -> None:
    config = _config(stages=(Stage("blockwise", 0), Stage("spiking", 2, 8, "full", "ternary", 0.5)), budget=0.3)
    assert finetune.Config.from_json(config.to_json()) == config


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_reconstruction_is_a_stage(epochs: int) -> None:
    snn, x = _network(delay="full"), _data()[0]
    result = finetune.fit(snn, x[:120], x[120:], config=_config(stages=(Stage("reconstruct", epochs),), temperature=1.0))
    rows = result.history
    assert rows.epoch.tolist() == [0, epochs]
    assert rows.held_out_loss.iloc[1] < rows.held_out_loss.iloc[0]
    with torch.no_grad():
        ours, theirs = (_network(delay="full").read("analog", x[120:]), snn.read("quantized", x[120:]))
        kept = float(kl(theirs, Target(ours), 1.0))
    assert kept == pytest.approx(rows.held_out_loss.iloc[1], rel=1e-4)


def test_a_reconstruction_comes_first_where_parameters_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["speedysnn.finetune.fit"], "_PARAMETERS_AN_IMAGE", 1)
    told = []
    config = finetune.Config(batch_size=40, epochs_spiking=0)
    result = finetune.fit(_network(), _data(80)[0], config=config, on_memory=lambda stage, need: told.append(stage))
    assert result.history.stage.unique().tolist() == ["reconstruct", "quantized"]
    assert told == ["reconstruct", "quantized"]
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    result = finetune.fit(_network(), _data(80)[0], teacher=other, config=config)
    assert result.history.stage.unique().tolist() == ["quantized"]
