"""Values that are not zero, counted compiled or by torch: the same number, however they lie in memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speedysnn.kernels import numba_backend as module
from speedysnn.kernels.layout import dense
from speedysnn.kernels.numba_backend import density, nonzero

SIZES = st.integers(0, 5)


@given(st.tuples(SIZES, SIZES, SIZES, SIZES), st.integers(0, 2**16), st.floats(0, 1))
def test_it_counts_what_torch_counts(shape: tuple[int, ...], seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < share)
    for given_ in (x, -x.to(memory_format=torch.channels_last), x[::2], x[:, 1:], x.transpose(0, 1), x.double()):
        assert nonzero(given_) == int(torch.count_nonzero(given_))


@given(st.integers(0, 40), st.tuples(SIZES, SIZES, SIZES), st.integers(0, 2**16), st.floats(0, 1))
def test_a_few_pictures_are_counted_as_torch_does(pictures: int, shape: tuple[int, ...], seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((pictures, *shape), generator=generator) * (torch.rand((pictures, *shape), generator=generator) < share)
    for given_ in (x, x.to(memory_format=torch.channels_last), x[::2], x[:, 1:], x.double()):
        some = given_[:: max(1, len(given_) // 8)]
        assert density(given_) == int(torch.count_nonzero(some)) / max(1, some.numel())


def test_special_values_count_as_torch_has_it() -> None:
    x = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45, -1.0])
    assert nonzero(x) == int(torch.count_nonzero(x)) == 4


def test_blocks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(3 * 2**20 + 5)
    x[::3] = 0
    assert nonzero(x) == int(torch.count_nonzero(x))
    monkeypatch.setattr(module, "AVAILABLE", False)
    assert nonzero(x) == int(torch.count_nonzero(x))


@pytest.mark.parametrize(
    ("x", "fills"),
    [
        (torch.zeros(2, 3, 4, 4), True),
        (torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last), True),
        (torch.zeros(2, 3).t(), True),
        (torch.zeros(4, 3)[::2], False),
        (torch.zeros(4, 3)[:, 1:], False),
        (torch.zeros(1, 3).expand(4, 3), False),
    ],
)
def test_dense_in_memory(x: torch.Tensor, fills: bool) -> None:
    assert dense(x) is fills
