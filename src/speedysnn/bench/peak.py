"""Peak memory of a call: the high-water mark of the process, or of torch's memory on a GPU, reset before it."""

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from speedysnn.analysis.handing_back import hand_back

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object], device: torch.device | None = None) -> int | None:
    """Bytes that a call adds at its peak to what the process holds before it; None where the system does not say.

    What earlier calls freed is given back to the system first, so that it does not hide what this one takes.
    """
    gc.collect()
    if device is not None and device.type == "cuda":
        return _on_gpu(call, device)
    hand_back()
    try:
        _CLEAR.write_text("5", encoding="ascii")
        before = _field("VmRSS")
    except OSError:
        return None
    call()
    return _field("VmHWM") - before


def add_peaks(
    rows: Sequence[dict[str, Any]], calls: Mapping[str, Callable[[], object]], device: torch.device
) -> None:  # fmt: skip
    """Call each row's contestant once more and note its peak."""
    for row in rows:
        row["peak_bytes"] = peak_bytes(calls[row["name"]], device)


def _on_gpu(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


def _field(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
