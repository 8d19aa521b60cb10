"""Sums of one reading's outputs against the analog reading's, and what one has gained over another."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from speedysnn.analysis.outputs import classes, flat
from speedysnn.analysis.theory import decibels


class Score:
    """Sums of one mixed reading's outputs against the analog reading's; `each` holds every image's own noise."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.each: list[float] = []
        self.classified = self.agreed = self.labelled = self.correct = 0

    def update(self, analog: Any, out: Any, labels: Tensor | None) -> None:
        """Add the outputs of one pass."""
        reference, chosen, answer = flat(analog), classes(analog), classes(out)
        self.add(reference, flat(out))
        if chosen is None or answer is None:
            return
        self.classified += len(answer)
        self.agreed += int((answer == chosen).sum())
        if labels is not None:
            self.labelled += len(answer)
            self.correct += int((answer == labels).sum())

    def add(self, reference: Tensor, values: Tensor) -> None:
        """Add the powers of a layer's or an output's values, both of one shape."""
        own = reference.double()
        self.signal += float((own * own).sum())
        each = (values.double() - own).square().flatten(1).sum(1)
        self.noise += float(each.sum())
        self.each += each.tolist()

    def merge(self, other: "Score") -> None:
        """Add what another pass over other images has summed."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def figures(self) -> dict[str, float | None]:
        """sqnr_db = 10 log10(sum y^2 / sum (y' - y)^2), agreement and accuracy; None where not measured."""
        return {
            "sqnr_db": decibels(self.signal, self.noise),
            "agreement": self.agreed / self.classified if self.classified else None,
            "accuracy": self.correct / self.labelled if self.labelled else None,
        }


def gained(before: Score, after: Score) -> tuple[float, float]:
    """Decibels gained by a change on the same images, 10 log10(B / A), and their standard error.

    With b_i and a_i the noise of image i and B, A their sums, the delta method gives the variance of the logarithm as
    n/(n-1) sum (b_i/B - a_i/A)^2. No noise on both sides is no gain; what is undefined is NaN.
    """
    if before.noise == 0:
        return (-math.inf if after.noise > 0 else after.noise), math.nan
    if not after.noise > 0:
        return decibels(before.noise, after.noise), math.nan
    images = len(before.each)
    spread = sum((b / before.noise - a / after.noise) ** 2 for b, a in zip(before.each, after.each, strict=True))
    error = math.sqrt(images / (images - 1) * spread) if images > 1 else math.nan
    return decibels(before.noise, after.noise), 10 / math.log(10) * error


def expected_by_rank(before: Score, after: Sequence[Score], folds: int = 5) -> list[float]:
    """Decibels that the change at each rank gains on images that did not rank it, best first.

    The measured gain of the best of many changes is too high, since chance helped to choose it. Here changes are ranked
    on all folds but one and measured on that one, for each fold in turn; with c(r, f) the change of rank r without fold
    f, the figure is 10 log10(sum b / sum_f sum_{i in f} a_i[c(r, f)]). Image i belongs to fold i mod `folds`. NaN with
    fewer than two images.
    """
    noise = np.array([score.each for score in after], dtype=np.float64)
    images = len(before.each)
    parts = min(folds, images)
    if parts < 2 or noise.size == 0:
        return [math.nan] * len(after)
    fold = np.arange(images) % parts
    reached = np.zeros(len(after))
    for part in range(parts):
        order = np.argsort(np.nan_to_num(noise[:, fold != part].sum(1), nan=np.inf), kind="stable")
        reached += noise[order][:, fold == part].sum(1)
    return [decibels(before.noise, float(value)) for value in reached]
