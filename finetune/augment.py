"""Augmentation of image batches (B, C, H, W) by name; the teacher sees the same images, so labels are not needed."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn.errors import InputError

Augment = Callable[[Tensor, torch.Generator], Tensor]


def none(x: Tensor, generator: torch.Generator) -> Tensor:
    """The images as they are."""
    return x


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability one half."""
    chosen = torch.rand(x.shape[0], generator=generator) < 0.5
    return torch.where(chosen.view(-1, *[1] * (x.ndim - 1)).to(x.device), x.flip(-1), x)


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to an eighth of its size in both directions, its border repeated."""
    reach = max(1, x.shape[-1] // 8)
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    offsets = torch.randint(0, 2 * reach + 1, (x.shape[0], 2), generator=generator).tolist()
    height, width = x.shape[-2:]
    return torch.stack([padded[i, :, r : r + height, c : c + width] for i, (r, c) in enumerate(offsets)])


def flip_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored and moved, the usual augmentation of small natural images."""
    return shift(flip(x, generator), generator)


AUGMENTATIONS: dict[str, Augment] = {"none": none, "flip": flip, "shift": shift, "flip-crop": flip_crop}


def augmentation(name: str) -> Augment:
    """The named augmentation.

    Raises:
        InputError: no augmentation has that name.
    """
    if name not in AUGMENTATIONS:
        raise InputError(f"augment: expected one of {', '.join(AUGMENTATIONS)}, got {name!r}")
    return AUGMENTATIONS[name]


def mix(x: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Each image mixed with another, weights from Beta(alpha, alpha) per image."""
    if alpha <= 0:
        return x
    draws = torch._sample_dirichlet(torch.full((x.shape[0], 2), alpha), generator=generator)[:, 0]
    weight = draws.view(-1, *[1] * (x.ndim - 1)).to(x)
    return weight * x + (1 - weight) * x[torch.randperm(x.shape[0], generator=generator)]
