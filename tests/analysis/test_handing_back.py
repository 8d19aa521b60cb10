"""Freed memory leaves the process, whatever holes it left; only where a limit binds."""

import ctypes
from pathlib import Path

import pytest
import torch

from speedysnn import torch_utils
from speedysnn.analysis import measure_noise, measure_sensitivity
from speedysnn.analysis.noise import passes

STATUS = Path("/proc/self/status")


def resident() -> float:
    """MiB."""
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(torch_utils.glibc() is None or not STATUS.exists(), reason="needs glibc and /proc")
def test_holes_are_handed_back_where_the_program_says_so(monkeypatch) -> None:
    libc = torch_utils.glibc()
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    blocks = [libc.malloc(50_000) for _ in range(1200)]
    for block in blocks:
        ctypes.memset(block, 1, 50_000)
    for block in blocks[:-1]:
        libc.free(block)
    before = resident()
    torch_utils.hand_back()  # in a process of the user's own nothing is installed
    assert before - resident() < 5
    monkeypatch.setattr(torch_utils, "_release", None)
    torch_utils.install(torch_utils.malloc_trim)
    torch_utils.hand_back()
    freed = before - resident()
    libc.free(blocks[-1])
    assert freed > 25


def test_only_where_the_limit_binds(build, digits, monkeypatch) -> None:
    calls: list[int] = []
    for module in (passes, __import__("speedysnn.analysis.sensitivity.branches", fromlist=["x"])):
        monkeypatch.setattr(module, "hand_back", lambda: calls.append(1))
    snn, x = build("avg"), digits[0][:20]
    whole = measure_noise(snn, x)
    measure_sensitivity(snn, x, modes=("prefix",), gains=False)
    assert calls == []
    sums = whole.memory.sums_bytes / 2**20
    tight = measure_noise(snn, x, memory_mib=sums + 2.5 * whole.memory.image_bytes / 2**20)
    assert tight.memory.tight
    assert len(calls) >= 10 * (2 + len(snn.neurons))
    for name in ("sqnr_db", "share_temporal", "rate"):
        torch.testing.assert_close(
            torch.tensor(tight.layers[name].to_numpy(float)), torch.tensor(whole.layers[name].to_numpy(float)),
            rtol=1e-6, atol=1e-9,
        )  # fmt: skip
    calls.clear()
    found = measure_sensitivity(snn, x, modes=("prefix",), gains=False, memory_mib=0.2)
    assert found.memory.tight
    assert calls
