"""choose_delay: as little look-ahead as keeps the answers, layer by layer.

`DelayChoice` holds the look-aheads that a search found, how it found them, and what each setting tried gave.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from speedysnn.analysis.output_metrics import OutputSums, settings
from speedysnn.analysis.reference import mean_of, pass_size, passes, reached_counts, run
from speedysnn.analysis.theory.quantization import decibels
from speedysnn.data.batches import Batch
from speedysnn.display import plain, track
from speedysnn.errors import InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.network import SpikingNetwork

SCORES = ("images", "accuracy", "agreement", "sqnr_db", "spikes_per_neuron", "spikes_per_inference")
TRIED = ("step", "layer", "latency", "lookahead", "kept", *SCORES)


@dataclass(frozen=True)
class DelayChoice:
    """The look-aheads that `choose_delay` found.

    Attributes:
        delays: look-ahead of every neuron layer, in steps.
        latency: T plus the look-aheads along the longest path, in steps.
        uniform_latency: the least latency at which one look-ahead for all layers keeps the targets.
        timesteps: T it was chosen for.
        targets: what had to be kept, by name.
        figures: accuracy, agreement, SQNR and spikes at the choice, on the images it was chosen on.
        temporal_db: by layer, 10 log10(sum r^2 / sum (r - Q(z'))^2) without look-ahead; +inf where time does no harm.
        tried: one row a setting, columns `TRIED` and one "delay NAME" a layer; `lookahead` is the sum over all layers.
    """

    delays: Mapping[str, int]
    latency: int
    uniform_latency: int
    timesteps: int
    targets: Mapping[str, float]
    figures: Mapping[str, Any]
    temporal_db: Mapping[str, float]
    tried: pd.DataFrame

    def apply(self, snn: SpikingNetwork) -> None:
        """Give the network these look-aheads.

        Args:
            snn: the network it was chosen for, at the same T.

        Raises:
            InputError: a network with other neuron layers, or at another T.
        """
        if set(snn.neurons) != set(self.delays):
            raise InputError(f"apply: expected the network of the choice ({len(self.delays)} neuron layers), got one "
                             f"of {len(snn.neurons)} with other names; choose for this network")  # fmt: skip
        if snn.timesteps != self.timesteps:
            raise InputError(f"apply: chosen for T = {self.timesteps}, the network runs T = {snn.timesteps}; "
                             "set snn.timesteps, or choose again")  # fmt: skip
        snn.set_delay(self.delays)

    def to_json(self) -> dict[str, Any]:
        """Give the choice as strict JSON data.

        Returns:
            Values by name; infinities are words, what was not measured is None.
        """
        rows = [{str(name): plain(value) for name, value in row.items()} for row in self.tried.to_dict("records")]
        return {
            "delays": dict(self.delays),
            "latency": self.latency,
            "uniform_latency": self.uniform_latency,
            "timesteps": self.timesteps,
            "targets": dict(self.targets),
            "figures": {name: plain(value) for name, value in self.figures.items()},
            "temporal_db": {name: plain(value) for name, value in self.temporal_db.items()},
            "tried": rows,
        }


Delays = tuple[int, ...]  # one look-ahead a layer, in execution order


def choose_delay(
    snn: SpikingNetwork,
    data: Any,
    *,
    accuracy: float | None = None,
    agreement: float | None = None,
    sqnr_db: float | None = None,
    largest: int = 2,
    progress: bool = False,
) -> DelayChoice:
    """Find the least latency T + (look-aheads along the longest path) that keeps every target, greedily.

    One look-ahead d for all layers is tried for d = 0 ... largest. From each d that keeps the targets, layers are taken
    in the order of the temporal error they show without look-ahead, least first, and given the least look-ahead that
    still keeps them. The best ending wins: least latency, then least look-ahead in all, then highest SQNR.

    Args:
        snn: the network at its present T; its look-aheads are put back at the end, whatever happens.
        data: validation images, as in `measure_noise`; kept in memory. Never the test images: the choice is fitted to
            these answers, so its figures are too good for them and must be measured again on others.
        accuracy: least fraction of labels met, 0 to 1.
        agreement: least fraction of images classified as the analog reading does, 0 to 1.
        sqnr_db: least output SQNR against the analog reading, dB.
        largest: greatest look-ahead of a layer, in steps; at most T.
        progress: show progress.

    Returns:
        The look-aheads, and every setting that was tried.

    Raises:
        InputError: no target, an option out of range, a target that nothing measures or no tried setting keeps.
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> from speedysnn import analysis, convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "test", limit=40)
        >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
        >>> choice = analysis.choose_delay(snn, images, agreement=0.9, largest=1)
        >>> choice.figures["agreement"] >= 0.9, choice.latency <= choice.uniform_latency
        (True, True)
        >>> choice.apply(snn)
    """
    targets = _targets(accuracy, agreement, sqnr_db)
    if not isinstance(largest, int) or isinstance(largest, bool) or not 0 <= largest <= snn.timesteps:
        raise InputError(f"largest: expected a whole number of steps from 0 to T = {snn.timesteps}, got {largest!r}")
    with torch.no_grad(), snn.preserved("delay"):
        return _Search(snn, data, targets, largest, progress).choice()


def _targets(accuracy: float | None, agreement: float | None, sqnr_db: float | None) -> dict[str, float]:
    given = {"accuracy": accuracy, "agreement": agreement, "sqnr_db": sqnr_db}
    targets = {name: float(value) for name, value in given.items() if value is not None}
    if not targets:
        raise InputError("choose_delay: expected a target (accuracy=, agreement= or sqnr_db=), got none")
    for name, value in targets.items():
        if math.isnan(value) or (name != "sqnr_db" and not 0 <= value <= 1):
            wanted = "a number of dB" if name == "sqnr_db" else "a fraction from 0 to 1"
            raise InputError(f"{name}: expected {wanted}, got {value:g}")
    return targets


class _Search:
    """The settings tried so far, each measured once."""

    def __init__(
        self, snn: SpikingNetwork, data: Any, targets: Mapping[str, float], largest: int, progress: bool
    ) -> None:
        self.snn, self.targets, self.largest, self.progress = snn, targets, largest, progress
        self.names = list(snn.neurons)
        self.batches: list[Batch] = list(passes(snn, data, pass_size(snn)))
        self.references = [(run(snn, "analog", x.inputs), run(snn, "quantized", x.inputs)) for x in self.batches]
        self.tried: dict[Delays, dict[str, Any]] = {}

    def choice(self) -> DelayChoice:
        """Try, choose, and put together."""
        errors = self._temporal()
        order = sorted(range(len(self.names)), key=lambda i: -errors[self.names[i]])
        starts = [d for d in range(self.largest + 1) if self._keeps((d,) * len(self.names), f"all {d}", None)]
        if not starts:
            raise InputError(self._out_of_reach())
        uniform = self.tried[(starts[0],) * len(self.names)]["latency"]
        ends = [self._remove(d, order) for d in track(starts, "choosing look-aheads", enabled=self.progress)]
        best = min(ends, key=self._cost)
        row = self.tried[best]
        return DelayChoice(dict(zip(self.names, best, strict=True)), row["latency"], uniform, self.snn.timesteps,
                           self.targets, {name: row[name] for name in SCORES}, errors, self._table())  # fmt: skip

    def _temporal(self) -> dict[str, float]:
        """Signal of every layer over the error of its spikes' timing, all look-aheads 0; dB."""
        self.snn.set_delay(0)
        sums = {name: [0.0, 0.0] for name in self.names}

        def add(tap: LayerRecord) -> None:
            spent, lost = _timing(tap)
            sums[tap.name][0] += spent
            sums[tap.name][1] += lost

        for batch in self.batches:
            run(self.snn, "spiking", batch.inputs, add)
        return {name: math.inf if lost == 0 else decibels(spent, lost) for name, (spent, lost) in sums.items()}

    def _keeps(self, delays: Delays, step: str, layer: str | None) -> bool:
        """Whether a setting keeps every target; measured at the first question."""
        if delays not in self.tried:
            self.snn.set_delay(dict(zip(self.names, delays, strict=True)))
            sums = OutputSums()
            for batch, (analog, twin) in zip(self.batches, self.references, strict=True):
                sums.update(analog, twin, run(self.snn, "spiking", batch.inputs, sums.count), batch.labels)
            figures = sums.figures()
            for name in self.targets:
                if figures[name] is None:
                    raise InputError(f"{name}: expected labels in the data and an output (B, classes) to keep it, got "
                                     "none; choose by sqnr_db or agreement, or add labels")  # fmt: skip
            row = {"step": step, "layer": layer, "latency": settings(self.snn)["latency"], "lookahead": sum(delays)}
            row["kept"] = all(figures[name] >= value for name, value in self.targets.items())
            self.tried[delays] = {**row, **{name: figures[name] for name in SCORES}}
        return bool(self.tried[delays]["kept"])

    def _remove(self, start: int, order: Sequence[int]) -> Delays:
        """From one look-ahead for all, the least that each layer in turn can do with."""
        now = (start,) * len(self.names)
        for i in order:
            for less in range(start):
                trial = (*now[:i], less, *now[i + 1 :])
                if self._keeps(trial, f"from all {start}", self.names[i]):
                    now = trial
                    break
        return now

    def _cost(self, delays: Delays) -> tuple[float, float, float]:
        """What the best ending has least of: latency, look-ahead in all, and noise."""
        row = self.tried[delays]
        return row["latency"], row["lookahead"], -row["sqnr_db"]

    def _out_of_reach(self) -> str:
        best = {name: max(row[name] for row in self.tried.values()) for name in self.targets}
        wanted = ", ".join(f"{name} {value:g}" for name, value in self.targets.items())
        got = ", ".join(f"{name} {value:.4g}" for name, value in best.items())
        return (f"choose_delay: expected to keep {wanted}, but no look-ahead up to {self.largest} for all layers does "
                f"(best of each: {got}); ask for less, raise largest, or take more T")  # fmt: skip

    def _table(self) -> pd.DataFrame:
        rows = [{**row, **{f"delay {name}": d for name, d in zip(self.names, delays, strict=True)}}
                for delays, row in self.tried.items()]  # fmt: skip
        return pd.DataFrame(rows, columns=[*TRIED, *(f"delay {name}" for name in self.names)])


def _timing(tap: LayerRecord) -> tuple[float, float]:
    """Signal sum r^2 and noise sum (r - Q(z'))^2 of one pass; the second is 0 under constant drive."""
    if tap.static_output or tap.static_drive:
        return 0.0, 0.0
    neuron = tap.neuron
    steps = neuron.timesteps
    mean = mean_of(tap.steps().unbind(0))
    theta, start = (neuron.per_channel(x.detach(), mean.ndim) for x in (neuron.threshold, neuron.v_init))
    step = neuron.per_channel(neuron.amplitude.detach(), mean.ndim).to(torch.float64) / steps
    r = torch.round(mean / step) * step
    error = r - reached_counts(*tap.received(), theta, start, neuron) * step
    return float((r**2).sum()), float((error**2).sum())
