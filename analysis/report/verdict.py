"""The verdict of a noise report: what was found, which layer and cause it comes from, and what was measured to help.

`advise` puts the findings in order. `settings_to_try` names the settings that may help: `measure_noise` tries them on
some of its images, and those that were better there are recommended. What was not tried is named as a possibility.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pandas as pd

from speedysnn.analysis.noise.layer import PARTS
from speedysnn.analysis.report import Advice, command_words, db, missed, percent, rendered, steps
from speedysnn.neurons.parameters import Delay

GAP_DB = 1.0  # a smaller difference between twin and spikes is not worth a step of latency
CONSTANT = 0.5  # share of the squared error above which correcting a constant for each channel suffices
AFFINE = 0.1  # share of the squared error from which on lost gain and offset are named, with what restores them
SHRUNK = 0.8  # the same for the slope of a drive on the source's, up to which they are named
GOOD_AGREEMENT, GOOD_DB = 0.99, 20.0  # nothing needs doing above both
WORTH_DB = 0.1  # what a setting must gain at the output where agreement is the same
PRESENT = "as it is"  # in `outputs["tried"]`, the row of the network as it was measured
FIGURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("agreement", "agreement", percent), ("sqnr_db", "output SQNR", db), ("latency", "latency", steps),
    ("spikes_per_neuron", "spikes per neuron", "{:.2f}".format),
)  # fmt: skip
OWN = ("clip", "round", "temporal", "weights")
CAUSES = {
    "clip": "its range is too small (clipping)",
    "round": "its steps are too coarse (rounding)",
    "propagated": "it comes in from earlier layers",
    "temporal": "spikes come unevenly (timing)",
    "weights": "its weights have too few bits (rounded weights)",
}
UNUSED = 0.001  # a saturated fraction below it tells a threshold that is too high


@dataclass(frozen=True)
class Setting:
    """A change of settings alone, which can be tried without training.

    Attributes:
        words: its name in tables, such as "look-ahead 1".
        deed: what to do, as a clause that begins with a verb in lower case.
        python: the call that makes it.
        argv: the command that evaluates it, as in `Advice`; empty where there is none.
        delay: of all neurons; None where it stays.
        spikes: kind of all neurons; None where it stays.
        timesteps: T, with every theta chosen again; None where it stays.
        correct: kind of correction; None where it stays.
        scaled: a layer and the factor of its theta; None for none.
    """

    words: str
    deed: str
    python: str
    argv: tuple[str, ...] = ()
    delay: Delay | None = None
    spikes: str | None = None
    timesteps: int | None = None
    correct: str | None = None
    scaled: tuple[str, float] | None = None


MOMENTS = Setting("moments matched", 'match the moments of every channel\'s drive (`correct="moments"`)',
                  'convert.apply_correction(snn, calibration, "moments")', correct="moments")  # fmt: skip
RECONSTRUCTION = Advice("Possible, but not measured here: reconstruction by blocks, which needs no labels.",
                        "finetune.reconstruct(snn, images)",
                        command_words("finetune", "--stage", "reconstruct", "-o", "tuned.snn"))  # fmt: skip


@dataclass
class _Findings:
    """Facts in order, the settings that may help against them, and the training that may."""

    facts: list[str] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    training: list[Advice] = field(default_factory=list)


def settings_to_try(layers: pd.DataFrame, outputs: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Name the settings that may help against what was found; the verdict names no others.

    Against timing: more look-ahead, "ternary" spikes where all are binary, and both. Against gain lost with depth: the
    matching of moments, unless the network carries it. Against a layer's own noise: another theta, or twice the steps.

    Args:
        layers: `NoiseReport.layers`.
        outputs: `NoiseReport.outputs`.

    Returns:
        The settings, most important first.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> from speedysnn.analysis.report.verdict import settings_to_try
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4, correct="none")
        >>> noise = analysis.measure_noise(snn, images, try_settings=0)
        >>> [setting.words for setting in settings_to_try(noise.layers, noise.outputs)]
        ['look-ahead 1', 'ternary spikes', 'look-ahead 1, ternary spikes', 'T = 8, theta chosen again']
    """
    return tuple(_findings(layers, outputs).settings)


