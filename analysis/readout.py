"""When to read the answer: running means of the output step by step, and a read-out that leaves out the first steps.

`watch` reads every image step by step, with the spikes spent until each answer; early exit uses it too.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from speedysnn.analysis.output_metrics import classes, settings
from speedysnn.analysis.reference import Reference, leaves, naming_batch, pass_size, passes
from speedysnn.display import track
from speedysnn.errors import InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.graph.ir import lags
from speedysnn.network import SpikingNetwork

SKIPPED = ("skip", "steps_read", "accuracy", "agreement", "logit_error", "images", "timesteps", "delay", "latency",
           "spikes", "spikes_per_neuron")  # fmt: skip


def read_after(means: Tensor, skip: int) -> Tensor:
    """Compute the mean output of the steps skip+1..T, (T m[T] - k m[k]) / (T - k) with k = skip.

    Args:
        means: running means (T, B, ...), as `snn(x, per_step=True)` gives them.
        skip: k, 0 to T - 1.

    Returns:
        (B, ...), in the output's unit.

    Raises:
        InputError: skip below 0, or no step left.

    Example:
        >>> import torch
        >>> from speedysnn.analysis.readout import read_after
        >>> outputs = torch.tensor([0.0, 3.0, 3.0])  # of three steps, for one image
        >>> means = outputs.cumsum(0) / torch.arange(1, 4)
        >>> read_after(means, 0).item(), read_after(means, 1).item()
        (2.0, 3.0)
    """
    steps = len(means)
    if not isinstance(skip, int) or isinstance(skip, bool) or not 0 <= skip < steps:
        raise InputError(f"skip: expected a whole number of steps from 0 to {steps - 1} (T - 1), got {skip!r}")
    return means[-1] if skip == 0 else (means[-1] * steps - means[skip - 1] * skip) / (steps - skip)


def delayed_readout(
    snn: SpikingNetwork,
    data: Any,
    skip: Sequence[int] = (0, 1, 2),
    *,
    source: nn.Module | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Measure accuracy when the first k output steps are left out of the mean; one row a k, all from one pass.

    At look-ahead 0 a deep layer's first steps rest on few spikes of the layers before it and are far off; leaving them
    out costs resolution. The answer comes at the same time whatever k is, and every spike is still spent.

    Args:
        snn: the network, in its spiking reading at its present T; it is left as it is.
        data: as in `measure_noise`.
        skip: the k to measure, each from 0 to T - 1.
        source: what to compare with, as in `measure_noise`.
        limit: stop after this many images.
        progress: show progress.

    Returns:
        Columns `SKIPPED`: fractions in 0..1, accuracy None without labels, logit_error |out - source| / |source|.

    Raises:
        InputError: an option out of range, or an output that is not (B, classes).
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> from speedysnn import analysis, convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "test", limit=40)
        >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
        >>> analysis.delayed_readout(snn, images, skip=(0, 1))[["skip", "steps_read", "images"]].values.tolist()
        [[0, 4, 40], [1, 3, 40]]
    """
    chosen = list(dict.fromkeys(skip))
    for k in chosen:
        read_after(torch.zeros(snn.timesteps, 1), k)
    rows = {k: {"correct": 0, "agreed": 0, "noise": 0.0} for k in chosen}
    images, signal, spikes, neurons, labelled = 0, 0.0, 0, 0, True
    for seen in watch(snn, data, source, limit, "delayed read-out", progress):
        reference = seen.analog.double()
        images, signal = images + len(reference), signal + float((reference**2).sum())
        spikes, neurons = spikes + int(seen.spent[-1].sum()), seen.neurons
        labelled = seen.labels is not None
        for k, row in rows.items():
            out = read_after(seen.means.double(), k)
            answer = out.argmax(1)
            row["noise"] += float(((out - reference) ** 2).sum())
            row["agreed"] += int((answer == reference.argmax(1)).sum())
            row["correct"] += 0 if seen.labels is None else int((answer == seen.labels).sum())
    common = {**settings(snn), "images": images, "spikes_per_neuron": spikes / images / neurons}
    table = [
        {"skip": k, "steps_read": snn.timesteps - k, "accuracy": row["correct"] / images if labelled else None,
         "agreement": row["agreed"] / images, "logit_error": _relative(row["noise"], signal), **common}
        for k, row in rows.items()
    ]  # fmt: skip
    return pd.DataFrame(table, columns=list(SKIPPED))


@dataclass(frozen=True)
class Seen:
    """One pass over some images.

    Attributes:
        means: running means of the output, (T, B, C).
        analog: the reference's output, (B, C).
        labels: (B,), or None.
        spent: spikes of all layers until the answer of each step is out, (T, B).
        neurons: of the network.
    """

    means: Tensor
    analog: Tensor
    labels: Tensor | None
    spent: Tensor
    neurons: int


def watch(
    snn: SpikingNetwork, data: Any, source: nn.Module | None, limit: int | None, what: str, progress: bool
) -> Iterator[Seen]:
    """Read the data in the spiking reading, step by step.

    Args:
        snn, data, source, limit, progress: as in `measure_noise`.
        what: name of the work, for its progress.

    Yields:
        What was seen of one pass after the other.

    Raises:
        InputError: an output that is not (B, classes).
        DataError: no data, NaN in it, or the wrong shape.
    """
    reference = Reference.of(snn, source)
    trail = lags(snn.graph, lambda name: snn.neurons[name].lookahead)
    ends = max(trail[name] for name in snn.graph.output_names)
    with torch.no_grad():
        for batch in track(passes(snn, data, pass_size(snn), limit=limit), what, enabled=progress):
            meter = _Meter({name: ends - lag for name, lag in trail.items()}, snn.timesteps)
            means = leaves(_per_step(snn, batch.inputs, meter))[0]
            analog = leaves(reference.analog(batch.inputs))[0]
            if classes(analog) is None or means.shape[1:] != analog.shape:
                raise InputError(
                    f"read-out: expected outputs (B, classes) of at least two classes from network and source, got "
                    f"{tuple(means.shape[1:])} and {tuple(analog.shape)}"
                )
            yield Seen(means, analog.to(means.device), batch.labels, meter.spent, meter.neurons)


def _per_step(snn: SpikingNetwork, inputs: Sequence[Tensor], meter: "_Meter") -> Any:
    with naming_batch(inputs), snn.reading("spiking"):
        return snn(*inputs, per_step=True, observer=meter)


class _Meter:
    """Observer: count the spikes that all layers have sent when the answer of step t comes out, (T, B).

    Args:
        ahead: steps that each layer is ahead of the output, by name.
        timesteps: T.
    """

    def __init__(self, ahead: Mapping[str, int], timesteps: int) -> None:
        self.ahead, self.timesteps, self.neurons = ahead, timesteps, 0
        self.spent = torch.zeros(())

    def __call__(self, tap: LayerRecord) -> None:
        """Add one layer, `ahead` steps beyond the output."""
        trains = tap.steps().flatten(2)
        sent = torch.count_nonzero(trains, 2).cumsum(0)
        reached = (torch.arange(self.timesteps) + self.ahead[tap.name]).clamp_max(self.timesteps - 1)
        self.spent = self.spent.to(sent.device) + sent[reached.to(sent.device)]
        self.neurons += trains.shape[2]


def _relative(noise: float, signal: float) -> float:
    return math.sqrt(noise / signal) if signal > 0 else math.nan
