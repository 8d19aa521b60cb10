"""What to do about a layer's error, by its cause."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from speedysnn.analysis.commands import command, shell
from speedysnn.analysis.words import percent, steps

GAP_DB = 1.0  # a smaller difference between twin and spikes is not worth a step of latency
CONSTANT = 0.5  # above this part of the squared error a constant a channel is the cure
UNUSED = 0.001  # a saturated fraction below it tells a threshold that is too high


def cure(cause: str, row: "pd.Series[Any]", outputs: Mapping[str, Any]) -> str:
    """The cure of a layer whose error has this cause."""
    neuron = f"snn.neurons[{row['layer']!r}]"
    if row["bias_share"] > CONSTANT:
        return (
            f"{percent(row['bias_share'])} of that error is constant in each channel, so correcting biases and the "
            'initial membrane suffices: finetune.fit(snn, train, config=finetune.Config(train=("biases", "v_init"))). '
            f"{shell('finetune {net} -d {data} --train biases,v_init -o tuned.snn')}."
        )
    if cause == "temporal":
        if outputs["temporal_gap_db"] >= GAP_DB:
            return "The cure is the one for timing above; a threshold does not help."
        return f"A threshold does not help. {cure_timing(outputs)}"
    thresholds = shell("finetune {net} -d {data} --train thresholds -o tuned.snn")
    if cause == "clip":
        return (
            f"{percent(row['saturated'])} of its elements fire all they can, so raise theta: "
            f"{neuron}.set_threshold(1.25 * {neuron}.threshold); or train thresholds with finetune.fit(snn, train). "
            f"{thresholds}."
        )
    if row["saturated"] < UNUSED:
        return (
            f"Hardly any element uses the whole range, so lower theta: "
            f"{neuron}.set_threshold(0.8 * {neuron}.threshold); or take more steps. {thresholds}."
        )
    more = 2 * int(outputs["timesteps"])
    return (
        f"Its theta is in balance ({percent(row['saturated'])} of the elements fire all they can), so take more "
        f"steps, snn.timesteps = {more} and snn.recalibrate(), or tune the quantized reading with "
        f"finetune.fit(snn, train). {shell(f'evaluate {{net}} -d {{data}} -T {more} --recalibrate')}, or "
        f"{command('finetune {net} -d {data} --stage quantized:8 -o tuned.snn')}."
    )


def cure_timing(outputs: Mapping[str, Any]) -> str:
    """The next cure of uneven spikes that the network does not have yet."""
    delay, times, depth = outputs["delay"], outputs["timesteps"], outputs["depth"]
    if delay == 0:
        return (
            f"Let every neuron look one step ahead: snn.set_delay(1); latency {steps(times + depth)} instead of "
            f"{steps(outputs['latency'])}, no training, no more spikes. Where latency counts: "
            'snn.set_spikes("ternary"), or train through time with finetune.fit(snn, train). '
            f"{shell('evaluate {net} -d {data} --delay 0,1')}, then "
            f"{command('finetune {net} -d {data} --delay 1 --stage quantized:8 -o tuned.snn')}."
        )
    through = shell("finetune {net} -d {data} --stage spiking:4 -o tuned.snn")
    if isinstance(delay, int) and delay + 1 < times:
        return (
            f"Look further ahead: snn.set_delay({delay + 1}); or train through time with finetune.fit(snn, train). "
            f"{through}."
        )
    return (
        'Let every neuron see its whole input: snn.set_delay("full"); or train with finetune.fit(snn, train). '
        f"{through}."
    )
