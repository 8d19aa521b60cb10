"""Augmentation of image batches (B, C, H, W) by name; the teacher sees the same images, so labels are not needed."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn.errors import InputError
from speedysnn.finetune.objectives import columns

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


def _drawn(x: Tensor, generator: torch.Generator, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """A torchvision transform of every image by itself, its draws taken from the generator; torch's own are left."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**62, (1,), generator=generator)))
        return torch.stack([transform(image) for image in x])


def affine(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 10 degrees, moved by up to a tenth, scaled by 0.9 to 1.1 (torchvision v2)."""
    transform = _v2().RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1))
    return _drawn(x, generator, transform)


def erase(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored and moved, then with probability one half a rectangle blanked (torchvision v2)."""
    return _drawn(flip_crop(x, generator), generator, _v2().RandomErasing(0.5))


def trivial(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored and moved, then one random change of geometry or colour an image (torchvision v2, TrivialAugmentWide).

    The transform works on 8 bits a channel: black and white are taken from the batch's extremes of each channel.
    """
    transform = _v2().TrivialAugmentWide()
    x = flip_crop(x, generator)
    dims = [0, *range(2, x.ndim)]
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    span = (high - low).clamp_min(torch.finfo(x.dtype).tiny)
    bytes_ = ((x - low) / span * 255).round().to(torch.uint8)
    return _drawn(bytes_, generator, transform).to(x.dtype) / 255 * span + low


def _v2() -> Any:
    from torchvision.transforms import v2  # late: its import takes a second, and some installations lack its operators

    return v2


AUGMENTATIONS: dict[str, Augment] = {
    "none": none, "flip": flip, "shift": shift, "flip-crop": flip_crop, "affine": affine, "erase": erase,
    "trivial": trivial,
}  # fmt: skip


def augmentation(name: str) -> Augment:
    """The named augmentation.

    Raises:
        InputError: no augmentation has that name.
    """
    if name not in AUGMENTATIONS:
        raise InputError(f"augment: expected one of {', '.join(AUGMENTATIONS)}, got {name!r}")
    return AUGMENTATIONS[name]


def mix(
    x: Tensor, alpha: float, generator: torch.Generator, labels: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(images, labels), each image mixed with another, weights from Beta(alpha, alpha) per image (Zhang et al. 2018).

    Labels (B,) become (B, 3), see `objectives.columns`.
    """
    if alpha <= 0:
        return x, labels
    draws = torch._sample_dirichlet(torch.full((x.shape[0], 2), alpha), generator=generator)[:, 0]
    weight = draws.view(-1, *[1] * (x.ndim - 1)).to(x)
    partner = torch.randperm(x.shape[0], generator=generator)
    mixed = weight * x + (1 - weight) * x[partner]
    return mixed, None if labels is None else columns(labels, labels[partner], draws)
