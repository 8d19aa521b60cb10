"""knobs: noise, accuracy and spikes as one setting at a time is moved, measured beside what theory predicts."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from speedysnn.analysis.evaluate import score
from speedysnn.analysis.images import batch_dims, pass_size, passes
from speedysnn.analysis.outputs import OutputSums, settings
from speedysnn.analysis.readings import run
from speedysnn.analysis.sweep import SWEEP
from speedysnn.analysis.theory import decibels
from speedysnn.errors import InputError
from speedysnn.executor import Tap
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Delay
from speedysnn.progress import track
from speedysnn.thresholds import squared_error, starts_of

Case = tuple[str, Any]
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
    with torch.no_grad(), _restoring(snn) as reset:
        _check(snn, cases, reset)
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
                _apply(snn, case)
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


def theta_distance(snn: SpikingNetwork) -> pd.DataFrame:
    """Present theta against the best for this T and v_init, theta*, by layer: columns layer, theta, best, ratio_db.

    theta and best are means over channels, ratio_db the root mean square of 20 log10(theta / theta*) over them, dB;
    ideal 0. theta* has the least squared error on the stored histograms.

    Raises:
        InputError: the network holds no histograms.
    """
    thetas = {name: neuron.threshold.detach().clone() for name, neuron in snn.neurons.items()}
    with torch.no_grad(), _restoring(snn):
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


def _keeper(drives: dict[str, Tensor]) -> Callable[[Tap], None]:
    def keep(tap: Tap) -> None:
        drives[tap.name] = tap.drive

    return keep


def _apply(snn: SpikingNetwork, case: Case) -> None:
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


def _check(snn: SpikingNetwork, cases: Sequence[Case], reset: Callable[[], None]) -> None:
    """Refuse values out of range before any work."""
    for name, value in cases:
        if name == "theta_scale" and not value > 0:
            raise InputError(f"theta_scale: expected factors above 0, got {value!r}")
        if name == "v_init" and not 0 <= value <= 1:
            raise InputError(f"v_init: expected fractions of theta in 0..1, got {value!r}")
        _apply(snn, (name, value))
        reset()


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
    _apply(snn, case)
    figures = {**settings(snn), **sums.figures()}
    per_neuron = figures["spikes_per_neuron"]
    layers = [decibels(signal, noise) for signal, noise in local.values()]
    return {
        "knob": case[0], "value": case[1], **figures,
        "rate": None if per_neuron is None else per_neuron / snn.timesteps,
        "layer_sqnr_db": sum(layers) / len(layers), "predicted_sqnr_db": predicted_sqnr_db(snn),
    }  # fmt: skip


@contextmanager
def _restoring(snn: SpikingNetwork) -> Iterator[Callable[[], None]]:
    """A function that puts T, theta, v_init, look-ahead and spikes back; it is called at the end too."""
    timesteps = snn.timesteps
    own = {name: (n.log_threshold.data, n.v_init.data, n.delay, n.spikes) for name, n in snn.neurons.items()}

    def reset() -> None:
        snn.timesteps = timesteps
        for name, neuron in snn.neurons.items():
            neuron.log_threshold.data, neuron.v_init.data, neuron.delay, neuron.spikes = own[name]
        snn.reset()

    try:
        yield reset
    finally:
        reset()
