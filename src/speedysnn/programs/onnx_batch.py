"""A network whose file fixes the batch at 1, tried with two samples: they must give what each gives alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from speedysnn.programs.onnx_node import Unsupported

_LARGEST = 2**24  # values of an image with which a fixed batch is tried
_OPEN = "export it with dynamic_axes={'input': {0: 'batch'}} or dynamic_shapes"


def require_batches(module: fx.GraphModule, shapes: Sequence[Sequence[int]]) -> None:
    """Check it on random images of these sizes, one an input, the batch of 1 included; nothing where there are none.

    Raises:
        Unsupported: it gives something else, or is too large to try.
    """
    if not shapes:
        return
    if max(map(math.prod, shapes), default=0) > _LARGEST:
        raise Unsupported(f"it takes a batch of 1 alone, of the sizes {shapes}, too large to try more; {_OPEN}")
    module.eval()
    seed = torch.Generator().manual_seed(0)
    images = [torch.rand(2, *shape[1:], generator=seed) for shape in shapes]
    try:
        with torch.no_grad():
            both = _leaves(module(*images))
            alone = [_leaves(module(*(x[i : i + 1] for x in images))) for i in range(2)]
        pairs = zip(both, *alone, strict=True)
        fine = all(torch.allclose(b, torch.cat(a), rtol=1e-3, atol=1e-4 * float(b.abs().max())) for b, *a in pairs)
    except RuntimeError:
        fine = False
    if not fine:
        raise Unsupported(f"it takes a batch of 1 alone, and cannot be opened to more; {_OPEN}")


def _leaves(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, tuple) else [value]
