"""knobs: noise, accuracy and spikes as one setting at a time is moved, measured beside what theory predicts.

One setting of a network moved.

How far a network's thresholds and noise are from what its stored histograms say.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from speedysnn.analysis.evaluate import SWEEP, score
from speedysnn.analysis.output_metrics import OutputSums, settings
from speedysnn.analysis.reference import batch_dims, pass_size, passes, run
from speedysnn.analysis.theory.quantization import decibels
from speedysnn.calibration.distributions import squared_error
from speedysnn.calibration.rules import starts_of
from speedysnn.display import track
from speedysnn.errors import InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Delay

Case = tuple[str, Any]


def apply(snn: SpikingNetwork, case: Case) -> None:
    """Set a knob in place."""
    name, value = case
    if name == "timesteps":
        snn.timesteps = value
    elif name == "delay":
        snn.set_delay(value)
    elif name == "spikes":
        snn.set_spikes(value)
    else:
        for neuron in snn.neurons.values():
            if name == "theta_scale":
                neuron.log_threshold.data = neuron.log_threshold.data + math.log(value)
            else:
                neuron.v_init.data = torch.full_like(neuron.v_init.data, value)


def check(snn: SpikingNetwork, cases: Sequence[Case], reset: Callable[[], None]) -> None:
    """Refuse values out of range before any work."""
    for name, value in cases:
        if name == "theta_scale" and not value > 0:
            raise InputError(f"theta_scale: expected factors above 0, got {value!r}")
        if name == "v_init" and not 0 <= value <= 1:
            raise InputError(f"v_init: expected fractions of theta in 0..1, got {value!r}")
        apply(snn, (name, value))
        reset()


def theta_distance(snn: SpikingNetwork) -> pd.DataFrame:
    """Present theta against the best for this T and v_init, theta*, by layer: columns layer, theta, best, ratio_db.

    theta and best are means over channels, ratio_db the root mean square of 20 log10(theta / theta*) over them, dB;
    ideal 0. theta* has the least squared error on the stored histograms.

    Raises:
        InputError: the network holds no histograms.
    """
    thetas = {name: neuron.threshold.detach().clone() for name, neuron in snn.neurons.items()}
    with torch.no_grad(), snn.preserved():
        snn.calibration.rules, kept = dict.fromkeys(snn.neurons, "mse"), snn.calibration.rules
        try:
            snn.recalibrate()
            best = {name: neuron.threshold.detach().clone() for name, neuron in snn.neurons.items()}
        finally:
            snn.calibration.rules = kept
    return pd.DataFrame([
        {"layer": name, "theta": float(theta.mean()), "best": float(best[name].mean()),
         "ratio_db": float((20 * torch.log10(theta / best[name])).square().mean().sqrt())}
        for name, theta in thetas.items()
    ])  # fmt: skip


def predicted_sqnr_db(snn: SpikingNetwork) -> float:
    """Mean over layers of the SQNR of clipping and rounding alone, from the stored histograms; NaN without them."""
    found = []
    for name, neuron in snn.neurons.items():
        hist = snn.calibration.histograms.get(name)
        if hist is None:
            return math.nan
        channels = hist.channels // 2 if neuron.signed else hist.channels
        theta = neuron.threshold.detach().cpu().reshape(-1).expand(channels)
        start = starts_of(neuron.v_init, channels)
        if neuron.signed:
            theta, start = theta.repeat(2), torch.cat([start, 1 - start])
        noise = squared_error(hist, theta[:, None], start, snn.timesteps, neuron.levels_per_step)
        found.append(decibels(_power(hist), float(noise.double().sum())))
    return sum(found) / len(found)


def _power(hist: Any) -> float:
    """Sum of squares of a histogram's values, uniform within bins."""
    edges = hist.edges().to(torch.float64)
    low, high = edges[:, :-1], edges[:, 1:]
    return float((hist.counts.to(torch.float64) * (low**2 + low * high + high**2) / 3).sum())


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


def _keeper(drives: dict[str, Tensor]) -> Callable[[LayerRecord], None]:
    def keep(tap: LayerRecord) -> None:
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
