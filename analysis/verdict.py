"""The verdict: what was found, naming the layer, the cause and what to do about it."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from speedysnn.analysis.commands import DATA as DATA
from speedysnn.analysis.commands import NET as NET
from speedysnn.analysis.commands import Advice as Advice
from speedysnn.analysis.commands import CommandNames as CommandNames
from speedysnn.analysis.commands import command_words as command_words
from speedysnn.analysis.commands import filled as filled
from speedysnn.analysis.commands import rendered as rendered
from speedysnn.analysis.cures import CONSTANT as CONSTANT
from speedysnn.analysis.cures import GAP_DB as GAP_DB
from speedysnn.analysis.cures import UNUSED as UNUSED
from speedysnn.analysis.cures import recommend_for_layer, recommend_for_timing
from speedysnn.analysis.layers import PARTS
from speedysnn.analysis.words import db, percent, steps

GOOD_AGREEMENT, GOOD_DB = 0.99, 20.0  # nothing needs doing above both
OWN = ("clip", "round", "temporal")
CAUSES = {
    "clip": "its range is too small (clipping)",
    "round": "its steps are too coarse (rounding)",
    "propagated": "it comes in from earlier layers",
    "temporal": "spikes come unevenly (timing)",
}


def advise(layers: pd.DataFrame, outputs: Mapping[str, Any]) -> tuple[Advice, ...]:
    """How far off, what timing costs, and the worst layer with its cause and what to do; most important first.

    The gap between quantized reading and spikes comes before any advice on a layer, since no threshold removes it.
    """
    found = [Advice(_headline(outputs))]
    if _good(outputs):
        found.append(Advice(f"Nothing needs to be done: {_standing(outputs)}. What is left, in case more is wanted:"))
    found += _timing(outputs)
    if _quantized_is_good(outputs) and not _good(outputs):
        found.append(Advice("Quantization is not the problem: the quantized reading alone would be good enough."))
    found += _worst(layers, outputs)
    return tuple(found)


def verdict(layers: pd.DataFrame, outputs: Mapping[str, Any]) -> tuple[str, ...]:
    """The same as plain sentences, one paragraph an advice."""
    return rendered(advise(layers, outputs))


def _headline(outputs: Mapping[str, Any]) -> str:
    cost = f"T = {outputs['timesteps']}, look-ahead {outputs['delay']}, latency {steps(outputs['latency'])}"
    if outputs["spikes_per_neuron"] is not None:
        cost += f", {outputs['spikes_per_neuron']:.2f} spikes per neuron"
    head = f"On {outputs['images']} images the spiking network ({cost})"
    facts = []
    if outputs["accuracy"] is not None:
        right = percent(outputs["accuracy"]), percent(outputs["analog_accuracy"])
        facts.append(f"is right on {right[0]}, its source on {right[1]}")
    if outputs["agreement"] is not None:
        facts.append(f"agrees with its source on {percent(outputs['agreement'])}")
    facts.append(f"has an output SQNR of {db(outputs['sqnr_db'])}")
    return f"{head} {'; it '.join(facts)}."


def _good(outputs: Mapping[str, Any]) -> bool:
    return _enough(outputs["agreement"], outputs["sqnr_db"])


def _quantized_is_good(outputs: Mapping[str, Any]) -> bool:
    return _enough(outputs["twin_agreement"], outputs["twin_sqnr_db"])


def _enough(agreement: float | None, sqnr: float) -> bool:
    return sqnr >= GOOD_DB if agreement is None else agreement >= GOOD_AGREEMENT and sqnr >= GOOD_DB / 2


def _standing(outputs: Mapping[str, Any]) -> str:
    if outputs["agreement"] is None:
        return f"the output SQNR is {db(outputs['sqnr_db'])}"
    return f"it agrees with its source on {percent(outputs['agreement'])} of the images"


def _timing(outputs: Mapping[str, Any]) -> list[Advice]:
    gap = outputs["temporal_gap_db"]
    if math.isnan(gap):
        return []
    if gap < GAP_DB:
        return [Advice(f"Spike timing costs {db(max(gap, 0.0))} at the output, which is little.")]
    lost = ""
    if outputs["accuracy"] is not None:
        points = 100 * (outputs["twin_accuracy"] - outputs["accuracy"])
        lost = f" and {points:.1f} points of accuracy" if points > 0 else ""
    fact = (
        f"Spike timing costs {db(gap)}{lost} at the output: the quantized reading, which has the same thresholds and "
        f"no timing error, reaches {db(outputs['twin_sqnr_db'])}. No threshold removes this."
    )
    first, *others = recommend_for_timing(outputs)
    return [first.after(fact), *others]


def _worst(layers: pd.DataFrame, outputs: Mapping[str, Any]) -> list[Advice]:
    """The layer with the lowest SQNR, and where its error starts if that is not in the layer itself."""
    measured = layers[layers["share_round"].notna() & layers["sqnr_db"].notna()]
    if measured.empty:
        return []
    worst = measured.nsmallest(1, "sqnr_db").iloc[0]
    cause = max(PARTS, key=lambda part: worst[f"share_{part}"])
    fact = (
        f"Worst layer: {worst['layer']} at {db(worst['sqnr_db'])}; {percent(worst[f'share_{cause}'])} of its squared "
        f"error is {cause}: {CAUSES[cause]}."
    )
    if worst["silent"] == 1:
        cause, fact = "round", f"Worst layer: {worst['layer']} never fires."
    if cause != "propagated":
        return _led_by(fact, recommend_for_layer(cause, worst, outputs))
    upstream = measured[measured["layer"].isin(_before(layers, str(worst["layer"])))]
    if upstream.empty:
        return [Advice(fact)]
    origin = upstream.iloc[int(_own_noise(upstream).to_numpy().argmax())]
    own = max(OWN, key=lambda part: origin[f"share_{part}"])
    start = (
        f"Of the layers before it, {origin['layer']} adds most of its own: "
        f"{percent(_own_noise(upstream).max())} of its signal's power, mainly {own}: {CAUSES[own]}."
    )
    return [Advice(fact), *_led_by(start, recommend_for_layer(own, origin, outputs))]


def _led_by(fact: str, advice: list[Advice]) -> list[Advice]:
    first, *others = advice
    return [first.after(fact), *others]


def _own_noise(layers: pd.DataFrame) -> "pd.Series[float]":
    """Noise that a layer adds itself, over its signal's power."""
    shares = layers["share_clip"] + layers["share_round"] + layers["share_temporal"]
    own: pd.Series[float] = shares * 10 ** (-layers["sqnr_db"] / 10)
    return own


def _before(layers: pd.DataFrame, name: str) -> set[str]:
    """All layers whose spikes reach the named one, through others too."""
    pairs = zip(layers["layer"], layers["reads"], strict=True)
    reads = {layer: feeds.split(", ") if feeds else [] for layer, feeds in pairs}
    found: set[str] = set()
    waiting = list(reads[name])
    while waiting:
        layer = waiting.pop()
        if layer not in found:
            found.add(layer)
            waiting += reads[layer]
    return found
