"""Changes ranked by what they gain, and the best of them measured again on images that did not choose them."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from speedysnn.analysis.branches import Key, measured
from speedysnn.analysis.change import Change
from speedysnn.analysis.kept import images_again
from speedysnn.analysis.mixed import over
from speedysnn.analysis.score import Score, expected_by_rank, gained
from speedysnn.analysis.sensitivity_memory import SensitivityMemory
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork

GAINS = ("rank", "layer", "change", "gain_db", "gain_se_db", "expected_db", "twin_gain_db", "sqnr_db", "agreement",
         "accuracy", "images", "screened_db", "call")  # fmt: skip
Row = dict[str, Any]


class Sums:
    """The scores of all pieces, added up in their order."""

    def __init__(self) -> None:
        self.scores: dict[Key, Score] = {}

    def add(self, scores: Mapping[Key, Score]) -> None:
        """Add a piece's."""
        for key, score in scores.items():
            self.scores.setdefault(key, Score()).merge(score)


def confirmed(
    snn: SpikingNetwork, data: Any, changes: Sequence[Change], rows: Sequence[Row], finalists: int, progress: bool,
    memory: SensitivityMemory,
) -> tuple[list[Row], SensitivityMemory]:  # fmt: skip
    """Rows in which the first `finalists` are measured again on other images, ranked and predicted by those alone.

    The gain of the best of many changes is too high on the images that chose it (the winner's curse). These images
    choose among a few changes only, whose expected gain `expected_by_rank` finds without that bias.
    """
    by_name = {(change.layer, change.kind): change for change in changes}
    best = [by_name[row["layer"], row["change"]] for row in rows[:finalists] if math.isfinite(row["gain_db"])]
    memory, pieces = images_again(snn, data, memory)
    sums = Sums()
    call = partial(measured, snn, (), best, tight=memory.tight)
    for found in over(snn, pieces, call, "measuring again", progress, memory.at_once):
        sums.add(found.scores)
    screened = {(row["layer"], row["change"]): row["gain_db"] for row in rows}
    again = [{**row, "screened_db": screened[row["layer"], row["change"]]} for row in ranked(best, sums.scores)]
    return [*again, *rows[len(best) :]], memory


def ranked(changes: Sequence[Change], sums: Mapping[Key, Score]) -> list[Row]:
    """The changes by what they gain in spikes, undefined ones last."""
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


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """`Sensitivity.gains`."""
    return pd.DataFrame([{"rank": i, **row} for i, row in enumerate(rows, 1)], columns=list(GAINS))


def check_finalists(finalists: int) -> None:
    """Refuse what is no number of changes.

    Raises:
        InputError: it is not.
    """
    if not isinstance(finalists, int) or isinstance(finalists, bool) or finalists < 1:
        raise InputError(f"finalists: expected a whole number of at least 1, got {finalists!r}")
