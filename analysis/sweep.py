"""sweep: accuracy and SQNR against T, with theta as it is and with theta chosen again for each T."""

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from speedysnn.analysis.evaluate import score
from speedysnn.analysis.images import batch_dims, pass_size, passes
from speedysnn.analysis.outputs import OutputSums, settings
from speedysnn.analysis.readings import run
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork
from speedysnn.progress import track

Thetas = dict[str, Tensor]
Case = tuple[int, str]
SWEEP = ("timesteps", "theta", "delay", "latency", "spikes", "images", "accuracy", "twin_accuracy", "analog_accuracy",
         "agreement", "twin_agreement", "sqnr_db", "twin_sqnr_db", "temporal_gap_db", "logit_error", "twin_logit_error",
         "spikes_per_neuron", "spikes_per_inference")  # fmt: skip


def sweep(
    snn: SpikingNetwork,
    data: Any,
    timesteps: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    recalibrate: bool | Literal["both"] = "both",
    limit: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """One row a T and a way to choose theta: what accuracy and SQNR would be at other numbers of steps.

    The data is read once, and the analog reading is run once for all T.

    Args:
        snn: the network; its T and thresholds are put back at the end, whatever happens.
        data: as in `measure_noise`, static inputs only.
        timesteps: the T to measure, in this order.
        recalibrate: False keeps theta ("fixed"), True chooses it for each T from the stored histograms
            ("recalibrated", which undoes what training made of it), "both" gives both rows.
        limit: stop after this many images.
        progress: show progress.

    Returns:
        Columns as in `speedysnn.analysis.schema.OUTPUTS`; None where not measured.

    Raises:
        InputError: an option out of range, events as input, or no histograms to recalibrate from.
        DataError: no data, NaN in it, or the wrong shape.
    """
    kinds = _kinds(snn, recalibrate)
    steps = list(dict.fromkeys(timesteps))
    if not steps:
        raise InputError("timesteps: expected at least one T, got none")
    with torch.no_grad(), snn.preserved():
        cases = _cases(snn, steps, kinds)
        sums = {case: OutputSums() for case in cases}
        for batch in track(passes(snn, data, pass_size(snn, 1), limit=limit), "sweeping", enabled=progress):
            if any(batch_dims(snn, batch.inputs)):
                raise InputError("sweep: events (T, B, ...) fix the number of steps; evaluate them at their own T")
            analog = run(snn, "analog", batch.inputs)
            for (steps_now, kind), thetas in cases.items():
                _apply(snn, steps_now, thetas)
                score(snn, analog, batch, sums[steps_now, kind])
        rows = []
        for (steps_now, kind), thetas in cases.items():
            _apply(snn, steps_now, thetas)
            rows.append({**settings(snn), **sums[steps_now, kind].figures(), "theta": kind})
    return pd.DataFrame(rows, columns=list(SWEEP))


def _kinds(snn: SpikingNetwork, recalibrate: bool | str) -> tuple[str, ...]:
    kinds = {False: ("fixed",), True: ("recalibrated",), "both": ("fixed", "recalibrated")}
    if recalibrate not in kinds:
        raise InputError(f'recalibrate: expected True, False or "both", got {recalibrate!r}')
    if recalibrate and not snn.calibration.histograms:
        raise InputError(
            "sweep: the network holds no histograms to recalibrate from; pass recalibrate=False, or convert it with "
            "calibration data"
        )
    return kinds[recalibrate]


def _cases(snn: SpikingNetwork, timesteps: Sequence[int], kinds: Sequence[str]) -> dict[Case, Thetas]:
    """The thresholds' logarithms of every case."""
    fixed = _thetas(snn)
    cases: dict[Case, Thetas] = {}
    for steps in timesteps:
        for kind in kinds:
            _apply(snn, steps, fixed)
            cases[steps, kind] = fixed if kind == "fixed" else _thetas(snn.recalibrate())
    return cases


def _thetas(snn: SpikingNetwork) -> Thetas:
    return {name: neuron.log_threshold.detach().clone() for name, neuron in snn.neurons.items()}


def _apply(snn: SpikingNetwork, timesteps: int, thetas: Thetas) -> None:
    if snn.timesteps != timesteps:
        snn.timesteps = timesteps
    for name, neuron in snn.neurons.items():
        neuron.log_threshold.data = thetas[name].clone()
