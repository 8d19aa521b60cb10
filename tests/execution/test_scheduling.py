"""How batches are cut, and what runs them."""

import threading
import time
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speedysnn import convert
from speedysnn.execution import scheduling


@given(st.integers(0, 3000), st.integers(1, 100), st.integers(1, 8))
def test_passes_hold_every_image_once_and_are_alike(images: int, size: int, parts: int) -> None:
    sizes = scheduling.cut(images, size, parts)
    assert sum(sizes) == images
    assert max(sizes) <= max(size, images if images <= size else size)
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == 1 or len(sizes) % parts == 0 or len(sizes) == images


def test_wide_layers_and_many_steps_make_small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(scheduling.VARIABLE, raising=False)
    monkeypatch.setattr(scheduling, "cache_bytes", lambda: 2**25)
    cpu = torch.device("cpu")
    sizes = [scheduling.images_per_pass(width, 8, cpu) for width in (100, 10_000, 10_000_000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert scheduling.images_per_pass(100, 10**6, cpu) == 1
    assert scheduling.images_per_pass(100_000, 1, cpu, item=2) > scheduling.images_per_pass(100_000, 1, cpu)
    assert scheduling.images_per_pass(100_000, 8, cpu, weights=2**27) == 2**28 // (16 * 100_000) // 8
    assert scheduling.images_per_pass(10_000, 8, torch.device("cuda")) > sizes[1]
    monkeypatch.setenv(scheduling.VARIABLE, "5")
    assert scheduling.images_per_pass(10_000_000, 8, cpu) == 5


def test_multiplications_are_counted_as_a_layer_does_them() -> None:
    convolutions = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1, bias=False), nn.ReLU()
    ann = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 10))
    snn = convert.to_spiking(ann.eval(), torch.rand(4, 3, 8, 8), timesteps=2)
    assert snn.multiplications == 64 * 8 * 27 + 16 * 4 * 72 + 640


def test_errors_in_a_pass_come_out_and_the_threads_are_as_before() -> None:
    def fail() -> None:
        raise ValueError("no")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="no"):
            scheduling.run([fail, fail, fail], parallel=True)
        assert torch.get_num_threads() == 2
        nested = scheduling.run([lambda: scheduling.run([lambda: 1, lambda: 2], parallel=True)] * 2, parallel=True)
        assert nested == [[1, 2], [1, 2]]
    finally:
        torch.set_num_threads(before)


def test_calls_are_shared_with_this_thread_and_none_begins_after_a_fault() -> None:
    seen: list[int] = []

    def call(i: int) -> int:
        seen.append(threading.get_ident())
        time.sleep(0.002)
        if i == fault:
            raise ValueError("no")
        return i

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fault = -1
        assert scheduling.run([partial(call, i) for i in range(40)], parallel=True) == list(range(40))
        assert len(seen) == 40
        assert len(set(seen)) == 2
        assert threading.get_ident() in seen
        seen.clear()
        fault = 3
        with pytest.raises(ValueError, match="no"):
            scheduling.run([partial(call, i) for i in range(40)], parallel=True)
        assert len(seen) < 40
    finally:
        torch.set_num_threads(before)
