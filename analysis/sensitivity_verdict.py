"""What a sensitivity measurement says, in plain sentences: timing before layers, then the layer, then the change."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from speedysnn.analysis.commands import Advice, command_words

_GAP_DB = 1.0  # a smaller temporal gap is not worth a step of latency
_SURE = 2.0  # standard errors above which a gain is more than chance
_WORTH_DB = 0.1


def advise_on_layers(table: pd.DataFrame, gains: pd.DataFrame, outputs: Mapping[str, Any]) -> tuple[Advice, ...]:
    """What was found, most important first; what was not measured is left out."""
    return (*_timing(outputs), *_worst(table, outputs), *_best(gains, outputs))


def _timing(outputs: Mapping[str, Any]) -> list[Advice]:
    """The temporal gap, which no swap of a single layer shows."""
    gap, twin = outputs["temporal_gap_db"], outputs["twin_sqnr_db"]
    cost = f"T = {outputs['timesteps']}, look-ahead {outputs['delay']}, latency {outputs['latency']} steps"
    if outputs["spikes_per_neuron"] is not None:
        cost += f", {outputs['spikes_per_neuron']:.2f} spikes per neuron"
    if not math.isfinite(gap):
        return [Advice(f"On {outputs['images']} images ({cost}) the temporal gap is undefined.")]
    head = Advice(
        f"On {outputs['images']} images ({cost}) the output SQNR is {outputs['sqnr_db']:.1f} dB in spikes and "
        f"{twin:.1f} dB in the quantized reading: a temporal gap of {gap:.1f} dB."
    )
    if gap < _GAP_DB:
        return [head]
    return [
        head,
        Advice(
            "Spike timing comes before any layer: the isolated figures and quantized gains do not see it. Compare with "
            "one more step of look-ahead.",
            f"snn.set_delay({outputs['delay'] + 1})",
            command_words("evaluate", "--delay", f"{outputs['delay']},{outputs['delay'] + 1}"),
        ),
        Advice(
            "Or train through time.",
            "finetune.fit(snn, train, config=finetune.Config(epochs_quantized=0, epochs_spiking=4))",
            command_words("finetune", "--stage", "spiking:4", "-o", "tuned.snn"),
        ),
    ]


def _worst(table: pd.DataFrame, outputs: Mapping[str, Any]) -> list[Advice]:
    """The layer whose absence helps the spiking network most, and the one that is worst alone."""
    out = []
    spared = _finite(table, "leave_one_out")
    if len(spared) and math.isfinite(outputs["sqnr_db"]):
        row = spared.nlargest(1, "sqnr_db").iloc[0]
        gain = row["sqnr_db"] - outputs["sqnr_db"]
        text = (
            f"Left analog alone, {row['layer']} would give {gain:.1f} dB back at the output, the most of all layers "
            "(leave_one_out)."
        )
        out.append(Advice(text if gain > 0 else "No layer left analog alone would help the output (leave_one_out)."))
    alone = _finite(table, "isolated")
    if len(alone):
        row = alone.nsmallest(1, "sqnr_db").iloc[0]
        text = f"Spiking alone, {row['layer']} costs most: {row['sqnr_db']:.1f} dB at the output (isolated)."
        out.append(Advice(text))
    return out


def _best(gains: pd.DataFrame, outputs: Mapping[str, Any]) -> list[Advice]:
    """The best change, and whether it is more than chance."""
    if gains.empty or not math.isfinite(gains["gain_db"].iloc[0]):
        return []
    row = gains.iloc[0]
    if row["gain_db"] < _WORTH_DB:
        return [Advice("No change of a single layer that was measured would gain 0.1 dB at the output.")]
    error, expected = row["gain_se_db"], row["expected_db"]
    unsure = not row["gain_db"] > _SURE * error
    others = f", {expected:.2f} dB to be expected on other images" if math.isfinite(expected) else ""
    chance = " That may be chance: measure on more images." if unsure else ""
    return [
        Advice(
            f"Best change: {row['change']} in {row['layer']}, {row['gain_db']:.2f} ± {error:.2f} dB at the output"
            f"{others}.{chance}",
            str(row["call"]),
        ),
        Advice(
            "The command line has the like of it for all layers at once.",
            argv=_for_all_layers(row["change"], outputs),
        ),
    ]


def _for_all_layers(change: str, outputs: Mapping[str, Any]) -> tuple[str, ...]:
    """The command that makes the like of a layer's change in every layer."""
    if change == "look-ahead":
        return command_words("evaluate", "--delay", str(outputs["delay"] + 1))
    if change in ("threshold", "bias"):
        trained = {"threshold": "thresholds", "bias": "biases,v_init"}[change]
        return command_words("finetune", "--train", trained, "-o", "tuned.snn")
    return command_words("evaluate", "-T", str(2 * outputs["timesteps"] + 1), "--recalibrate")


def _finite(table: pd.DataFrame, mode: str) -> pd.DataFrame:
    rows = table[table["mode"] == mode]
    return rows[rows["sqnr_db"].map(math.isfinite)]
