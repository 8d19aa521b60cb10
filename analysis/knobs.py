"""knobs: noise, accuracy and spikes as one setting at a time is moved, measured beside what theory predicts.

`pareto` picks the rows that no other row beats. `theta_distance` and `predicted_sqnr_db` say how far a network's
thresholds and noise are from what its stored histograms allow.
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
from speedysnn.display import counting, scaled
from speedysnn.errors import InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Delay

KNOBS = ("knob", "value", *(name for name in SWEEP if name != "theta"), "rate", "layer_sqnr_db", "predicted_sqnr_db")
Case = tuple[str, Any]


def apply(snn: SpikingNetwork, case: Case) -> None:
    """Set one knob in place.

    Args:
        snn: the network.
        case: the knob's name and its value.
    """
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
                if neuron.log_amplitude is not None:
                    neuron.log_amplitude.data = neuron.log_amplitude.data + math.log(value)
            else:
                neuron.v_init.data = torch.full_like(neuron.v_init.data, value)


def check(snn: SpikingNetwork, cases: Sequence[Case], reset: Callable[[], None]) -> None:
    """Refuse values out of range before any work.

    Args:
        snn: the network.
        cases: knobs and values.
        reset: puts the network back as it was.

    Raises:
        InputError: a value out of range.
    """
    for name, value in cases:
        if name == "theta_scale" and not value > 0:
            raise InputError(f"theta_scale: expected factors above 0, got {value!r}")
        if name == "v_init" and not 0 <= value <= 1:
            raise InputError(f"v_init: expected fractions of theta in 0..1, got {value!r}")
        apply(snn, (name, value))
        reset()


def theta_distance(snn: SpikingNetwork) -> pd.DataFrame:
    """Compare every layer's theta with theta*, which has the least squared error on the stored histograms.

    The best theta is that for this T and v_init.

    Args:
        snn: the network; it is left as it is.

    Returns:
        Columns layer, theta, best and ratio_db: means over channels, and the root mean square of
        20 log10(theta / theta*) over them in dB; ideal 0.

    Raises:
        InputError: the network holds no histograms.

    Example:
        >>> from speedysnn import analysis, convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "test", limit=40)
        >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
        >>> bool((analysis.theta_distance(snn)["ratio_db"] < 1).all())
        True
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
    """Predict the SQNR of clipping and rounding alone from the stored histograms, in the mean over layers.

    Args:
        snn: the network.

    Returns:
        Decibels; NaN without histograms.
    """
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
        if neuron.log_amplitude is None:
            noise = squared_error(hist, theta[:, None], start, snn.timesteps, neuron.levels_per_step)
        else:
            unit = neuron.amplitude.detach().cpu().reshape(-1).expand(channels).repeat(2 if neuron.signed else 1)
            noise = _separate_error(hist, theta / snn.timesteps, unit / snn.timesteps, start,
                                    snn.timesteps * neuron.levels_per_step)  # fmt: skip
        found.append(decibels(_power(hist), float(noise.double().sum())))
    return sum(found) / len(found)


def _separate_error(hist: Any, width: Tensor, step: Tensor, start: Tensor, levels: int) -> Tensor:
    """Sum (n step - z)^2, n = clip(floor(z / width + v), 0, levels), over a histogram's values, uniform within bins.

    `width` is theta/T, `step` the amplitude over T, (C,) each; the sums are (C,).
    """
    edges = hist.edges().to(torch.float64)
    low, high = edges[:, :-1], edges[:, 1:]
    width, step, start = (x.to(torch.float64)[:, None] for x in (width, step, start))
    total = torch.zeros_like(low)
    for n in range(levels + 1):
        begin = (n - start) * width if n else torch.full_like(width, -math.inf)
        end = (n + 1 - start) * width if n < levels else torch.full_like(width, math.inf)
        first, last = torch.maximum(low, begin), torch.minimum(high, end)
        total += torch.where(last > first, (last - n * step) ** 3 - (first - n * step) ** 3, 0.0) / 3
    out: Tensor = (total * hist.counts.to(torch.float64) / (high - low).clamp_min(1e-300)).sum(1)
    return out


