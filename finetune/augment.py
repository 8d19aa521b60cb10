"""Augmentation of image batches (B, C, H, W) by name; the teacher sees the same images, so labels are not needed.

Training data as one indexable set of images, with a validation part held out of it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from speedysnn.data.batches import Batch, iter_batches, steps_of
from speedysnn.data.registry import split_holdout
from speedysnn.errors import DataError, InputError

Augment = Callable[[Tensor, torch.Generator], Tensor]


def none(x: Tensor, generator: torch.Generator) -> Tensor:
    """The images as they are.

    Returns:
        The same images.
    """
    return x


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability one half.

    Returns:
        The images, of the same shape.
    """
    chosen = torch.rand(x.shape[0], generator=generator) < 0.5
    return torch.where(chosen.view(-1, *[1] * (x.ndim - 1)).to(x.device), x.flip(-1), x)


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to an eighth of its size in both directions, its border repeated.

    Returns:
        The images, of the same shape.
    """
    reach = max(1, x.shape[-1] // 8)
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    offsets = torch.randint(0, 2 * reach + 1, (x.shape[0], 2), generator=generator).tolist()
    height, width = x.shape[-2:]
    return torch.stack([padded[i, :, r : r + height, c : c + width] for i, (r, c) in enumerate(offsets)])


def flip_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored and moved, the usual augmentation of small natural images.

    Returns:
        The images, of the same shape.
    """
    return shift(flip(x, generator), generator)


def _drawn(x: Tensor, generator: torch.Generator, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """A torchvision transform of every image by itself, its draws taken from the generator; torch's own are left."""
    with _own_seed(generator):
        return torch.stack([transform(image) for image in x])


@contextmanager
def _own_seed(generator: torch.Generator) -> Iterator[None]:
    """Torch's own generator seeded by a draw of this one; it is what it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**62, (1,), generator=generator)))
        yield


def affine(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 10 degrees, moved by up to a tenth, scaled by 0.9 to 1.1 (torchvision v2).

    Returns:
        The images, of the same shape.
    """
    transform = _v2().RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1))
    return _drawn(x, generator, transform)


def erase(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored and moved, then with probability one half a rectangle blanked (torchvision v2).

    Returns:
        The images, of the same shape.
    """
    return _drawn(flip_crop(x, generator), generator, _v2().RandomErasing(0.5))


def trivial(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored and moved, then one random change of geometry or colour an image (torchvision v2, TrivialAugmentWide).

    The transform works on 8 bits a channel: black and white are taken from the batch's extremes of each channel.

    Returns:
        The images, of the same shape and range.
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

    Returns:
        What augments a batch: (images, generator) -> images.

    Raises:
        InputError: no augmentation has that name.
    """
    if name not in AUGMENTATIONS:
        raise InputError(f"augment: expected one of {', '.join(AUGMENTATIONS)}, got {name!r}")
    return AUGMENTATIONS[name]


def mix(
    x: Tensor, alpha: float, generator: torch.Generator, labels: Tensor | None = None, classes: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Every image mixed with its neighbour in the batch, by a weight from Beta(alpha, alpha) (Zhang et al. 2018).

    torchvision's `MixUp` does it, its draw taken from the generator; torch's own generator is left as it was.

    Args:
        x: a batch of images in random order, (B, ...).
        alpha: of the distribution; 0 leaves the batch as it is.
        generator: draws the weight, the same one with labels and without.
        labels: classes, (B,).
        classes: number of classes, for labels.

    Returns:
        The images, and the labels as probabilities of the classes (B, classes), None where none were given.
    """
    if alpha <= 0:
        return x, labels
    images = x.reshape(len(x), 1, 1, -1)  # the transform takes batches of images alone, of any size
    given = torch.zeros(len(x), dtype=torch.long) if labels is None else labels.long().cpu()
    with _own_seed(generator):
        mixed, shares = _v2().MixUp(alpha=alpha, num_classes=classes if labels is not None else 1)(images, given)
    return mixed.reshape(x.shape), None if labels is None else shares


def as_dataset(data: Any) -> Dataset[Any]:
    """A dataset as it is, a loader's dataset, or tensors and batches put together in memory.

    Returns:
        A dataset with a length.

    Raises:
        DataError: nothing in it, or no length.
    """
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, Dataset):
        if not hasattr(data, "__len__"):
            raise DataError("training data: expected a dataset with a length; gather the stream into tensors first")
        return data
    batches = list(iter_batches(data, what="training data"))
    columns = [torch.cat(column) for column in zip(*(batch.inputs for batch in batches), strict=True)]
    labels = [batch.labels for batch in batches]
    if all(label is not None for label in labels):
        columns.append(torch.cat([label for label in labels if label is not None]))
    return TensorDataset(*columns)


def gather(dataset: Dataset[Any], indices: Sequence[int]) -> Batch:
    """The samples of these indices as one batch.

    Returns:
        The inputs, and labels where there are any.
    """
    if isinstance(dataset, TensorDataset):
        chosen = torch.as_tensor(indices)
        columns: list[Tensor] = [column[chosen] for column in dataset.tensors]
        return next(iter_batches([columns], what="training data"))
    if steps_of(dataset):  # events train on their mean over time
        return next(iter_batches(Subset(dataset, indices), batch_size=len(indices), what="training data"))
    return next(iter_batches([default_collate([dataset[i] for i in indices])], what="training data"))


class Unlabelled(Dataset[tuple[Tensor, ...]]):
    """The inputs of a dataset, without its labels."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return (self.data[index][0],)


def hold_out(data: Any, fraction: float, seed: int) -> tuple[Dataset[Any], Dataset[Any]]:
    """(train, validation): a seeded split.

    Returns:
        Two datasets with no image in common.

    Raises:
        DataError: too few images to hold one out.
    """
    dataset = as_dataset(data)
    if len(dataset) < 2:  # type: ignore[arg-type]
        raise DataError("training data: expected at least two images, one of them for validation")
    return split_holdout(dataset, fraction, seed)
