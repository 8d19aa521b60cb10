"""Prove that the converted network's analog reading is the source network."""

import math
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from speedysnn.errors import ConversionError

TOLERANCE = 1e-5


def leaves(value: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def relative_error(ours: Any, reference: Any) -> float:
    """Norm of the difference over the norm of the reference, all outputs together."""
    pairs = list(zip(leaves(ours), leaves(reference), strict=True))
    noise = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    signal = sum(float(b.double().square().sum()) for _, b in pairs)
    return math.sqrt(noise / signal) if signal > 0 else math.sqrt(noise)


def require_equal(ours: Any, reference: Any) -> float:
    """The relative error of the analog reading.

    Raises:
        ConversionError: it is not below 1e-5, or something is not finite.
    """
    if not all(bool(torch.isfinite(leaf).all()) for leaf in leaves(reference)):
        raise ConversionError(
            "the source network gives NaN or infinity on the first calibration batch: check the checkpoint and the "
            "input's normalisation"
        )
    error = relative_error(ours, reference)
    if not error < TOLERANCE:
        raise ConversionError(
            f"the converted graph differs from the source network by {error:.2e} (relative, expected below "
            f"{TOLERANCE:.0e}); nothing was converted. The source may use hooks, weight normalisation or in-place "
            "operations that tracing does not see: remove them and convert again"
        )
    return error