def _corrected_anew(setting: Setting, kind: str) -> Setting:
    """The setting with the network's correction made again for it, as one made for other settings may serve less."""
    python = f'{setting.python}; convert.apply_correction(snn, calibration, "{kind}")'
    return replace(setting, deed=f"{setting.deed}, corrected anew", python=python, argv=(), correct=kind)


def _settings_for_timing(outputs: Mapping[str, Any]) -> list[Setting]:
    """Against the timing error of uneven spikes: those that the network does not have yet."""
    ahead, ternary = _more_look_ahead(outputs["delay"], outputs["timesteps"]), outputs.get("spikes") == "binary"
    out = [] if ahead is None else [_looking_ahead(ahead)]
    if ternary:
        out.append(Setting("ternary spikes", "let neurons take spikes back", 'snn.set_spikes("ternary")',
                           command_words("evaluate", "--spikes", "ternary"), spikes="ternary"))  # fmt: skip
    if ternary and ahead is not None:
        one = _looking_ahead(ahead)
        out.append(Setting(f"{one.words}, ternary spikes", f"{one.deed} and take spikes back",
                           f'{one.python}; snn.set_spikes("ternary")', (*one.argv, "--spikes", "ternary"),
                           delay=ahead, spikes="ternary"))  # fmt: skip
    return out


def _more_look_ahead(delay: Delay, timesteps: int) -> Delay | None:
    """One step more within T, else all; None where neurons see their whole input already."""
    if delay == "full" or (isinstance(delay, int) and delay >= timesteps):
        return None
    return delay + 1 if isinstance(delay, int) and delay + 1 < timesteps else "full"


def _looking_ahead(delay: Delay) -> Setting:
    deed = "let every neuron see its whole input" if delay == "full" else f"let every neuron look {steps(delay)} ahead"
    call = f"snn.set_delay({delay})" if isinstance(delay, int) else f'snn.set_delay("{delay}")'
    return Setting(f"look-ahead {delay}", deed, call, command_words("evaluate", "--delay", str(delay)), delay=delay)


def _scaling(row: "pd.Series[Any]", factor: float) -> Setting:
    name, deed = str(row["layer"]), "raise" if factor > 1 else "lower"
    return Setting(f"theta of {name} x {factor:g}", f"{deed} theta of {name} to {factor:g} times it",
                   f"snn.neurons[{name!r}].scale({factor:g})", scaled=(name, factor))  # fmt: skip


def _twice_the_steps(timesteps: int) -> Setting:
    more = 2 * timesteps
    return Setting(f"T = {more}, theta chosen again", f"take more steps, T = {more}, with theta chosen again",
                   f"snn.timesteps = {more}; snn.recalibrate()",
                   command_words("evaluate", "-T", str(more), "--recalibrate"), timesteps=more)  # fmt: skip


def _training(what: str, config: str, *options: str) -> Advice:
    """Name a training as a possibility: nothing of it was measured."""
    return Advice(
        f"Possible, but not measured here: {what}.",
        f"finetune.fit(snn, train, config=finetune.Config({config}))",
        command_words("finetune", *options, "-o", "tuned.snn"),
    )


def _training_for_timing(outputs: Mapping[str, Any]) -> Advice:
    if outputs["delay"] == 0:
        return _training("tuning of the quantized reading, with look-ahead 1", "epochs_quantized=8, epochs_spiking=0",
                         "--delay", "1", "--stage", "quantized:8")  # fmt: skip
    return _training("training through time", "epochs_quantized=0, epochs_spiking=4", "--stage", "spiking:4")


