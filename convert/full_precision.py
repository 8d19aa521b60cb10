"""Float32 products to their last bit on a GPU, where convolutions take TF32 (10 bits of mantissa) by default."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TF32 in convolutions and matrix products on this device; the settings come back."""
    if device.type != "cuda":
        yield
        return
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    newer = getattr(convolutions, "conv", None)  # since torch 2.9, which refuses a mixture of both ways
    owners: tuple[Any, Any] = (convolutions if newer is None else newer, products)
    name, exact = ("allow_tf32", False) if newer is None else ("fp32_precision", "ieee")
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, exact)
        yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            setattr(owner, name, value)
