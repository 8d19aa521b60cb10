"""Memory of a training step, known before the first: what one image keeps for its backward pass, and what is there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Reading

_SHARE = 0.7  # of what is free; the rest is for buffers that live shorter than the backward pass
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


@dataclass(frozen=True)
class Need:
    """Bytes of a training step.

    Attributes:
        image: kept for the backward pass of one image.
        state: gradients, the optimizer's two moments and the best state, for all trained parameters.
        images: images under way at once.
        free: bytes that were free before; None where that cannot be known.
    """

    image: int
    state: int
    images: int
    free: int | None

    @property
    def peak(self) -> int:
        """What the step adds to the memory in use."""
        return self.state + self.images * self.image

    def __str__(self) -> str:
        free = "" if self.free is None else f" of {self.free / 2**20:,.0f} MiB free"
        each = f"{self.images} images at once, {self.image / 2**20:.1f} MiB each"
        return f"a step needs about {self.peak / 2**20:,.0f} MiB{free}: {each}"


def saved_bytes(snn: SpikingNetwork, inputs: Sequence[Tensor], reading: Reading) -> int:
    """Bytes that one image keeps for its backward pass, from a forward pass over the first image of a batch."""
    seen: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in snn.parameters()}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    first = [x.narrow(x.ndim - len(shape) - 1, 0, 1) for x, shape in zip(inputs, snn.input_shapes, strict=True)]
    with torch.enable_grad(), snn.reading(reading), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = snn(*first)
    del out
    return sum(seen.values())


def state_bytes(parameters: Iterable[Tensor], workers: int) -> int:
    """Gradients of every piece under way, two moments and the best state."""
    return (workers + 3) * sum(p.numel() * p.element_size() for p in parameters)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had, within the limits of a container; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [value for value in (_available(), _left()) if value is not None]
    return min(free, default=None)


def fitting(need: int, state: int, free: int | None, workers: int) -> int | None:
    """Images a piece so that all pieces under way fit; at least one, None where nothing limits them."""
    if free is None or need == 0:
        return None
    return max(1, int(_SHARE * max(0, free - state)) // need // workers)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _left() -> int | None:
    for limit, used in zip(_LIMITS, _USED, strict=True):
        try:
            most, now = Path(limit).read_text(encoding="ascii").strip(), Path(used).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if most.isdecimal() and now.isdecimal():
            return max(0, int(most) - int(now))
    return None