def _add_layer(found: _Findings, fact: str, cause: str, row: "pd.Series[Any]", outputs: Mapping[str, Any]) -> None:
    """Add a layer whose error has this cause, one of `OWN`, and what may help against it."""
    saturated, bits = percent(row["saturated"]), outputs.get("weight_bits")
    if cause == "weights":
        fact += f' {bits} bits of its weights cost that: use more there, or to_integer(rounding="reconstruct").'
        found.training.append(_training("tuning at these bits", f"weight_bits={bits}", "--weight-bits", f"{bits}"))
    elif row["bias_share"] > CONSTANT:
        fact += f" {percent(row['bias_share'])} of that error is constant in each channel."
        found.training.append(_training("correcting biases and the initial membrane, which remove it",
                                        'train=("biases", "v_init")', "--train", "biases,v_init"))  # fmt: skip
    elif cause == "temporal" and outputs["temporal_gap_db"] >= GAP_DB:
        fact += " What may help against timing applies to it; a threshold does not help."
    elif cause == "temporal":
        fact += " A threshold does not help."
        found.settings += _settings_for_timing(outputs)
        found.training.append(_training_for_timing(outputs))
    elif cause == "clip" or row["saturated"] < UNUSED:
        clipped = cause == "clip"
        fact += (f" {saturated} of its elements fire all they can." if clipped
                 else " Hardly any element uses the whole range.")  # fmt: skip
        found.settings.append(_scaling(row, 1.25 if clipped else 0.8))
        found.training.append(_training("training of the thresholds of all layers", 'train=("thresholds",)',
                                        "--train", "thresholds"))  # fmt: skip
    else:
        fact += f" Its theta is in balance ({saturated} of the elements fire all they can)."
        found.settings.append(_twice_the_steps(int(outputs["timesteps"])))
        found.training.append(_training("tuning of the quantized reading", "epochs_quantized=8, epochs_spiking=0",
                                        "--stage", "quantized:8"))  # fmt: skip
    found.facts.append(fact)


def advise(layers: pd.DataFrame, outputs: Mapping[str, Any]) -> tuple[Advice, ...]:
    """Say how far off the network is, what timing costs, which layer is worst and why, and what was measured to help.

    The gap between quantized reading and spikes comes before any layer, since no threshold removes it. Settings that
    were better where they were tried (`outputs["tried"]`) are recommended with their figures, best first; those that
    were no better are listed; what was not tried, and all training, is named as a possibility.

    Args:
        layers: `NoiseReport.layers`.
        outputs: `NoiseReport.outputs`.

    Returns:
        Advice: facts, settings, training.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4, correct="none")
        >>> noise = analysis.measure_noise(snn, images)
        >>> best = next(one for one in noise.advice if one.python)
        >>> best.python
        'snn.timesteps = 8; snn.recalibrate()'
        >>> best.argv
        ('speedysnn', 'evaluate', 'NET.snn', '-d', 'DATA', '-T', '8', '--recalibrate')
    """
    found = _findings(layers, outputs)
    settings = _on_settings(found.settings, outputs.get("tried", ()))
    return (*map(Advice, found.facts), *settings, *dict.fromkeys(found.training))


