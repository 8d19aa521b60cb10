"""Several threads read networks at once: each gets what one alone gets, and torch's thread count stays as it was."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from speedysnn import convert
from speedysnn.execution import scheduling
from speedysnn.execution.scheduling import single_threaded


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _networks():
    torch.manual_seed(0)
    found = []
    for width in (16, 32):
        layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        ann = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()
        x = torch.rand(12, 3, 16, 16)
        snn = convert.to_spiking(ann, x, timesteps=4)
        snn.images_per_pass = 2
        found.append((snn, x))
    return found


def test_eight_threads_and_two_networks_read_what_one_does(two_threads, monkeypatch) -> None:
    networks = _networks()
    with torch.no_grad():
        alone = [[snn.read(reading, x) for reading in ("spiking", "quantized")] for snn, x in networks]
    counts, start = [], threading.Barrier(8)

    def work(i: int) -> list[tuple[bool, int]]:
        start.wait()
        out = []
        for round_ in range(6):
            which, how = (i + round_) % 2, (i // 2 + round_) % 2
            snn, x = networks[which]
            with torch.no_grad():
                got = snn.read(("spiking", "quantized")[how], x)
            if round_ == i % 6:
                with pytest.raises(ValueError, match="no"):
                    scheduling.run([_fail, _fail, lambda: 1], parallel=True)
            out.append((torch.equal(got, alone[which][how]), torch.get_num_threads()))
        return out

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(work, range(8)):
            counts += found
    assert counts == [(True, 2)] * 48
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def _fail() -> None:
    raise ValueError("no")


def test_a_thread_that_begins_meanwhile_has_torchs_own_count(two_threads) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="no"):
        _alone(pool)
    assert torch.get_num_threads() == 2


def _alone(pool) -> None:
    with single_threaded():
        assert torch.get_num_threads() == 1
        assert pool.submit(torch.get_num_threads).result() == 2
        _fail()
