"""The verdict of a noise report: what was found, which layer and cause it comes from, and what to do about it.

`advise` puts the findings in order. `recommend_for_timing` and `recommend_for_layer` say what to do, as advice with a
Python call and a command.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from speedysnn.analysis.noise.layer import PARTS
from speedysnn.analysis.report import Advice, command_words, db, percent, rendered, steps

GAP_DB = 1.0  # a smaller difference between twin and spikes is not worth a step of latency
CONSTANT = 0.5  # share of the squared error above which correcting a constant for each channel suffices
AFFINE = 0.1  # share of the squared error from which on lost gain and offset are named, with what restores them
SHRUNK = 0.8  # the same for the slope of a drive on the source's, up to which they are named
GOOD_AGREEMENT, GOOD_DB = 0.99, 20.0  # nothing needs doing above both
OWN = ("clip", "round", "temporal")
CAUSES = {
    "clip": "its range is too small (clipping)",
    "round": "its steps are too coarse (rounding)",
    "propagated": "it comes in from earlier layers",
    "temporal": "spikes come unevenly (timing)",
}
UNUSED = 0.001  # a saturated fraction below it tells a threshold that is too high


def recommend_for_layer(cause: str, row: "pd.Series[Any]", outputs: Mapping[str, Any]) -> list[Advice]:
    """Say what to do about a layer whose error has this cause.

    Args:
        cause: "clip", "round" or "temporal".
        row: of the layer, from `NoiseReport.layers`.
        outputs: `NoiseReport.outputs`.

    Returns:
        Advice, the simplest first; the others are alternatives.
    """
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
    """Say what to do about the timing error of uneven spikes.

    Args:
        outputs: `NoiseReport.outputs`.

    Returns:
        The next measure that the network does not have yet, then alternatives.

    Example:
        >>> from speedysnn.analysis.report.verdict import recommend_for_timing
        >>> for advice in recommend_for_timing({"delay": 0, "timesteps": 4, "latency": 4, "depth": 3}):
        ...     print(advice.python)
        snn.set_delay(1)
        finetune.fit(snn, train, config=finetune.Config(epochs_quantized=8, epochs_spiking=0))
        snn.set_spikes("ternary")
    """
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


def _match_moments(row: "pd.Series[Any]") -> Advice:
    return Advice(
        f"Gain and offset lost with depth: {percent(row['affine_share'])} of the error of {row['layer']}; a "
        'per-channel affine correction removes it (`correct="moments"`). The drive follows the source\'s with the '
        f"slope {row['drive_gain']:.2f}.",
        'convert.apply_correction(snn, calibration, "moments")',
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
    return f"{neuron}.scale({factor:g})"


def advise(layers: pd.DataFrame, outputs: Mapping[str, Any]) -> tuple[Advice, ...]:
    """Say how far off the network is, what timing costs, and which layer is worst, with its cause and what to do.

    The gap between quantized reading and spikes comes before any advice on a layer, since no threshold removes it.

    Args:
        layers: `NoiseReport.layers`.
        outputs: `NoiseReport.outputs`.

    Returns:
        Advice, most important first.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4)
        >>> noise = analysis.measure_noise(snn, images)
        >>> noise.advice[2].python
        'snn.set_delay(1)'
        >>> noise.advice[2].argv
        ('speedysnn', 'evaluate', 'NET.snn', '-d', 'DATA', '--delay', '0,1')
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
    """Write `advise` as plain sentences.

    Returns:
        One paragraph an advice.
    """
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
    """Advice on the layer with the lowest SQNR, and on where its error starts if that is not in the layer itself."""
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
    if not (worst["affine_share"] >= AFFINE or worst["drive_gain"] <= SHRUNK):
        return [Advice(fact), *_origin(layers, measured, worst, outputs)]
    affine, rest = percent(worst["affine_share"]), percent(worst["share_propagated"] - worst["affine_share"])
    fact = f"{fact[:-1]}, {affine} as gain and offset lost with depth, {rest} as noise."
    return [Advice(fact), _match_moments(worst), *_origin(layers, measured, worst, outputs)]


def _origin(
    layers: pd.DataFrame, measured: pd.DataFrame, worst: "pd.Series[Any]", outputs: Mapping[str, Any]
) -> list[Advice]:
    """Advice on the layer before the worst one that adds most noise of its own; none where there is no such layer."""
    upstream = measured[measured["layer"].isin(_before(layers, str(worst["layer"])))]
    if upstream.empty:
        return []
    origin = upstream.iloc[int(_own_noise(upstream).to_numpy().argmax())]
    own = max(OWN, key=lambda part: origin[f"share_{part}"])
    start = (
        f"Of the layers before it, {origin['layer']} adds most of its own: "
        f"{percent(_own_noise(upstream).max())} of its signal's power, mainly {own}: {CAUSES[own]}."
    )
    return _led_by(start, recommend_for_layer(own, origin, outputs))


def _led_by(fact: str, advice: list[Advice]) -> list[Advice]:
    first, *others = advice
    return [first.after(fact), *others]


def _own_noise(layers: pd.DataFrame) -> "pd.Series[float]":
    """Compute the noise that each layer adds itself, over its signal's power."""
    shares = layers["share_clip"] + layers["share_round"] + layers["share_temporal"]
    own: pd.Series[float] = shares * 10 ** (-layers["sqnr_db"] / 10)
    return own


def _before(layers: pd.DataFrame, name: str) -> set[str]:
    """Find all layers whose spikes reach the named one, directly or through others."""
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
