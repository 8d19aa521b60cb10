"""knobs: noise, accuracy and spikes as one setting at a time is moved, measured beside what theory predicts."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from speedysnn.analysis.evaluate import score
from speedysnn.analysis.histogram_distance import predicted_sqnr_db as predicted_sqnr_db
from speedysnn.analysis.histogram_distance import theta_distance as theta_distance
from speedysnn.analysis.images import batch_dims, pass_size, passes
from speedysnn.analysis.outputs import OutputSums, settings
from speedysnn.analysis.readings import run
from speedysnn.analysis.settings import Case, apply, check
from speedysnn.analysis.sweep import SWEEP
from speedysnn.analysis.theory import decibels
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Delay
from speedysnn.progress import track
from speedysnn.tap import Tap

KNOBS = ("knob", "value", *(name for name in SWEEP if name != "theta"), "rate", "layer_sqnr_db", "predicted_sqnr_db")


def knobs(
    snn: SpikingNetwork,
    data: Any,
    *,
    timesteps: Sequence[int] = (),
    theta_scale: Sequence[float] = (),
    v_init: Sequence[float] = (),
    delay: Sequence[Delay] = (),
    spikes: Sequence[str] = (),
    limit: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Move one knob at a time from the network's present setting; one row a knob and value.

    Args:
        snn: the network; everything is put back at the end, whatever happens.
        data: as in `measure_noise`, static inputs only; read once.
        timesteps, theta_scale, v_init, delay, spikes: values of each knob; theta_scale is a factor on every theta.
        limit: stop after this many images.
        progress: show progress.

    Returns:
        "knob", "value", the columns of `sweep`, "rate" (events per neuron and step), "layer_sqnr_db": mean over layers
        of the SQNR that each layer's quantizer leaves of the source's own activations, and "predicted_sqnr_db": the
        same from the calibration histograms, NaN without them.

    Raises:
        InputError: no values at all, one out of range, or events as input.
        DataError: no data, NaN in it, or the wrong shape.
    """
    chosen = {"timesteps": timesteps, "theta_scale": theta_scale, "v_init": v_init, "delay": delay, "spikes": spikes}
    cases = [(name, value) for name, values in chosen.items() for value in values]
    if not cases:
        raise InputError(f"knobs: expected values of some of {', '.join(chosen)}, got none")
    with torch.no_grad(), snn.preserved() as reset:
        check(snn, cases, reset)
        sums: dict[Case, OutputSums] = {case: OutputSums() for case in cases}
        local: dict[Case, dict[str, list[float]]] = {case: {name: [0.0, 0.0] for name in snn.neurons} for case in cases}
        for batch in track(passes(snn, data, pass_size(snn, 1), limit=limit), "moving knobs", enabled=progress):
            if any(batch_dims(snn, batch.inputs)):
                raise InputError("knobs: events (T, B, ...) fix the number of steps; evaluate them at their own T")
            reset()
            drives: dict[str, Tensor] = {}
            analog = run(snn, "analog", batch.inputs, _keeper(drives))
            for case in cases:
                reset()
                apply(snn, case)
                score(snn, analog, batch, sums[case])
                _add_local(snn, drives, local[case])
        rows = [_row(snn, case, sums[case], local[case], reset) for case in cases]
    return pd.DataFrame(rows, columns=list(KNOBS))


def pareto(table: pd.DataFrame, cost: str = "latency", score: str = "accuracy") -> pd.DataFrame:
    """The rows that no other row beats: none has both a lower cost and a score at least as high; by rising cost.

    Raises:
        InputError: no such column, or a score that was not measured.
    """
    for name in (cost, score):
        if name not in table or table[name].isna().all():
            raise InputError(f"pareto: expected a measured column, got {name!r}; there are {', '.join(table.columns)}")
    ordered = table.sort_values([cost, score], ascending=[True, False], kind="stable")
    best = ordered[score].astype(float).cummax().shift(fill_value=-math.inf)
    return ordered[ordered[score].astype(float) > best].reset_index(drop=True)


def _keeper(drives: dict[str, Tensor]) -> Callable[[Tap], None]:
    def keep(tap: Tap) -> None:
        drives[tap.name] = tap.drive

    return keep


def _add_local(snn: SpikingNetwork, drives: dict[str, Tensor], sums: dict[str, list[float]]) -> None:
    for name, z in drives.items():
        neuron = snn.neurons[name]
        a = neuron.analog(z).double()
        sums[name][0] += float(a.square().sum())
        sums[name][1] += float((neuron.quantized(z).double() - a).square().sum())


def _row(
    snn: SpikingNetwork, case: Case, sums: OutputSums, local: dict[str, list[float]], reset: Callable[[], None]
) -> dict[str, Any]:
    reset()
    apply(snn, case)
    figures = {**settings(snn), **sums.figures()}
    per_neuron = figures["spikes_per_neuron"]
    layers = [decibels(signal, noise) for signal, noise in local.values()]
    return {
        "knob": case[0], "value": case[1], **figures,
        "rate": None if per_neuron is None else per_neuron / snn.timesteps,
        "layer_sqnr_db": sum(layers) / len(layers), "predicted_sqnr_db": predicted_sqnr_db(snn),
    }  # fmt: skip
