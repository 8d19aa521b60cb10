"""The verdict: plain sentences that name the layer, the cause and what to do about it."""

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from speedysnn.analysis.layers import PARTS

GOOD_AGREEMENT, GOOD_DB = 0.99, 20.0  # nothing needs doing above both
GAP_DB = 1.0  # a smaller difference between twin and spikes is not worth a step of latency
CONSTANT = 0.5  # above this part of the squared error a constant a channel is the cure
UNUSED = 0.001  # a saturated fraction below it tells a threshold that is too high
OWN = ("clip", "round", "temporal")
NET, DATA = "NET.snn", "DATA"  # in commands, until the command line puts in the real ones
_WORD = r"\w[\w:=-]*(?:[.,]\w[\w:=-]*)*"  # a comma or a point ends a sentence's command unless a word goes on after it
_COMMAND = re.compile(rf"(?P<head>speedysnn [a-z]+) {re.escape(NET)} -d {DATA}(?P<own>(?: -[\w-]+(?: {_WORD})?)*)")
CAUSES = {
    "clip": "its range is too small (clipping)",
    "round": "its steps are too coarse (rounding)",
    "propagated": "it comes in from earlier layers",
    "temporal": "spikes come unevenly (timing)",
}


def verdict(layers: pd.DataFrame, outputs: Mapping[str, Any]) -> tuple[str, ...]:
    """How far off, what timing costs, and the worst layer with its cause and its cure; most important first.

    The gap between quantized reading and spikes comes before any advice on a layer, since no threshold removes it.
    """
    sentences = [_headline(outputs)]
    if _good(outputs):
        sentences.append(f"Nothing needs to be done: {_standing(outputs)}. What is left, in case more is wanted:")
    sentences += _timing(outputs)
    if _quantized_is_good(outputs) and not _good(outputs):
        sentences.append("Quantization is not the problem: the quantized reading alone would be good enough.")
    sentences += _worst(layers, outputs)
    return tuple(sentences)


def _headline(outputs: Mapping[str, Any]) -> str:
    cost = f"T = {outputs['timesteps']}, look-ahead {outputs['delay']}, latency {_steps(outputs['latency'])}"
    if outputs["spikes_per_neuron"] is not None:
        cost += f", {outputs['spikes_per_neuron']:.2f} spikes per neuron"
    head = f"On {outputs['images']} images the spiking network ({cost})"
    facts = []
    if outputs["accuracy"] is not None:
        right = _percent(outputs["accuracy"]), _percent(outputs["analog_accuracy"])
        facts.append(f"is right on {right[0]}, its source on {right[1]}")
    if outputs["agreement"] is not None:
        facts.append(f"agrees with its source on {_percent(outputs['agreement'])}")
    facts.append(f"has an output SQNR of {_db(outputs['sqnr_db'])}")
    return f"{head} {'; it '.join(facts)}."


def _good(outputs: Mapping[str, Any]) -> bool:
    return _enough(outputs["agreement"], outputs["sqnr_db"])


def _quantized_is_good(outputs: Mapping[str, Any]) -> bool:
    return _enough(outputs["twin_agreement"], outputs["twin_sqnr_db"])


def _enough(agreement: float | None, sqnr: float) -> bool:
    return sqnr >= GOOD_DB if agreement is None else agreement >= GOOD_AGREEMENT and sqnr >= GOOD_DB / 2


def _standing(outputs: Mapping[str, Any]) -> str:
    if outputs["agreement"] is None:
        return f"the output SQNR is {_db(outputs['sqnr_db'])}"
    return f"it agrees with its source on {_percent(outputs['agreement'])} of the images"


def _timing(outputs: Mapping[str, Any]) -> list[str]:
    gap = outputs["temporal_gap_db"]
    if math.isnan(gap) or gap < GAP_DB:
        return [f"Spike timing costs {_db(max(gap, 0.0))} at the output, which is little."] if gap == gap else []
    lost = ""
    if outputs["accuracy"] is not None:
        points = 100 * (outputs["twin_accuracy"] - outputs["accuracy"])
        lost = f" and {points:.1f} points of accuracy" if points > 0 else ""
    return [
        f"Spike timing costs {_db(gap)}{lost} at the output: the quantized reading, which has the same thresholds and "
        f"no timing error, reaches {_db(outputs['twin_sqnr_db'])}. No threshold removes this. {_cure_timing(outputs)}"
    ]


def _cure_timing(outputs: Mapping[str, Any]) -> str:
    delay, steps, depth = outputs["delay"], outputs["timesteps"], outputs["depth"]
    if delay == 0:
        return (
            f"Let every neuron look one step ahead: snn.set_delay(1); latency {_steps(steps + depth)} instead of "
            f"{_steps(outputs['latency'])}, no training, no more spikes. Where latency counts: "
            'snn.set_spikes("ternary"), or train through time with finetune.fit(snn, train). '
            f"{shell('evaluate {net} -d {data} --delay 0,1')}, then "
            f"{command('finetune {net} -d {data} --delay 1 --stage quantized:8 -o tuned.snn')}."
        )
    through = shell("finetune {net} -d {data} --stage spiking:4 -o tuned.snn")
    if isinstance(delay, int) and delay + 1 < steps:
        return (
            f"Look further ahead: snn.set_delay({delay + 1}); or train through time with finetune.fit(snn, train). "
            f"{through}."
        )
    return (
        'Let every neuron see its whole input: snn.set_delay("full"); or train with finetune.fit(snn, train). '
        f"{through}."
    )


