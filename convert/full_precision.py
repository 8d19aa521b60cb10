"""Float32 products to their last bit on a GPU, where convolutions take TF32 (10 bits of mantissa) by default."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TF32 in convolutions and matrix products on this device; the settings come back."""
    if device.type != "cuda":
        yield
        return
    settings = _settings()
    before = [read() for read, _, _ in settings]
    try:
        for _, write, exact in settings:
            write(exact)
        yield
    finally:
        for (_, write, _), value in zip(settings, before, strict=True):
            write(value)


def _settings() -> list[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """(read, write, value for full precision): torch's older settings, or those of torch 2.9 where they are in use.

    torch refuses to read the older one where the newer was set otherwise.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    try:
        convolutions.allow_tf32  # noqa: B018 - it raises
        own = partial(getattr, convolutions, "allow_tf32"), partial(setattr, convolutions, "allow_tf32"), False
        return [own, (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")]
    except RuntimeError:
        owners = (getattr(convolutions, "conv", None), getattr(convolutions, "rnn", None), products)
        word = "fp32_precision"
        return [(partial(getattr, owner, word), partial(setattr, owner, word), "ieee") for owner in owners]
