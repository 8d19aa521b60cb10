"""measure_sensitivity: what each layer costs at the output, and what changing that layer alone would gain there.

The images are read several times: to find the changes, to measure every mode and change, and, where other images are
given, to measure the best changes again on images that did not choose them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch

from speedysnn.analysis.memory import check
from speedysnn.analysis.output_metrics import OutputSums, settings
from speedysnn.analysis.sensitivity import map_pieces
from speedysnn.analysis.sensitivity.branches import Key, Score, expected_by_rank, gained, measured
from speedysnn.analysis.sensitivity.changes import CHANGES, Change, changes_of
from speedysnn.analysis.sensitivity.memory import SensitivityMemory, images_again, kept_images
from speedysnn.analysis.sensitivity.result import MODES, Sensitivity
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork
from speedysnn.settings import repeatable

GAINS = ("rank", "layer", "change", "gain_db", "gain_se_db", "expected_db", "twin_gain_db", "sqnr_db", "agreement",
         "accuracy", "images", "screened_db", "call")  # fmt: skip
AT_LAYER = ("local", "cumulative")
TABLE = ("layer", "mode", "at", "sqnr_db", "agreement", "accuracy")
Row = dict[str, Any]


class ScoreSums:
    """Adds up the scores of all pieces in their order, so that figures do not depend on which piece was done first."""

    def __init__(self) -> None:
        self.scores: dict[Key, Score] = {}

    def add(self, scores: Mapping[Key, Score]) -> None:
        """Add the scores of one piece of the images."""
        for key, score in scores.items():
            self.scores.setdefault(key, Score()).merge(score)


def confirmed(
    snn: SpikingNetwork, data: Any, changes: Sequence[Change], rows: Sequence[Row], finalists: int, progress: bool,
    memory: SensitivityMemory,
) -> tuple[list[Row], SensitivityMemory]:  # fmt: skip
    """Measure the first `finalists` again on other images, and rank and predict them by those images alone.

    The gain of the best of many changes is too high on the images that chose it (the winner's curse). These images
    choose among a few changes only, whose expected gain `expected_by_rank` finds without that bias.
    """
    by_name = {(change.layer, change.kind): change for change in changes}
    best = [by_name[row["layer"], row["change"]] for row in rows[:finalists] if math.isfinite(row["gain_db"])]
    memory, pieces = images_again(snn, data, memory)
    sums = ScoreSums()
    call = partial(measured, snn, (), best, tight=memory.tight)
    for found in map_pieces(snn, pieces, call, "measuring again", progress, memory.at_once):
        sums.add(found.scores)
    screened = {(row["layer"], row["change"]): row["gain_db"] for row in rows}
    again = [{**row, "screened_db": screened[row["layer"], row["change"]]} for row in ranked(best, sums.scores)]
    return [*again, *rows[len(best) :]], memory


def ranked(changes: Sequence[Change], sums: Mapping[Key, Score]) -> list[Row]:
    """Order the changes by what the spiking output gains, undefined gains last."""
    rows: list[Row] = []
    for change in changes:
        after, twin = sums[change.kind, change.layer], sums[f"twin {change.kind}", change.layer]
        gain, error = gained(sums["spiking", ""], after)
        rows.append({
            "layer": change.layer, "change": change.kind, "gain_db": gain, "gain_se_db": error,
            "twin_gain_db": gained(sums["quantized", ""], twin)[0], **after.figures(), "images": len(after.each),
            "screened_db": gain, "call": f"sensitivity.apply(snn, {change.layer!r}, {change.kind!r})",
        })  # fmt: skip
    rows.sort(key=lambda row: math.inf if math.isnan(row["gain_db"]) else -row["gain_db"])
    expected = expected_by_rank(sums["spiking", ""], [sums[change.kind, change.layer] for change in changes])
    return [{**row, "expected_db": value} for row, value in zip(rows, expected, strict=True)]


def modes_table(modes: Sequence[str], layers: Sequence[str], scores: Mapping[Key, Score]) -> pd.DataFrame:
    """Make the table `Sensitivity.table`."""
    rows = [
        {"layer": name, "mode": mode, "at": "layer" if mode in AT_LAYER else "output", **scores[mode, name].figures()}
        for mode in modes
        for name in layers
    ]
    return pd.DataFrame(rows, columns=list(TABLE))


def ranking_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Make the table `Sensitivity.gains`."""
    return pd.DataFrame([{"rank": i, **row} for i, row in enumerate(rows, 1)], columns=list(GAINS))


def check_finalists(finalists: int) -> None:
    """Refuse what is not a number of changes.

    Raises:
        InputError: it is no whole number of at least 1.
    """
    if not isinstance(finalists, int) or isinstance(finalists, bool) or finalists < 1:
        raise InputError(f"finalists: expected a whole number of at least 1, got {finalists!r}")


@repeatable
def measure_sensitivity(
    snn: SpikingNetwork,
    data: Any,
    *,
    modes: Sequence[str] = ("isolated", "prefix", "leave_one_out"),
    gains: bool | Sequence[str] = True,
    confirm: Any = None,
    finalists: int = 8,
    limit: int | None = None,
    progress: bool = False,
    memory_mib: float | None = None,
    seed: int = 0,
) -> Sensitivity:
    """Measure every layer's part in the output's noise, and what changing that layer alone would gain there.

    Everything is compared with the network's own analog reading. "isolated" noises add up to the quantized reading's
    and see no timing error, since each layer then gets a constant current; "prefix" and "leave_one_out" do see it. With
    L layers "isolated" and "prefix" cost about L/2 passes of the source each, "leave_one_out" and each kind of change
    L/2 spiking passes: a pass is shared up to the layer. No figure depends on how the data is batched.

    Args:
        snn: the network, at its present T, thresholds and look-ahead; copies are changed, never the network.
        data: as in `measure_noise`; labels give accuracies. The images are kept in memory, within the limit.
        modes: of `MODES`.
        gains: measure the changes too, all of `speedysnn.analysis.sensitivity.changes.CHANGES` or some of them.
        confirm: other images, on which the best changes are measured again: they alone then rank and predict those,
            without the optimism of having been chosen among many. Each costs about a spiking pass.
        finalists: how many changes are measured again.
        limit: stop after this many images.
        progress: show progress.
        memory_mib: what kept images, passes and scores may take beside the weights, MiB; predicted from the first
            image, stated in `Sensitivity.memory`. None for 1024 or, for a large network, twice what passes of 8 images
            take, up to a quarter of the machine's memory. Where it is short passes take fewer images, then images are
            sampled.
        seed: of that sample.

    Returns:
        Tables by layer and mode and by layer and change, the output's figures, and the changes themselves.

    Raises:
        InputError: an option out of range, another mode, or a limit too small for a few images.
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4)
        >>> found = analysis.measure_sensitivity(snn, images)
        >>> found.table["mode"].unique().tolist()
        ['isolated', 'prefix', 'leave_one_out']
        >>> best = found.gains.iloc[0]
        >>> bool(best["gain_db"] > 1)
        True
        >>> changed = found.apply(snn)  # carries out the best change
        >>> changed.provenance["changed"][0]["layer"] == best["layer"]
        True
    """
    wanted, kinds = _chosen("modes", modes, MODES), _chosen("gains", CHANGES if gains is True else gains or (), CHANGES)
    if not wanted and not kinds:
        raise InputError(f"modes: expected some of {', '.join(MODES)}, or gains, got neither")
    check_finalists(finalists)
    check(memory_mib, seed)
    with torch.no_grad():
        memory, pieces = kept_images(snn, data, wanted, kinds, memory_mib, seed, limit)
        changes = changes_of(snn, pieces, kinds, progress, memory.at_once) if kinds else []
        outputs, sums = OutputSums(), ScoreSums()
        call = partial(measured, snn, wanted, changes, tight=memory.tight)
        for found in map_pieces(snn, pieces, call, "measuring sensitivity", progress, memory.at_once):
            outputs.merge(found.spikes)
            outputs.update(*found.outputs, found.labels)
            sums.add(found.scores)
        del pieces
        best: list[Row] = ranked(changes, sums.scores)
        if confirm is not None and best:
            best, memory = confirmed(snn, confirm, changes, best, finalists, progress, memory)
    figures = {"reference": "analog reading of the network itself", **settings(snn), **outputs.figures()}
    table = modes_table(wanted, list(snn.neurons), sums.scores)
    return Sensitivity(table, ranking_table(best), figures, {(c.layer, c.kind): c for c in changes}, memory=memory)


def _chosen(option: str, given: str | Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Check the chosen words, and give them in the order of `known`."""
    chosen = (given,) if isinstance(given, str) else tuple(given)
    odd = [word for word in chosen if word not in known]
    if odd:
        raise InputError(f"{option}: expected some of {', '.join(known)}, got {odd[0]!r}")
    return tuple(word for word in known if word in chosen)
