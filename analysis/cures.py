"""Recommendations: what to do about a layer's error, by its cause."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from speedysnn.analysis.commands import Advice, command_words
from speedysnn.analysis.words import percent, steps

GAP_DB = 1.0  # a smaller difference between twin and spikes is not worth a step of latency
CONSTANT = 0.5  # share of the squared error above which correcting a constant for each channel suffices
UNUSED = 0.001  # a saturated fraction below it tells a threshold that is too high


def recommend_for_layer(cause: str, row: "pd.Series[Any]", outputs: Mapping[str, Any]) -> list[Advice]:
    """What to do about a layer whose error has this cause; the first is the simplest, others are alternatives."""
    if row["bias_share"] > CONSTANT:
        return [_correct_biases(row)]
    if cause == "temporal":
        if outputs["temporal_gap_db"] >= GAP_DB:
            return [Advice("What is recommended for timing above helps here too; a threshold does not help.")]
        first, *others = recommend_for_timing(outputs)
        return [first.after("A threshold does not help."), *others]
    if cause == "clip":
        fact = f"{percent(row['saturated'])} of its elements fire all they can, so raise theta."
        return [Advice(fact, _scaled_threshold(row, 1.25)), _train_thresholds()]
    if row["saturated"] < UNUSED:
        fact = "Hardly any element uses the whole range, so lower theta, or take more steps."
        return [Advice(fact, _scaled_threshold(row, 0.8)), _train_thresholds()]
    more = 2 * int(outputs["timesteps"])
    fact = (
        f"Its theta is in balance ({percent(row['saturated'])} of the elements fire all they can), so take more steps."
    )
    return [
        Advice(
            fact,
            f"snn.timesteps = {more}; snn.recalibrate()",
            command_words("evaluate", "-T", str(more), "--recalibrate"),
        ),
        Advice(
            "Or tune the quantized reading.",
            "finetune.fit(snn, train, config=finetune.Config(epochs_quantized=8, epochs_spiking=0))",
            command_words("finetune", "--stage", "quantized:8", "-o", "tuned.snn"),
        ),
    ]


def recommend_for_timing(outputs: Mapping[str, Any]) -> list[Advice]:
    """What to do about uneven spikes: the next measure that the network does not have yet, then alternatives."""
    delay, times, depth = outputs["delay"], outputs["timesteps"], outputs["depth"]
    if delay == 0:
        return [
            Advice(
                f"Let every neuron look one step ahead: latency {steps(times + depth)} instead of "
                f"{steps(outputs['latency'])}, no training, no more spikes.",
                "snn.set_delay(1)",
                command_words("evaluate", "--delay", "0,1"),
            ),
            Advice(
                "Then tune the quantized reading with that look-ahead.",
                "finetune.fit(snn, train, config=finetune.Config(epochs_quantized=8, epochs_spiking=0))",
                command_words("finetune", "--delay", "1", "--stage", "quantized:8", "-o", "tuned.snn"),
            ),
            Advice(
                "Where latency counts, let neurons take spikes back.",
                'snn.set_spikes("ternary")',
                command_words("evaluate", "--spikes", "ternary"),
            ),
        ]
    if isinstance(delay, int) and delay + 1 < times:
        return [Advice("Look further ahead.", f"snn.set_delay({delay + 1})",
                       command_words("evaluate", "--delay", str(delay + 1))), _train_through_time()]  # fmt: skip
    return [Advice("Let every neuron see its whole input.", 'snn.set_delay("full")',
                   command_words("evaluate", "--delay", "full")), _train_through_time()]  # fmt: skip


def _correct_biases(row: "pd.Series[Any]") -> Advice:
    return Advice(
        f"{percent(row['bias_share'])} of that error is constant in each channel, so correcting biases and the "
        "initial membrane suffices.",
        'finetune.fit(snn, train, config=finetune.Config(train=("biases", "v_init")))',
        command_words("finetune", "--train", "biases,v_init", "-o", "tuned.snn"),
    )


def _train_thresholds() -> Advice:
    return Advice(
        "Or train the thresholds of all layers.",
        'finetune.fit(snn, train, config=finetune.Config(train=("thresholds",)))',
        command_words("finetune", "--train", "thresholds", "-o", "tuned.snn"),
    )


def _train_through_time() -> Advice:
    return Advice(
        "Or train through time.",
        "finetune.fit(snn, train, config=finetune.Config(epochs_quantized=0, epochs_spiking=4))",
        command_words("finetune", "--stage", "spiking:4", "-o", "tuned.snn"),
    )


def _scaled_threshold(row: "pd.Series[Any]", factor: float) -> str:
    neuron = f"snn.neurons[{row['layer']!r}]"
    return f"{neuron}.set_threshold({factor:g} * {neuron}.threshold)"
