"""The ranks of changes: their standard errors, what a rank gains on other images, and measuring again."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
from torch.utils.data import Subset

from speedysnn.analysis import evaluate, measure_sensitivity
from speedysnn.analysis.sensitivity.branches import Score, expected_by_rank, gained
from speedysnn.analysis.sensitivity.measure import GAINS
from speedysnn.data import load
from speedysnn.errors import InputError


def test_the_standard_error_is_that_of_other_samples(build):
    """Gains measured on disjoint samples of 100 images scatter as each one's own standard error says."""
    snn, data = build("avg", 4), load("digits", "train")
    parts = [Subset(data, range(start, start + 100)) for start in range(0, 1200, 100)]
    tables = [measure_sensitivity(snn, part, modes=(), gains=("bit", "look-ahead")).gains for part in parts]
    joined = pd.concat(tables)
    joined = joined[joined["gain_se_db"] > 0]
    ratios = []
    for _, rows in joined.groupby(["layer", "change"]):
        assert len(rows) == len(parts)
        ratios.append(rows["gain_db"].std() / math.sqrt((rows["gain_se_db"] ** 2).mean()))
    assert len(ratios) == 9  # the first layer's input is constant: looking ahead changes nothing
    assert 0.75 < sum(ratios) / len(ratios) < 1.25


def test_the_expected_gain_of_the_best_rank_is_not_optimistic() -> None:
    """Sixty changes of known gain, images as noise: the measured best is too high, the expected one is not."""
    measured, expected, realised = [], [], []
    generator = np.random.default_rng(0)
    for _ in range(150):
        true = 10 ** (-generator.uniform(0, 0.3, 60) / 10)  # noise left by each change, of 1
        before, after = Score(), [Score() for _ in true]
        images = generator.gamma(1.0, 1.0, 80)
        before.each, before.noise = images.tolist(), float(images.sum())
        for score, left in zip(after, true, strict=True):
            own = images * left * generator.gamma(2.0, 0.5, 80)
            score.each, score.noise = own.tolist(), float(own.sum())
        best = min(range(60), key=lambda i: after[i].noise)
        measured.append(gained(before, after[best])[0])
        expected.append(expected_by_rank(before, after)[0])
        realised.append(-10 * np.log10(true[best]))
    error = np.std(np.array(expected) - realised) / np.sqrt(150)
    assert np.mean(measured) - np.mean(realised) > 0.5
    assert abs(np.mean(expected) - np.mean(realised)) < 3 * error + 0.02


def test_expected_gains_by_hand() -> None:
    """Two changes, four images, two folds: each fold is measured on what the other ranked."""
    before, first, second = Score(), Score(), Score()
    for score, each in ((before, [4.0, 4.0, 4.0, 4.0]), (first, [1.0, 3.0, 1.0, 3.0]), (second, [2.0, 2.0, 2.0, 2.5])):
        score.each, score.noise = each, sum(each)
    # without the even images the second is best (4.5 < 6), without the odd ones the first (2 < 4)
    best, rest = expected_by_rank(before, [first, second], folds=2)
    assert best == pytest.approx(10 * np.log10(16 / ((2 + 2) + (3 + 3))))
    assert rest == pytest.approx(10 * np.log10(16 / ((1 + 1) + (2 + 2.5))))
    assert np.isnan(expected_by_rank(before, [], folds=2) or [np.nan]).all()


def test_finalists_are_ranked_and_predicted_by_the_other_images_alone(build, digits) -> None:
    snn, (x, y) = build("avg"), digits
    first, second = (x[:30], y[:30]), (x[30:], y[30:])
    alone = measure_sensitivity(snn, first, modes=())
    found = measure_sensitivity(snn, first, modes=(), confirm=second, finalists=3)
    assert list(found.gains.columns) == list(GAINS)
    assert found.gains["images"].tolist() == [100] * 3 + [30] * (len(alone.gains) - 3)
    pd.testing.assert_frame_equal(found.gains[3:], alone.gains[3:])
    assert set(found.gains["call"][:3]) == set(alone.gains["call"][:3])
    assert found.gains["gain_db"][:3].is_monotonic_decreasing
    screened = alone.gains.set_index("call")["gain_db"]
    before = evaluate(snn, second).sqnr_db
    for row in found.gains[:3].itertuples():
        assert row.screened_db == screened[row.call] != row.gain_db
        changed = found.apply(copy.deepcopy(snn), row.layer, row.change)
        assert evaluate(changed, second).sqnr_db - before == pytest.approx(row.gain_db, abs=1e-3)
    for wrong in (0, 1.5, True):
        with pytest.raises(InputError, match="finalists"):
            measure_sensitivity(snn, first, confirm=second, finalists=wrong)
