"""Inference over all steps beside T passes of the source network and beside peers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from speedysnn.bench.case import Call, Case, rows_of
from speedysnn.bench.pairs import paired
from speedysnn.bench.peak import add_peaks
from speedysnn.bench.peers import available
from speedysnn.network import SpikingNetwork


def inference(
    snn: SpikingNetwork, x: Tensor, rounds: int, *, half: bool = True, peers: bool = True, compiled: bool = False
) -> Case:
    """All T steps, against T passes of the source network at its own best batch size."""
    steps, label = snn.timesteps, f"{snn.timesteps} x ANN"
    with torch.no_grad():
        size = best_pass(lambda size: ann(snn, x, size, 1), x)
    calls: dict[str, Call] = {
        f"{label}, {size} at a time": partial(ann, snn, x, size, steps),
        "speedysnn": lambda: snn(x),
    }
    if compiled:
        calls.update(_compiled(snn, x, max(1, size // steps)))
    half = half and _has_half(x.device)
    if half:
        calls["speedysnn, bfloat16"] = partial(_half, lambda: snn(x), x.device)
        calls[f"{label}, bfloat16"] = partial(_half, lambda: ann(snn, x, size, steps), x.device)
    with torch.no_grad():
        found, notes = available(snn, x[: min(32, len(x))]) if peers else ({}, [])
        calls.update({name: partial(peer, x) for name, peer in found.items()})
        rows = rows_of(calls, rounds, x.device)
        add_peaks(rows, calls, x.device)
        if half:
            notes.append(half_cost(snn, x))
        else:
            notes.append("bfloat16: left out, this machine has no arithmetic for it")
    for row in rows:
        row["us_per_image_step"] = row["median_s"] / len(x) / steps * 1e6
    return Case(f"inference, T={steps}, batch {len(x)}", next(iter(calls)), rows, notes)


def _compiled(snn: SpikingNetwork, x: Tensor, size: int) -> dict[str, Call]:
    """The network under torch.compile: on the CPU in passes of a size, on a GPU at once and as a replayed graph too."""
    name = "speedysnn, torch.compile"
    if x.device.type != "cuda":
        return {name: partial(_in_pieces, torch.compile(snn), x, size)}
    replayed = torch.compile(snn, mode="reduce-overhead")
    return {name: partial(torch.compile(snn), x), f"{name} and CUDA graphs": partial(replayed, x)}


def _in_pieces(net: Callable[[Tensor], Tensor], x: Tensor, size: int) -> None:
    for piece in x.split(size):  # type: ignore[no-untyped-call]
        net(piece)


def _has_half(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    told = torch.backends.cpu.get_cpu_capability()  # which may be less than the processor has
    return told.startswith("AVX512") and probe is not None and bool(probe())


def half_cost(snn: SpikingNetwork, x: Tensor) -> str:
    """What bfloat16 changes, in words."""
    with torch.no_grad():
        exact, rough = snn(x), _half(lambda: snn(x), x.device).float()
    agree = float((exact.argmax(1) == rough.argmax(1)).float().mean())
    error = float((rough - exact).norm() / exact.norm().clamp_min(1e-30))
    return f"bfloat16: the same class on {100 * agree:.1f} % of images, logits differ by {error:.1e} of their norm"


def _half(call: Callable[[], Any], device: torch.device) -> Any:
    with torch.autocast(device.type, torch.bfloat16):
        return call()


def ann(snn: SpikingNetwork, x: Tensor, size: int, times: int) -> None:
    """The analog reading, some images at a time, so often."""
    with snn.reading("analog"):
        for _ in range(times):
            for piece in x.split(size):  # type: ignore[no-untyped-call]
                snn(piece)


def best_pass(
    call: Callable[[int], object], x: Tensor, sizes: Sequence[int] = (8, 16, 32, 64, 128, 256)
) -> int:
    """Images a pass at which a call is fastest on this machine."""
    sizes = [size for size in sizes if size <= len(x)] or [len(x)]
    calls = {str(size): partial(call, size) for size in sizes}
    timings = paired(calls, str(sizes[0]), 3, x.device.type)
    return min(sizes, key=lambda size: timings[str(size)].median)