def _power(hist: Any) -> float:
    """Sum of squares of a histogram's values, uniform within bins."""
    edges = hist.edges().to(torch.float64)
    low, high = edges[:, :-1], edges[:, 1:]
    return float((hist.counts.to(torch.float64) * (low**2 + low * high + high**2) / 3).sum())


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
        timesteps, theta_scale, v_init, delay, spikes: values of each knob; theta_scale is a factor on every theta
            and amplitude.
        limit: stop after this many images.
        progress: show progress.

    Returns:
        "knob", "value", the columns of `sweep`, "rate" (events per neuron and step), "layer_sqnr_db": mean over layers
        of the SQNR that each layer's quantizer leaves of the source's own activations, and "predicted_sqnr_db": the
        same from the calibration histograms, NaN without them.

    Raises:
        InputError: no values at all, one out of range, or events as input.
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> from speedysnn import analysis, convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "test", limit=40)
        >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
        >>> table = analysis.knobs(snn, images, timesteps=(2, 8), theta_scale=(0.5,))
        >>> table["knob"].tolist(), snn.timesteps
        (['timesteps', 'timesteps', 'theta_scale'], 4)
    """
    chosen = {"timesteps": timesteps, "theta_scale": theta_scale, "v_init": v_init, "delay": delay, "spikes": spikes}
    cases = [(name, value) for name, values in chosen.items() for value in values]
    if not cases:
        raise InputError(f"knobs: expected values of some of {', '.join(chosen)}, got none")
    batches = passes(snn, data, pass_size(snn, 1), limit=limit)
    with (
        torch.no_grad(),
        snn.preserved() as reset,
        counting("moving knobs", total=batches.images, enabled=progress) as done,
    ):
        check(snn, cases, reset)
        sums: dict[Case, OutputSums] = {case: OutputSums() for case in cases}
        local: dict[Case, dict[str, list[float]]] = {case: {name: [0.0, 0.0] for name in snn.neurons} for case in cases}
        for batch in batches:
            if any(batch_dims(snn, batch.inputs)):
                raise InputError("knobs: events (T, B, ...) fix the number of steps; evaluate them at their own T")
            reset()
            drives: dict[str, Tensor] = {}
            analog = run(snn, "analog", batch.inputs, _keeper(drives))
            for case in cases:
                reset()
                apply(snn, case)
                score(snn, analog, batch, sums[case], done=scaled(done, 1 / len(cases)))
                _add_local(snn, drives, local[case])
        rows = [_row(snn, case, sums[case], local[case], reset) for case in cases]
    return pd.DataFrame(rows, columns=list(KNOBS))


def pareto(table: pd.DataFrame, cost: str = "latency", score: str = "accuracy") -> pd.DataFrame:
    """Pick the rows that no other row beats: none has both a lower cost and a score at least as high.

    Args:
        table: of `knobs` or another measurement.
        cost: name of the column that should be low.
        score: name of the column that should be high.

    Returns:
        Those rows, by rising cost.

    Raises:
        InputError: no such column, or a score that was not measured.

    Example:
        >>> import pandas as pd
        >>> from speedysnn.analysis import pareto
        >>> table = pd.DataFrame({"latency": [1, 2, 3, 4], "accuracy": [0.5, 0.9, 0.8, 0.95]})
        >>> pareto(table)["latency"].tolist()
        [1, 2, 4]
    """
    for name in (cost, score):
        if name not in table or table[name].isna().all():
            raise InputError(f"pareto: expected a measured column, got {name!r}; there are {', '.join(table.columns)}")
    ordered = table.sort_values([cost, score], ascending=[True, False], kind="stable")
    best = ordered[score].astype(float).cummax().shift(fill_value=-math.inf)
    return ordered[ordered[score].astype(float) > best].reset_index(drop=True)


def _keeper(drives: dict[str, Tensor]) -> Callable[[LayerRecord], None]:
    """An observer that keeps every layer's drive."""
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
    """Figures of one case."""
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
