"""Which other simulators can be timed: installed, and found to compute the same."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.bench.simulators import Sinabs, SnnTorch, SpikingJelly
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork


def installed(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


PEERS: dict[str, tuple[str, Callable[[SpikingNetwork], nn.Module]]] = {
    "spikingjelly single-step": ("spikingjelly", lambda snn: SpikingJelly(snn, "s")),
    "spikingjelly multi-step": ("spikingjelly", lambda snn: SpikingJelly(snn, "m")),
    "snntorch": ("snntorch", lambda snn: SnnTorch(snn, "s")),
    "sinabs": ("sinabs", lambda snn: Sinabs(snn, "m")),
}


def available(
    snn: SpikingNetwork, x: Tensor, tolerance: float = 0.1, *, learning: bool = False
) -> tuple[dict[str, nn.Module], list[str]]:
    """The peers that are installed and compute the same logits, and a line on each that is left out.

    Spike counts may differ where a membrane meets its threshold to the last bit, so outputs agree within `tolerance`
    of their norm. With `learning` they are compared as they are found while training.
    """
    out: dict[str, nn.Module] = {}
    left: list[str] = []
    for name, (package, make) in PEERS.items():
        found = installed(package)
        if found is None:
            left.append(f"{name}: not installed (pip install 'speedysnn[bench]')")
            continue
        try:
            peer = make(snn)
            with torch.set_grad_enabled(learning):
                ours, theirs = snn(x).detach(), peer(x).detach()
        except InputError as err:
            left.append(str(err))
            continue
        error = float((ours - theirs).norm() / ours.norm().clamp_min(1e-30))
        if error <= tolerance:
            out[name] = peer
        verdict = "" if error <= tolerance else ": left out"
        left.append(f"{name} {found}: outputs differ by {error:.1e} of their norm{verdict}")
    return out, left


def facts() -> dict[str, Any]:
    """Versions of what was timed."""
    return {name: installed(name) for name in ("speedysnn", "torch", "spikingjelly", "snntorch", "sinabs", "numba")}
