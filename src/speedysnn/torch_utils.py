"""What the rooms share of torch: a network's modes, given back as they were; freed memory; outputs compared.

`evaluating` gives modes back. `compare_outputs` says how near a network's outputs are to its source's, and `worse`
whether a change made them worse. `windows` shows what each output place of a convolution multiplies.

Freed memory is handed back to the system where a limit binds, by whatever the program at hand has installed for it. How
a process keeps freed memory is its program's to decide: the command line installs `malloc_trim`, a library installs
nothing. A benchmark calls it in its own process, before it measures a peak.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own mode comes back afterwards."""
    before = {module: module.training for module in model.modules()}
    try:
        with suppress(NotImplementedError):  # an exported program has no modes
            model.eval()
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def float_type(model: nn.Module) -> torch.dtype:
    """The floating type of a network's first parameter, float32 where it has none.

    Args:
        model: the network.

    Returns:
        The type in which it takes its inputs.
    """
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


_release: Callable[[], None] | None = None


def install(release: Callable[[], None] | None) -> None:
    """Have `hand_back` call a function; None: nothing."""
    global _release
    _release = release


def hand_back() -> None:
    """Return what is free to the system, where the program has said how."""
    if _release is not None:
        _release()


def malloc_trim() -> None:
    """Return the free pages of all heaps, holes included; no setting of the process changes. Only glibc has this."""
    library = glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def glibc() -> Any:
    """Load the C library, if it is glibc, which has malloc_trim.

    Returns:
        The library, or None.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
        library.malloc_trim.argtypes = (ctypes.c_size_t,)
    except (OSError, AttributeError):
        return None
    return library


def windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], pads: Sequence[tuple[int, int]]
) -> Tensor:
    """Show what each output place of a convolution multiplies, without a copy but for the padding.

    Args:
        x: (B, C, *sizes).
        kernel: its size in every dimension.
        stride: likewise.
        dilation: likewise.
        pads: zeros before and behind every dimension.

    Returns:
        (B, C, *places, *kernel), a view of the padded input.

    Example:
        >>> import torch
        >>> from speedysnn.torch_utils import windows
        >>> windows(torch.arange(4.0).view(1, 1, 4), [2], [1], [2], [(0, 1)])[0, 0].tolist()
        [[0.0, 2.0], [1.0, 3.0], [2.0, 0.0]]
    """
    x = F.pad(x, [side for both in reversed(pads) for side in both])
    for dim, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        x = x.unfold(dim, apart * (size - 1) + 1, step)[..., ::apart]
    return x


def drawn_rows(
    x: Tensor, z: Tensor, groups: int, each: int, generator: torch.Generator, windowed: bool
) -> tuple[Tensor, Tensor]:
    """Draw places of a layer's output, the same in every image, with the values that make up one output there.

    Args:
        x: inputs of a convolution as `windows` shows them, or of a linear layer, (B, ..., n).
        z: outputs, (B, groups * m, *places) or (B, ..., m).
        groups: of the convolution; 1 for a linear layer.
        each: most places of an image.
        generator: draws them.
        windowed: whether the layer is a convolution.

    Returns:
        Inputs (groups, B, p, n) and outputs (groups, B, p, m).

    Example:
        >>> import torch
        >>> from speedysnn.torch_utils import drawn_rows
        >>> x, z, generator = torch.rand(2, 5, 3), torch.rand(2, 5, 4), torch.Generator().manual_seed(0)
        >>> [tuple(rows.shape) for rows in drawn_rows(x, z, 1, 3, generator, windowed=False)]
        [(1, 2, 3, 3), (1, 2, 3, 4)]
    """
    if not windowed:
        x, z = x.reshape(len(x), -1, x.shape[-1]), z.reshape(len(z), -1, z.shape[-1])
        drawn = torch.randperm(x.shape[1], generator=generator)[:each].to(x.device)
        return x[:, drawn][None], z[:, drawn][None]
    drawn = torch.randperm(z[0, 0].numel(), generator=generator)[:each].to(x.device)
    index = torch.unravel_index(drawn, z.shape[2:])
    x = x.movedim((0, 1), (-2, -1))[index].flatten(1, -3)  # places, taps, images, channels
    x = torch.unflatten(x, 3, (groups, -1)).permute(3, 2, 0, 4, 1).flatten(3)
    z = torch.unflatten(z.flatten(2)[:, :, drawn], 1, (groups, -1)).permute(1, 0, 3, 2)
    return x, z


def compare_outputs(
    ours: Sequence[Sequence[Tensor]], source: Sequence[Sequence[Tensor]]
) -> dict[str, float | None]:
    """Compare a network's outputs with its source's, over all passes.

    With p = softmax(source) and q = softmax(ours), by image: KL = sum p (ln p - ln q), in nats. The error is
    sum (ours - source)^2 / sum source^2. Sums are float64.

    Args:
        ours: for each pass the network's outputs, (B, ...) each.
        source: the source's, alike.

    Returns:
        "agreement", the fraction of images with the same class, and "kl", its mean; None for both where the output is
        not one tensor (B, classes). "error", the relative squared error.

    Example:
        >>> import torch
        >>> from speedysnn.torch_utils import compare_outputs
        >>> compare_outputs([[torch.tensor([[2.0, 0.0]])]], [[torch.tensor([[2.0, 0.0]])]])
        {'agreement': 1.0, 'kl': 0.0, 'error': 0.0}
    """
    passes = [[(a.double(), b.double()) for a, b in zip(us, them, strict=True)]
              for us, them in zip(ours, source, strict=True)]  # fmt: skip
    pairs = [pair for found in passes for pair in found]
    power = sum(float(b.square().sum()) for _, b in pairs)
    out: dict[str, float | None] = {"agreement": None, "kl": None}
    out["error"] = sum(float((a - b).square().sum()) for a, b in pairs) / max(power, 1e-30)
    if len(pairs) == len(passes) and all(b.ndim == 2 and b.shape[1] > 1 for _, b in pairs):
        images = sum(len(b) for _, b in pairs)
        out["agreement"] = sum(int((a.argmax(1) == b.argmax(1)).sum()) for a, b in pairs) / images
        out["kl"] = sum(_divergence(a, b) for a, b in pairs) / images
    return out


def _divergence(ours: Tensor, source: Tensor) -> float:
    """Sum over the images of the divergence of their answers, KL(source || ours)."""
    p, q = source.log_softmax(1), ours.log_softmax(1)
    return float((p.exp() * (p - q)).sum())


def worse(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> bool:
    """Tell whether a change made outputs worse.

    Args:
        before: as `compare_outputs` gives it.
        after: likewise, of the same images.

    Returns:
        Whether fewer images are answered as the source does; where there are no classes, whether the error rose or is
        no number.
    """
    key, sign = ("error", 1) if before["agreement"] is None else ("agreement", -1)
    old, new = before[key], after[key]
    return old is None or new is None or not sign * new <= sign * old
