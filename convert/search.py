"""search: the best setting of a network under constraints, measured on images that chose nothing of it.

Half of the images make histograms and corrections, the other half score. Every setting is first tried on few images;
those that others beat in agreement, latency and bits of spikes at once are left behind, and the rest goes on with more
images (successive halving). Around the best ones single layers get spikes of several levels, where that helps at the
output.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd
from torch import nn

from speedysnn.convert.candidates import (
    SCORES,
    Candidate,
    Limits,
    Row,
    Trials,
    calibrated_again,
    fit_batches,
    foremost,
    fronts,
    loss,
    rank,
)
from speedysnn.convert.correct import Sample, check_kind
from speedysnn.convert.spiking import to_spiking
from speedysnn.data.batches import inputs_of, iter_batches, steps_of
from speedysnn.display import block, plain, track
from speedysnn.errors import DataError, InputError
from speedysnn.kernels import parse_spikes
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Delay, check_steps
from speedysnn.settings import repeatable

LEAST_IMAGES = 8  # four that prepare, four that score
LEAST_SCORED = 16  # images that a round leaves settings behind by
SLACK = 1.1  # by which few images may exceed a limit on spikes
LAYERS_TRIED, MOST_LAYERS, BASES = 8, (1, 2, 4), 2
COLUMNS = ("timesteps", "delay", "spikes", "correct", "layers", "latency", *SCORES, "meets", "frontier", "best")
SHOWN = {"timesteps": "T", "delay": "delay", "spikes": "spikes", "correct": "correct", "latency": "latency",
         "agreement": "agree %", "kl": "KL", "error": "error", "spikes_per_neuron": "spikes/neuron",
         "bits_per_image": "bits/image", "synops_per_image": "synops/image", "images": "images",
         "layers": "layers"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What `search` found.

    Attributes:
        table: one row a setting, best first. Columns: timesteps, delay, spikes, correct, layers (those with spikes of
            their own); latency in steps; images it was scored on; agreement 0..1 and kl in nats, None without classes;
            error, the relative squared error of the outputs; spikes_per_neuron and spikes_per_image in events;
            bits_per_image, what the events take on a link, each the bits of its alphabet (`kernels.bits_per_spike`);
            synops_per_image, events times the mean fan-out of their layer; meets, whether it keeps the constraints;
            frontier, whether no other that does is at least as good in its answers (agreement, then kl),
            latency and bits an image, and better in one; best. A setting that was left behind was scored on fewer
            images than the others.
        best: the network of the row marked best, as it was scored.
        constraints: the limits that were given, by name.
        prepared_on: images that made histograms and corrections.
        scored_on: the other images, by which the best was chosen: its figures are a little too good for it.

    Example:
        >>> import torch
        >>> from speedysnn import convert
        >>> from speedysnn.assets.digits import load_digits_net
        >>> from speedysnn import data
        >>> images = data.load("digits", "train", limit=48)
        >>> found = convert.search(load_digits_net(), images, timesteps=2, delays=(0, 1), corrections="none", levels=())
        >>> len(found.table), found.best.timesteps
        (4, 2)
    """

    table: pd.DataFrame
    best: SpikingNetwork
    constraints: Mapping[str, float]
    prepared_on: int
    scored_on: int

    @property
    def frontier(self) -> pd.DataFrame:
        """The rows of the Pareto frontier, cheapest latency first."""
        return self.table[self.table["frontier"]].sort_values(["latency", "bits_per_image"], kind="stable")

    @property
    def title(self) -> str:
        """What was searched, in a sentence."""
        limits = ", ".join(f"{name} {value:g}" for name, value in self.constraints.items()) or "no limits"
        return (f"search: {len(self.table)} settings, prepared on {self.prepared_on} images and scored on "
                f"{self.scored_on} others; {limits}")  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Give the result without its network as strict JSON data.

        Returns:
            "constraints", "prepared_on", "scored_on" and "table", a list of rows.
        """
        rows = [{str(name): plain(value) for name, value in row.items()} for row in self.table.to_dict("records")]
        return {"constraints": dict(self.constraints), "prepared_on": self.prepared_on, "scored_on": self.scored_on,
                "table": rows}  # fmt: skip

    def marked(self) -> pd.DataFrame:
        """The table as text a cell: "*" marks the best, "+" the frontier; columns without content are left out."""
        table = self.table
        mark = table["best"].map({True: "*", False: " "}) + table["frontier"].map({True: "+", False: " "})
        shown = table[list(SHOWN)].rename(columns=SHOWN)
        shown["layers"] = [_short(text) for text in shown["layers"]]
        for name, style in (("agree %", "{:.1f}"), ("KL", "{:.3f}"), ("error", "{:.3f}"), ("spikes/neuron", "{:.2f}"),
                            ("bits/image", "{:.3g}"), ("synops/image", "{:.3g}")):  # fmt: skip
            scale = 100.0 if name == "agree %" else 1.0
            shown[name] = [style.format(scale * value) if pd.notna(value) else "" for value in shown[name]]
        shown.insert(0, "", mark)
        return shown.astype(str).loc[:, lambda frame: (frame != "").any()]

    def __str__(self) -> str:
        """The title, and below it what was scored on all images."""
        shown = self.marked()[(self.table["images"] == self.scored_on).to_numpy()]
        rest = len(self.table) - len(shown)
        foot = "* best, + frontier of agreement, latency and bits of spikes an image"
        left = f"; {rest} settings were left behind on fewer images" if rest else ""
        return f"{self.title}\n{shown.to_string(index=False)}\n{foot}{left}"

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return block("SearchResult", [self.title], self.table)


@repeatable
def search(
    network: nn.Module | SpikingNetwork,
    calibration: object,
    *,
    timesteps: int | Sequence[int] = (2, 4, 8),
    max_latency: int | None = None,
    spikes: str | Sequence[str] = ("binary", "ternary"),
    delays: Delay | Sequence[Delay] = (0, 1, 2),
    corrections: str | Sequence[str] = ("none", "bias", "moments"),
    levels: str | Sequence[str] = ("graded:2", "power2:3", "graded:4"),
    max_spikes_per_image: float | None = None,
    max_synops: float | None = None,
    images: int = 512,
    progress: bool = False,
) -> SearchResult:
    """Find the setting of a network that agrees best with its source within limits on latency, spikes and operations.

    Settings are all combinations of T, spike kind, look-ahead and correction. Of those within the limits the best has
    the highest agreement with the source, then the least KL divergence; without classes the least squared error. Every
    figure is measured on images that made neither thresholds nor corrections. The same call gives the same result.

    Args:
        network: a trained network, converted with the defaults of `to_spiking`; or a spiking network, of which a copy
            is taken: its rules of thresholds stay, its thresholds are chosen again, so that trained ones are lost.
        calibration: images as in `to_spiking`, static; the first ones are used, in any order of classes but not of
            difficulty or with one class in front.
        timesteps: T, one or several.
        max_latency: most steps from the first input to the last output.
        spikes: spike kinds for all layers, one or several.
        delays: look-aheads for all layers in steps, or "full"; one or several.
        corrections: kinds of `apply_correction`, or "none"; one or several.
        levels: spike kinds that single layers may get around the two best settings; the layers are ranked by what the
            last kind does in each alone; () for none.
        max_spikes_per_image: most spike events an image.
        max_synops: most synaptic operations an image: events times the mean fan-out of their layer.
        images: how many images to use at most, half of them to prepare and half to score.
        progress: show progress.

    Returns:
        The table of all settings, the frontier, and the best network.

    Raises:
        InputError: an option out of range, or limits that no setting keeps.
        ConversionError: the network cannot be converted.
        DataError: fewer than 8 images, events, NaN, or the wrong shape.

    Reference: jamieson2016

    Example:
        >>> from speedysnn import convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "train", limit=48)
        >>> found = convert.search(load_digits_net(), images, timesteps=(2, 4), max_latency=4, delays=0, levels=())
        >>> found.best.latency <= 4
        True
        >>> bool(found.table["agreement"].max() == found.table.iloc[0]["agreement"])
        True
    """
    limits = Limits(max_latency, max_spikes_per_image, max_synops)
    wanted = _several(timesteps), _several(spikes), _several(delays), _several(corrections)
    single = _several(levels)
    _check(wanted, single, images)
    trials = _trials(network, calibration, images)
    candidates = _within(trials, _space(*wanted), limits)
    run = _Search(trials, limits, progress)
    run.halve(candidates)
    run.require_feasible()
    if single:
        run.allocate(single)
    return run.result()


class _Search:
    """What was scored so far: by candidate the row of its last score, and those that were scored on all images."""

    def __init__(self, trials: Trials, limits: Limits, progress: bool) -> None:
        self.trials, self.limits, self.progress = trials, limits, progress
        self.rows: dict[Candidate, Row] = {}
        self.finished: list[Candidate] = []

    def halve(self, candidates: Sequence[Candidate]) -> None:
        """Score on a quarter, on half and on all of the images, and leave half of the settings behind each time."""
        left, held = list(candidates), self.trials.held[0].shape[0]
        rounds = (4, 2, 1) if len(left) > 12 else (2, 1) if len(left) > 4 else (1,)
        for stride in [x for x in rounds if x == 1 or held // x >= LEAST_SCORED]:
            self._score(left, stride)
            if stride == 1:
                self.finished = left
            else:
                cheap = [x for x in left if self.limits.kept_by(self.rows[x], SLACK)] or left
                left = foremost(cheap, self.rows, -(-len(left) // 2))

    def _score(self, candidates: Sequence[Candidate], stride: int) -> None:
        what = f"search: {len(candidates)} settings on {-(-self.trials.held[0].shape[0] // stride)} images"
        for candidate in track(candidates, what, enabled=self.progress, total=len(candidates)):
            latency = self.trials.latency(candidate)
            self.rows[candidate] = {**candidate.row(), "latency": latency, **self.trials.score(candidate, stride)}

    def feasible(self) -> list[Candidate]:
        """The settings scored on all images that keep the limits, best first."""
        kept = [x for x in self.finished if self.limits.kept_by(self.rows[x])]
        return sorted(kept, key=lambda x: rank(self.rows[x]))

    def require_feasible(self) -> None:
        """Refuse limits that no setting keeps.

        Raises:
            InputError: with the least that was measured.
        """
        if self.feasible():
            return
        least = {}
        for limit, column in (("max_spikes_per_image", "spikes_per_image"), ("max_synops", "synops_per_image")):
            if limit in self.limits.given():
                row = min(self.rows.values(), key=lambda row: row[column])
                least[limit] = f"{row[column]:.4g} (T={row['timesteps']}, delay {row['delay']}, {row['spikes']})"
        wanted = ", ".join(f"{name} {value:g}" for name, value in self.limits.given().items())
        got = ", ".join(f"least for {name} {text}" for name, text in least.items())
        raise InputError(f"search: expected a setting that keeps {wanted}, but none of {len(self.rows)} does ({got}); "
                         "raise the limit, or allow fewer timesteps")  # fmt: skip

    def allocate(self, levels: Sequence[str]) -> None:
        """Give single layers more levels, in the best settings of different T, look-ahead and spikes."""
        bases = dict[tuple[Any, ...], Candidate]()
        for candidate in self.feasible():
            bases.setdefault((candidate.timesteps, candidate.delay, candidate.spikes), candidate)
        for base in list(bases.values())[:BASES]:
            order = self._sensitive(base, levels[-1])
            chosen = {min(most, len(order)) for most in MOST_LAYERS} - {0}
            made = [replace(base, layers=tuple((name, kind) for name in order[:count]))
                    for kind in levels for count in sorted(chosen)]  # fmt: skip
            self._score(made, 1)
            self.finished = [*self.finished, *made]

    def _sensitive(self, base: Candidate, spikes: str) -> list[str]:
        """The layers of largest error whose exchange alone helps at the output, by how much it does."""
        trials, stride = self.trials, 2 if self.trials.held[0].shape[0] // 2 >= LEAST_SCORED else 1
        trials.prepare(base)
        errors = trials.layer_errors()
        tried = sorted(errors, key=lambda name: -errors[name])[:LAYERS_TRIED]
        before, gains = loss(trials.measured(stride)), dict[str, float]()
        for name in track(tried, "search: single layers", enabled=self.progress, total=len(tried)):
            gains[name] = before - loss(trials.with_layer(name, spikes, stride))
        return sorted((name for name in tried if gains[name] > 0), key=lambda name: -gains[name])

    def result(self) -> SearchResult:
        """Put together the table, and the best network, prepared again."""
        order = self.feasible()
        front = set(fronts(order, self.rows)[0])
        behind = [x for x in self.rows if x not in order]
        behind.sort(key=lambda x: (-self.rows[x]["images"], rank(self.rows[x])))
        rows = [
            {**row, "meets": self.limits.kept_by(row), "frontier": x in front, "best": x is order[0]}
            for x, row in ((x, self.rows[x]) for x in (*order, *behind))
        ]
        best = copy.deepcopy(self.trials.prepare(order[0]))
        counts = self.trials.fit[0].shape[0], self.trials.held[0].shape[0]
        table, given = pd.DataFrame(rows, columns=list(COLUMNS)), self.limits.given()
        found = {name: plain(value) for name, value in self.rows[order[0]].items()}
        best.provenance = {**best.provenance, "search": {**found, "tried": len(rows), "constraints": given,
                                                         "prepared_on": counts[0]}}  # fmt: skip
        return SearchResult(table, best, given, *counts)


def _short(layers: str) -> str:
    """A list of layers with spikes of their own in a few words."""
    parts = layers.split(", ") if layers else []
    return layers if len(parts) < 2 else f"{len(parts)} layers {parts[0].rpartition('=')[2]}"


def _several(value: Any) -> list[Any]:
    """One value or several, in their order and each once."""
    return list(dict.fromkeys(value if isinstance(value, Iterable) and not isinstance(value, str) else [value]))


def _check(wanted: tuple[list[Any], ...], levels: Sequence[str], images: int) -> None:
    """Refuse options before anything runs."""
    for name, values in zip(("timesteps", "spikes", "delays", "corrections"), wanted, strict=True):
        if not values:
            raise InputError(f"{name}: expected at least one value to try, got none")
    timesteps, spikes, delays, corrections = wanted
    for steps, delay in product(timesteps, delays):
        check_steps(steps, delay)
    for kind in (*spikes, *levels):
        parse_spikes(kind)
    for kind in corrections:
        check_kind(kind)
    if not isinstance(images, int) or images < LEAST_IMAGES:
        raise InputError(f"images: expected a whole number of at least {LEAST_IMAGES}, got {images!r}")


def _trials(network: nn.Module | SpikingNetwork, calibration: object, images: int) -> Trials:
    """Images drawn from all of the data, and the network that candidates are tried on."""
    if steps_of(calibration):
        raise DataError("search: expected static images, got events, whose steps fix T; choose the setting of a "
                        "network for events with speedysnn.analysis.evaluate")  # fmt: skip
    sample = Sample(images)
    count = len(network.input_shapes) if isinstance(network, SpikingNetwork) else inputs_of(network)
    for batch in iter_batches(calibration, inputs=count):
        sample.add(batch, [0] * len(batch.inputs))
    inputs = sample.inputs()
    if (count := inputs[0].shape[0]) < LEAST_IMAGES:
        raise DataError(f"search: expected at least {LEAST_IMAGES} images, half of them to score by, got {count}")
    if not isinstance(network, SpikingNetwork):
        snn = to_spiking(network, fit_batches(inputs), correct="none")
    elif network.calibration.histograms:
        snn = calibrated_again(copy.deepcopy(network), inputs)
    else:
        raise InputError("search: the network holds no histograms, so its thresholds were trained for one T; give the "
                         "source network, or one that to_spiking made")  # fmt: skip
    return Trials(snn, inputs)


def _space(
    timesteps: Iterable[int], spikes: Iterable[str], delays: Iterable[Delay], corrections: Iterable[str]
) -> list[Candidate]:
    """All combinations; of look-aheads that are the same at a T the first."""
    found = dict[tuple[Any, ...], Candidate]()
    for steps, delay, kind, correct in product(timesteps, delays, spikes, corrections):
        seen = steps if delay == "full" else min(delay, steps)
        found.setdefault((steps, seen, kind, correct), Candidate(steps, delay, kind, correct))
    return list(found.values())


def _within(trials: Trials, candidates: Sequence[Candidate], limits: Limits) -> list[Candidate]:
    """The candidates within the limit on latency, which is known without a run.

    Raises:
        InputError: there are none.
    """
    latencies = {candidate: trials.latency(candidate) for candidate in candidates}
    most = limits.max_latency
    kept = [candidate for candidate, latency in latencies.items() if most is None or latency <= most]
    if not kept:
        least = min(latencies, key=lambda candidate: latencies[candidate])
        raise InputError(f"search: expected a setting with a latency of at most {most} steps, but the least is "
                         f"{latencies[least]} (T={least.timesteps}, delay {least.delay}); raise max_latency, or allow "
                         "fewer timesteps or delay 0")  # fmt: skip
    return kept
