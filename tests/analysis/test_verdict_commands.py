"""Every command that a verdict can name is one that the command line takes."""

import re
import shlex
from typing import Any

import pandas as pd
import pytest
import typer

from speedysnn import finetune
from speedysnn.analysis.report import Advice, CommandNames, command_words, filled
from speedysnn.analysis.report.verdict import advise
from speedysnn.analysis.sensitivity.changes import CHANGES
from speedysnn.analysis.sensitivity.result import advise_on_layers
from speedysnn.cli.main import app

OUTPUTS: dict[str, Any] = {
    "images": 10, "timesteps": 4, "delay": 0, "latency": 4, "depth": 2, "spikes_per_neuron": 0.5, "accuracy": 0.8,
    "analog_accuracy": 0.9, "twin_accuracy": 0.85, "agreement": 0.8, "twin_agreement": 0.9, "sqnr_db": 5.0,
    "twin_sqnr_db": 9.0, "temporal_gap_db": 4.0,
}  # fmt: skip
LAYER: dict[str, Any] = {
    "layer": "relu1", "reads": "", "sqnr_db": 5.0, "silent": 0.0, "bias_share": 0.1, "saturated": 0.01,
    "share_clip": 0.0, "share_round": 0.0, "share_propagated": 0.0, "share_temporal": 0.0,
    "affine_share": 0.0, "drive_gain": 1.0,
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


NAMES = CommandNames("my net.snn", "npz:a b.npz", "first one.snn", {"--normalize": "cifar10"})


def _commands(advice: tuple[Advice, ...]) -> list[tuple[str, ...]]:
    return [one.argv for one in filled(advice, NAMES) if one.argv]


@pytest.mark.parametrize("case", sorted(CASES))
def test_it_parses_and_does_what_the_sentence_says(case: str) -> None:
    outputs, layer, words = CASES[case]
    advice = advise(pd.DataFrame([{**LAYER, **layer}]), {**OUTPUTS, **outputs})
    commands = _commands(advice)
    assert any(words in shlex.join(argv) for argv in commands), advice
    _parse(commands)


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_sensitivity_names_commands_that_parse(change: str) -> None:
    table = pd.DataFrame([{"layer": "relu1", "mode": "isolated", "sqnr_db": 3.0}])
    gains = pd.DataFrame([{"layer": "relu1", "change": change, "gain_db": 2.0, "gain_se_db": 0.1, "expected_db": 1.9,
                           "call": "changes[...].apply(snn)"}])  # fmt: skip
    commands = _commands(advise_on_layers(table, gains, OUTPUTS))
    assert len(commands) == 3  # two for the timing, one like the change
    _parse(commands)


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_python_calls_are_python(case: str) -> None:
    outputs, layer, _ = CASES[case]
    calls = [one.python for one in advise(pd.DataFrame([{**LAYER, **layer}]), {**OUTPUTS, **outputs}) if one.python]
    assert calls
    for call in calls:
        compile(call, "<advice>", "exec")
        for settings in re.findall(r"finetune\.Config\(.*\)\)$", call):
            assert isinstance(eval(settings[:-1], {"finetune": finetune}), finetune.Config)


def test_a_command_keeps_what_it_sets_itself() -> None:
    names = CommandNames("a.snn", "digits", options={"-T": "4", "--delay": "1"})
    longer = Advice("More steps.", argv=command_words("evaluate", "-T", "8", "--recalibrate")).filled(names)
    tuned = Advice("Tune.", argv=command_words("finetune", "-o", "t.snn")).filled(names)
    assert longer.shell == "speedysnn evaluate a.snn -d digits --delay 1 -T 8 --recalibrate"
    assert tuned.shell == "speedysnn finetune a.snn -d digits -T 4 --delay 1 -o t.snn"


def test_a_sentence_is_text_then_call_then_command() -> None:
    one = Advice("Look ahead.", "snn.set_delay(1)", command_words("evaluate", "--delay", "1")).filled(NAMES)
    assert one.sentence() == (
        "Look ahead. In Python: snn.set_delay(1). In the shell: speedysnn evaluate 'my net.snn' -d 'npz:a b.npz' "
        "--source 'first one.snn' --normalize cifar10 --delay 1."
    )
    assert Advice("A fact.").filled(NAMES).sentence() == "A fact."
    assert one.to_json()["argv"][:3] == ["speedysnn", "evaluate", "my net.snn"]


def _parse(commands: list[tuple[str, ...]]) -> None:
    group = typer.main.get_command(app)
    for program, name, *arguments in commands:
        assert program == "speedysnn"
        context = group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
        assert str(context.params["network"]) == "my net.snn"
        assert context.params["data"] == "npz:a b.npz"
        assert str(context.params["source"]) == "first one.snn"
        assert context.params["normalize"] == "cifar10"
