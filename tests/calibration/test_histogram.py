"""Calibration: the same counts for any order and split, bounded memory, and the thresholds theory predicts."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speedysnn.calibration import histogram as collecting
from speedysnn.calibration.distributions import least_squares, squared_error
from speedysnn.calibration.histogram import BINS, ActivationHistogram, HistogramCollector
from speedysnn.calibration.rules import choose, predicted_rate
from speedysnn.errors import ConversionError, DataError, InputError

HALF = torch.tensor([0.5])


def histogram(values: torch.Tensor, sizes: list[int]) -> ActivationHistogram:
    out = ActivationHistogram(values.shape[0])
    for part in values.split(sizes, 1):
        out.update(part)
    return out


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-4, 1e4))
def test_order_and_split_do_not_matter(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 200, generator=generator) * scale * torch.tensor([[1.0], [50.0], [0.0]])
    whole = histogram(values, [200])
    shuffled = histogram(values[:, torch.randperm(200, generator=generator)], [1, 7, 64, 128])
    for name, value in whole.state().items():
        assert torch.equal(value, shuffled.state()[name]), name
    assert whole.total.tolist() == [200] * 3


@given(
    seed=st.integers(0, 10**6), scale=st.floats(1e-4, 1e4), signed=st.booleans(), dim=st.sampled_from([None, 1, 3]),
    layout=st.sampled_from(["first", "last", "strided"]),
)  # fmt: skip
def test_counting_in_place_equals_counting_rows(seed: int, scale: float, signed: bool, dim: int, layout: str) -> None:
    x = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(seed)) * scale
    x[:, 0], x[:, 1] = -x[:, 0].abs(), x[:, 1] * 1e-9  # a silent channel, and one far below the others
    x = {"first": x, "last": x.contiguous(memory_format=torch.channels_last), "strided": x[:, :, ::2]}[layout]
    channels = 1 if dim is None else x.shape[dim]
    ours, rows = HistogramCollector(signed), ActivationHistogram(channels * (2 if signed else 1))
    values = x.reshape(1, -1) if dim is None else x.movedim(dim, 0).flatten(1)
    together = torch.cat([values, -values]) if signed else values
    parts = ActivationHistogram(rows.channels)
    for half, piece in zip((x[:2], x[2:] * 3), (together.chunk(2, 1)[0], together.chunk(2, 1)[1] * 3), strict=True):
        ours.add(half, dim)
        rows.update(piece)
        one = ActivationHistogram(rows.channels)
        one.update(piece)
        parts = parts.plus(one)
    for name, value in rows.state().items():
        assert torch.equal(ours.histogram().state()[name], value), name
        assert torch.equal(parts.state()[name], value), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x = torch.rand(2, 3, 4)
    x[1, 2, 3] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        HistogramCollector().add(x, 1)


@given(
    seed=st.integers(0, 10**6), scales=st.lists(st.floats(-6, 6), min_size=2, max_size=8), signed=st.booleans(),
    threads=st.integers(1, 4), full=st.sampled_from([2**31 - 1, 500, 100]), kept=st.sampled_from([0, 4]),
)  # fmt: skip
def test_counts_depend_on_nothing_but_the_values(
    seed: int, scales: list[float], signed: bool, threads: int, full: int, kept: int
) -> None:
    """Whatever comes first, from however many threads, and however soon a table is given up."""
    generator = torch.Generator().manual_seed(seed)
    pieces = [torch.randn(3, 5, 4, generator=generator) * 10**scale for scale in scales]
    for piece in pieces[::2]:
        piece[:, 1] = -piece[:, 1].abs()  # a channel that is silent at first
    together = torch.cat([piece.movedim(1, 0).flatten(1) for piece in pieces], 1)
    whole, layer = ActivationHistogram(5 * (1 + signed)), HistogramCollector(signed)
    whole.update(torch.cat([together, -together]) if signed else together)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(threads) as pool:
        patch.setattr(collecting, "FULL", full)
        patch.setattr(collecting, "REUSE", kept)
        list(pool.map(lambda piece: layer.add(piece, 1), pieces))
    for name, value in whole.state().items():
        assert torch.equal(layer.histogram().state()[name], value), name


def test_twenty_million_values_in_bounded_memory() -> None:
    hist = ActivationHistogram(1)
    values = torch.rand(1, 2_000_000)
    for _ in range(10):
        hist.update(values)
    assert int(hist.total) == 20_000_000
    assert sum(value.numel() for value in hist.state().values()) == BINS + 3


def test_percentile_and_merge_equal_numpy() -> None:
    values = torch.randn(4, 50_000).abs() * torch.tensor([[0.1], [1.0], [5.0], [2.0]])
    hist = histogram(values, [50_000])
    for q in (50.0, 90.0, 99.9):
        expected = np.percentile(values.numpy(), q, axis=1)
        np.testing.assert_allclose(hist.percentile(q).numpy(), expected, rtol=0.03)
    merged = histogram(values.reshape(1, -1), [200_000])
    for name, value in hist.merged().state().items():
        assert torch.equal(value, merged.state()[name]), name


LAWS = {
    "uniform": (torch.rand, {1: 0.667, 4: 0.889, 16: 0.970}, {1: 0.500, 4: 0.800, 16: 0.941}),
    "half-normal": (lambda *s: torch.randn(*s).abs(), {1: 1.22, 4: 2.14, 16: 2.93}, {1: 0.88, 4: 1.73, 16: 2.57}),
    "exponential": (lambda *s: torch.empty(*s).exponential_(), {1: 2.00, 4: 3.93, 16: 6.21}, {1: 1.41, 4: 3.05, 16: 5.13}),
}


@pytest.mark.parametrize("law", LAWS)
def test_least_squares_finds_the_optimal_threshold_of_theory(law: str) -> None:
    draw, rounded, floored = LAWS[law]
    hist = histogram(draw(1, 400_000), [400_000])
    for v_init, table in ((0.5, rounded), (0.0, floored)):
        for steps, expected in table.items():
            found = least_squares(hist, torch.tensor([v_init]), steps)
            assert found.item() == pytest.approx(expected, rel=0.025), (v_init, steps)


def test_squared_error_equals_brute_force() -> None:
    values = torch.rand(1, 200_000) * 3
    hist = histogram(values, [200_000])
    for v_init, steps, theta, highest in ((0.5, 4, 1.7, 1), (0.0, 8, 2.5, 1), (0.3, 2, 0.8, 3)):
        n = torch.floor(values * steps / theta + v_init).clamp(0, steps * highest)
        expected = (n * theta / steps - values).double().square().sum().item()
        got = squared_error(hist, torch.tensor([[theta]]), torch.tensor([v_init]), steps, highest).item()
        assert got == pytest.approx(expected, rel=0.01)


def test_rules_and_dead_channels() -> None:
    values = torch.stack([torch.rand(1000), torch.zeros(1000), torch.rand(1000) * 4])
    hist = histogram(values, [1000])
    assert torch.equal(choose(hist, "max", HALF, 4), hist.maximum[[0, 2, 2]])
    assert (choose(hist, "percentile:90", HALF, 4) < hist.maximum[[0, 2, 2]]).all()
    for rule in ("mean", "percentile:0", "percentile:x", "mse:1"):
        with pytest.raises(InputError, match="threshold rule"):
            choose(hist, rule, HALF, 4)
    with pytest.raises(ConversionError, match="layer 'x'.*no activation was positive"):
        choose(histogram(torch.zeros(2, 10), [10]), "mse", HALF, 4, layer="x")
    with pytest.raises(DataError, match="NaN"):
        histogram(torch.tensor([[1.0, float("nan")]]), [2])


def test_predicted_rate() -> None:
    values = torch.rand(1, 100_000)
    hist = histogram(values, [100_000])
    expected = (torch.floor(values * 4 / 0.8 + 0.5).clamp(0, 4) / 4).mean().item()
    assert predicted_rate(hist, torch.tensor(0.8), torch.tensor(0.5), 4) == pytest.approx(expected, rel=0.02)
