"""`compare_outputs` against numpy, in one pass and in several, and what counts as worse."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from speedysnn.torch_utils import compare_outputs, worse


def logits(seed: int) -> Tensor:
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1] * 7])
def test_scores_against_numpy(sizes: list[int]) -> None:
    ours, source = logits(1), logits(2)
    a, b = ours.double().numpy(), source.double().numpy()
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (b, a))
    got = compare_outputs([[x] for x in ours.split(sizes)], [[x] for x in source.split(sizes)])
    assert got["agreement"] == (a.argmax(1) == b.argmax(1)).mean()
    assert got["kl"] == pytest.approx((p * np.log(p / q)).sum(1).mean())
    assert got["error"] == pytest.approx(((a - b) ** 2).sum() / (b**2).sum())


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3, 2)])
def test_without_classes_only_the_error_is_known(shape: tuple[int, ...]) -> None:
    ours, source = torch.rand(shape), torch.rand(shape)
    error = float((ours - source).square().sum() / source.square().sum())
    assert compare_outputs([[ours]], [[source]]) == {"agreement": None, "kl": None, "error": pytest.approx(error)}


def test_several_outputs_are_no_classes_and_share_one_error() -> None:
    a, b = logits(1), logits(2)
    found = compare_outputs([[a, a]], [[b, a]])
    assert found["agreement"] is None
    assert found["error"] == pytest.approx(float((a - b).square().sum() / (b.square().sum() + a.square().sum())))


def test_agreement_decides_and_the_error_where_there_is_none() -> None:
    some, more = {"agreement": 0.5, "error": 1.0}, {"agreement": 0.6, "error": 2.0}
    assert worse(more, some)
    assert not worse(some, more)
    assert not worse(some, some)
    low, high, none = ({"agreement": None, "error": error} for error in (1.0, 2.0, math.nan))
    assert worse(low, high)
    assert not worse(high, low)
    assert not worse(low, low)
    assert worse(low, none)