def verdict(layers: pd.DataFrame, outputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Write `advise` as plain sentences.

    Returns:
        One paragraph an advice.
    """
    return rendered(advise(layers, outputs))


def _on_settings(settings: Iterable[Setting], tried: Iterable[Mapping[str, Any]]) -> list[Advice]:
    """Recommend what was better than the present setting; name what was not, and what was not tried."""
    rows = {row["setting"]: row for row in tried}
    now = rows.get(PRESENT, {})
    there = [one for one in settings if one.words in rows]
    better = sorted((one for one in there if _better(rows[one.words], now)), key=lambda one: _rank(rows[one.words]))
    out = [Advice(f"{one.deed[0].upper()}{one.deed[1:]}: {_beside(rows[one.words], now)}.", one.python, one.argv)
           for one in better]  # fmt: skip
    if out:
        order = ", best first" * (len(out) > 1)
        out[0] = out[0].after(f"Recommended, as measured on {now['images']} of the images{order}.")
    if rest := [f"{one.words} ({_figures(rows[one.words])})" for one in there if one not in better]:
        out.append(Advice(f"Tried on {now['images']} of the images and no better than as it is ({_figures(now)}): "
                          f"{'; '.join(rest)}."))  # fmt: skip
    return out + [Advice(f"Possible, but not tried here: {one.deed}.", one.python, one.argv)
                  for one in settings if one not in there]  # fmt: skip


def _better(row: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether more images get the source's class; where as many do or there are no classes, by the output's SQNR."""
    if row["agreement"] != now["agreement"]:
        return bool(row["agreement"] > now["agreement"])
    return bool(row["sqnr_db"] > now["sqnr_db"] + WORTH_DB)


def _rank(row: Mapping[str, Any]) -> tuple[float, ...]:
    """What the best row has least of, in order."""
    return -(row["agreement"] or 0.0), -row["sqnr_db"], row["latency"], row["spikes_per_neuron"] or 0.0


def _figures(row: Mapping[str, Any]) -> str:
    agreement = "" if row["agreement"] is None else f"agreement {percent(row['agreement'])}, "
    return f"{agreement}output SQNR {db(row['sqnr_db'])}"


def _beside(row: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The figures and the price of a setting beside the present ones."""
    shown = [(label, write(row[name]), write(now[name])) for name, label, write in FIGURES if row[name] is not None]
    return ", ".join(f"{label} {new} {'as now' if new == old else f'instead of {old}'}" for label, new, old in shown)


def _findings(layers: pd.DataFrame, outputs: Mapping[str, Any]) -> _Findings:
    found = _Findings([_headline(outputs)])
    good = _enough(outputs["agreement"], outputs["sqnr_db"])
    if good:
        agreed, reached = outputs["agreement"], f"the output SQNR is {db(outputs['sqnr_db'])}"
        stands = reached if agreed is None else f"it agrees with its source on {percent(agreed)} of the images"
        found.facts.append(f"Nothing needs to be done: {stands}. What is left, in case more is wanted:")
    _add_timing(found, outputs)
    if _enough(outputs["twin_agreement"], outputs["twin_sqnr_db"]) and not good:
        found.facts.append("Quantization is not the problem: the quantized reading alone would be good enough.")
    _add_worst(found, layers, outputs)
    if kind := outputs.get("correction"):
        found.settings = [one if one.scaled else _corrected_anew(one, kind) for one in found.settings]
    return found


def _headline(outputs: Mapping[str, Any]) -> str:
    cost = f"T = {outputs['timesteps']}, look-ahead {outputs['delay']}, latency {steps(outputs['latency'])}"
    if outputs["spikes_per_neuron"] is not None:
        cost += f", {outputs['spikes_per_neuron']:.2f} spikes per neuron"
    facts = []
    if outputs["accuracy"] is not None:
        right = percent(outputs["accuracy"]), percent(outputs["analog_accuracy"])
        facts.append(f"is right on {right[0]}, its source on {right[1]}")
    if outputs["agreement"] is not None:
        facts.append(f"agrees with its source on {percent(outputs['agreement'])}")
    facts.append(f"has an output SQNR of {db(outputs['sqnr_db'])}")
    return f"On {outputs['images']} images the spiking network ({cost}) {'; it '.join(facts)}."


def _enough(agreement: float | None, sqnr: float) -> bool:
    return sqnr >= GOOD_DB if agreement is None else agreement >= GOOD_AGREEMENT and sqnr >= GOOD_DB / 2


def _add_timing(found: _Findings, outputs: Mapping[str, Any]) -> None:
    gap = outputs["temporal_gap_db"]
    if math.isnan(gap):
        return
    if gap < GAP_DB:
        found.facts.append(f"Spike timing costs {db(max(gap, 0.0))} at the output, which is little.")
        return
    points = 0.0 if outputs["accuracy"] is None else 100 * (outputs["twin_accuracy"] - outputs["accuracy"])
    lost = f" and {points:.1f} points of accuracy" if points > 0 else ""
    found.facts.append(
        f"Spike timing costs {db(gap)}{lost} at the output: the quantized reading, which has the same thresholds and "
        f"no timing error, reaches {db(outputs['twin_sqnr_db'])}. No threshold removes this. {missed(outputs)}".rstrip()
    )
    found.settings += _settings_for_timing(outputs)
    found.training.append(_training_for_timing(outputs))


def _add_worst(found: _Findings, layers: pd.DataFrame, outputs: Mapping[str, Any]) -> None:
    """Add the layer with the lowest SQNR, and where its error starts if that is not in the layer itself."""
    if (measured := layers[layers["share_round"].notna() & layers["sqnr_db"].notna()]).empty:
        return
    worst = measured.nsmallest(1, "sqnr_db").iloc[0]
    cause = max(PARTS, key=lambda part: worst.get(f"share_{part}", 0.0))
    fact = (f"Worst layer: {worst['layer']} at {db(worst['sqnr_db'])}; {percent(worst[f'share_{cause}'])} of its "
            f"squared error is {cause}: {CAUSES[cause]}.")  # fmt: skip
    if worst["silent"] == 1:
        cause, fact = "round", f"Worst layer: {worst['layer']} never fires."
    if cause != "propagated":
        _add_layer(found, fact, cause, worst, outputs)
        return
    if worst["affine_share"] >= AFFINE or worst["drive_gain"] <= SHRUNK:
        affine, rest = percent(worst["affine_share"]), percent(worst["share_propagated"] - worst["affine_share"])
        found.facts += [
            f"{fact[:-1]}, {affine} as gain and offset lost with depth, {rest} as noise.",
            f"Gain and offset lost with depth: {affine} of the error of {worst['layer']}, which an affine map of each "
            f"channel's drive would remove. The drive follows the source's with the slope {worst['drive_gain']:.2f}.",
        ]
        if "moments" in (outputs.get("correction") or ""):
            found.facts.append("The moments of every channel's drive are matched already; this is what that leaves.")
        else:
            found.settings.append(MOMENTS)
        found.training.append(RECONSTRUCTION)
    else:
        found.facts.append(fact)
    _add_origin(found, layers, measured, worst, outputs)


def _add_origin(
    found: _Findings, layers: pd.DataFrame, measured: pd.DataFrame, worst: "pd.Series[Any]", outputs: Mapping[str, Any]
) -> None:
    """Add the layer before the worst one that adds most noise of its own, where there is such a layer."""
    if (upstream := measured[measured["layer"].isin(_before(layers, str(worst["layer"])))]).empty:
        return
    origin = upstream.iloc[int(_own_noise(upstream).to_numpy().argmax())]
    own = max(OWN, key=lambda part: origin.get(f"share_{part}", 0.0))
    start = (f"Of the layers before it, {origin['layer']} adds most of its own: "
             f"{percent(_own_noise(upstream).max())} of its signal's power, mainly {own}: {CAUSES[own]}.")  # fmt: skip
    _add_layer(found, start, own, origin, outputs)


def _own_noise(layers: pd.DataFrame) -> "pd.Series[float]":
    """Compute the noise that each layer adds itself, over its signal's power."""
    shares = sum(layers[f"share_{part}"] for part in OWN if f"share_{part}" in layers)
    return cast("pd.Series[float]", shares * 10 ** (-layers["sqnr_db"] / 10))


def _before(layers: pd.DataFrame, name: str) -> set[str]:
    """Find all layers whose spikes reach the named one, directly or through others."""
    pairs = zip(layers["layer"], layers["reads"], strict=True)
    reads = {layer: feeds.split(", ") if feeds else [] for layer, feeds in pairs}
    found, waiting = set[str](), list(reads[name])
    while waiting:
        layer = waiting.pop()
        if layer not in found:
            found.add(layer)
            waiting += reads[layer]
    return found