def _worst(layers: pd.DataFrame, outputs: Mapping[str, Any]) -> list[str]:
    """The layer with the lowest SQNR, and where its error starts if that is not in the layer itself."""
    measured = layers[layers["share_round"].notna() & layers["sqnr_db"].notna()]
    if measured.empty:
        return []
    worst = measured.nsmallest(1, "sqnr_db").iloc[0]
    cause = max(PARTS, key=lambda part: worst[f"share_{part}"])
    sentence = (
        f"Worst layer: {worst['layer']} at {_db(worst['sqnr_db'])}; {_percent(worst[f'share_{cause}'])} of its squared "
        f"error is {cause}: {CAUSES[cause]}."
    )
    if worst["silent"] == 1:
        return [f"Worst layer: {worst['layer']} never fires. {_cure('round', worst, outputs)}"]
    if cause != "propagated":
        return [f"{sentence} {_cure(cause, worst, outputs)}"]
    upstream = measured[measured["layer"].isin(_before(layers, str(worst["layer"])))]
    if upstream.empty:
        return [sentence]
    origin = upstream.iloc[int(_own_noise(upstream).to_numpy().argmax())]
    own = max(OWN, key=lambda part: origin[f"share_{part}"])
    return [
        sentence,
        f"Of the layers before it, {origin['layer']} adds most of its own: "
        f"{_percent(_own_noise(upstream).max())} of its signal's power, mainly {own}: {CAUSES[own]}. "
        f"{_cure(own, origin, outputs)}",
    ]


def _own_noise(layers: pd.DataFrame) -> "pd.Series[float]":
    """Noise that a layer adds itself, over its signal's power."""
    shares = layers["share_clip"] + layers["share_round"] + layers["share_temporal"]
    own: pd.Series[float] = shares * 10 ** (-layers["sqnr_db"] / 10)
    return own


def _before(layers: pd.DataFrame, name: str) -> set[str]:
    """All layers whose spikes reach the named one, through others too."""
    reads = {row["layer"]: row["reads"].split(", ") if row["reads"] else [] for row in layers.to_dict("records")}
    found: set[str] = set()
    waiting = list(reads[name])
    while waiting:
        layer = waiting.pop()
        if layer not in found:
            found.add(layer)
            waiting += reads[layer]
    return found


def _cure(cause: str, row: "pd.Series[Any]", outputs: Mapping[str, Any]) -> str:
    neuron = f"snn.neurons[{row['layer']!r}]"
    if row["bias_share"] > CONSTANT:
        return (
            f"{_percent(row['bias_share'])} of that error is constant in each channel, so correcting biases and the "
            'initial membrane suffices: finetune.fit(snn, train, config=finetune.Config(train=("biases", "v_init"))). '
            f"{shell('finetune {net} -d {data} --train biases,v_init -o tuned.snn')}."
        )
    if cause == "temporal":
        if outputs["temporal_gap_db"] >= GAP_DB:
            return "The cure is the one for timing above; a threshold does not help."
        return f"A threshold does not help. {_cure_timing(outputs)}"
    thresholds = shell("finetune {net} -d {data} --train thresholds -o tuned.snn")
    if cause == "clip":
        return (
            f"{_percent(row['saturated'])} of its elements fire all they can, so raise theta: "
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
        f"Its theta is in balance ({_percent(row['saturated'])} of the elements fire all they can), so take more "
        f"steps, snn.timesteps = {more} and snn.recalibrate(), or tune the quantized reading with "
        f"finetune.fit(snn, train). {shell(f'evaluate {{net}} -d {{data}} -T {more} --recalibrate')}, or "
        f"{command('finetune {net} -d {data} --stage quantized:8 -o tuned.snn')}."
    )


def shell(text: str) -> str:
    """A command to type, behind the words that say so."""
    return f"In the shell: {command(text)}"


def command(text: str) -> str:
    """A command of the command line; {net} and {data} stand for the network and its data."""
    return f"speedysnn {text.format(net=NET, data=DATA)}"


def named(
    sentences: Iterable[str], net: str, data: str, source: str | None = None, options: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Sentences of a verdict with the network's, the data's and the source network's own names in their commands.

    Args:
        sentences: of a verdict.
        net: the network's file.
        data: the data's spec.
        source: the source network's file.
        options: option -> value that the measurement was made with; a command that sets one itself keeps its own.
    """
    given = {"-d": data, **({} if source is None else {"--source": source})}

    def filled(match: re.Match[str]) -> str:
        own = match["own"].split()
        carried = given | {key: value for key, value in (options or {}).items() if key not in own}
        words = " ".join(f"{key} {shlex.quote(value)}" for key, value in carried.items())
        return f"{match['head']} {shlex.quote(net)} {words}{match['own']}"

    return tuple(_COMMAND.sub(filled, sentence) for sentence in sentences)


def _db(value: float) -> str:
    if math.isnan(value):
        return "an undefined number of dB"
    return f"{value:.1f} dB" if math.isfinite(value) else "infinitely many dB (no error)"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if value < 0.9995 or value >= 1 else f"{100 * value:.2f} %"


def _steps(number: int) -> str:
    return f"{number} step" if number == 1 else f"{number} steps"
