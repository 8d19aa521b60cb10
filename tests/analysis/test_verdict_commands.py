"""Every command that a verdict can name is one that the command line takes."""

import re
import shlex
from typing import Any

import pandas as pd
import pytest
import typer

from speedysnn.analysis.gains import CHANGES
from speedysnn.analysis.sensitivity_verdict import sentences as sentences_of
from speedysnn.analysis.verdict import command, named, verdict
from speedysnn.cli.main import app

OUTPUTS: dict[str, Any] = {
    "images": 10, "timesteps": 4, "delay": 0, "latency": 4, "depth": 2, "spikes_per_neuron": 0.5, "accuracy": 0.8,
    "analog_accuracy": 0.9, "twin_accuracy": 0.85, "agreement": 0.8, "twin_agreement": 0.9, "sqnr_db": 5.0,
    "twin_sqnr_db": 9.0, "temporal_gap_db": 4.0,
}  # fmt: skip
LAYER: dict[str, Any] = {
    "layer": "relu1", "reads": "", "sqnr_db": 5.0, "silent": 0.0, "bias_share": 0.1, "saturated": 0.01,
    "share_clip": 0.0, "share_round": 0.0, "share_propagated": 0.0, "share_temporal": 0.0,
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "timing, no look-ahead": ({}, {"share_temporal": 1.0}, "--delay 1"),
    "timing, look-ahead 1": ({"delay": 1}, {"share_temporal": 1.0}, "--stage spiking"),
    "timing, look-ahead 3": ({"delay": 3}, {"share_temporal": 1.0}, "--stage spiking"),
    "bias": ({"temporal_gap_db": 0.0}, {"share_round": 1.0, "bias_share": 0.9}, "--train biases,v_init"),
    "clip": ({"temporal_gap_db": 0.0}, {"share_clip": 1.0}, "--train thresholds"),
    "round, range unused": ({"temporal_gap_db": 0.0}, {"share_round": 1.0, "saturated": 0.0}, "--train thresholds"),
    "round, in balance": ({"temporal_gap_db": 0.0}, {"share_round": 1.0}, "-T 8 --recalibrate"),
    "silent": ({"temporal_gap_db": 0.0}, {"share_round": 1.0, "silent": 1.0}, "speedysnn"),
}


def _commands(sentences: tuple[str, ...]) -> list[str]:
    found = [re.findall(r"speedysnn [a-z]+ .*?(?=, then|, or|\.$|\.\s|$)", sentence) for sentence in sentences]
    return [text for each in found for text in each]


@pytest.mark.parametrize("case", sorted(CASES))
def test_it_parses_and_does_what_the_sentence_says(case: str) -> None:
    outputs, layer, words = CASES[case]
    sentences = verdict(pd.DataFrame([{**LAYER, **layer}]), {**OUTPUTS, **outputs})
    commands = _commands(named(sentences, "my net.snn", "npz:a b.npz", "first one.snn", {"--normalize": "cifar10"}))
    assert any(words in text for text in commands), sentences
    _parse(commands)


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_sensitivity_names_commands_that_parse(change: str) -> None:
    table = pd.DataFrame([{"layer": "relu1", "mode": "isolated", "sqnr_db": 3.0}])
    gains = pd.DataFrame([{"layer": "relu1", "change": change, "gain_db": 2.0, "gain_se_db": 0.1, "expected_db": 1.9,
                           "call": "changes[...].apply(snn)"}])  # fmt: skip
    sentences = named(sentences_of(table, gains, OUTPUTS), "my net.snn", "npz:a b.npz", "first one.snn",
                      {"--normalize": "cifar10"})  # fmt: skip
    commands = _commands(sentences)
    assert len(commands) == 3  # two for the timing, one like the change
    _parse(commands)


def test_a_command_keeps_what_it_sets_itself() -> None:
    text = f"{command('evaluate {net} -d {data} -T 8 --recalibrate')}, or {command('finetune {net} -d {data} -o t.snn')}."
    (said,) = named([text], "a.snn", "digits", options={"-T": "4", "--delay": "1"})
    assert said == (
        "speedysnn evaluate a.snn -d digits --delay 1 -T 8 --recalibrate, or "
        "speedysnn finetune a.snn -d digits -T 4 --delay 1 -o t.snn."
    )


def _parse(commands: list[str]) -> None:
    group = typer.main.get_command(app)
    for text in commands:
        program, name, *arguments = shlex.split(text)
        assert program == "speedysnn"
        context = group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
        assert str(context.params["network"]) == "my net.snn"
        assert context.params["data"] == "npz:a b.npz"
        assert str(context.params["source"]) == "first one.snn"
        assert context.params["normalize"] == "cifar10"
