"""Training images: batches augmented by name, and one indexable data set with a validation part held out of it.

An augmentation works on a batch (B, C, H, W) and draws from the generator it is given, so that a seed fixes the run.
The teacher sees the same augmented images, so no labels are needed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from speedysnn.data import split_holdout
from speedysnn.data.batches import Batch, iter_batches, steps_of
from speedysnn.errors import DataError, InputError

Augment = Callable[[Tensor, torch.Generator], Tensor]


def none(x: Tensor, generator: torch.Generator) -> Tensor:
    """Leave the images as they are.

    Args:
        x: images, (B, C, H, W).
        generator: not used.

    Returns:
        The same images.
    """
    return x


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half.

    Args:
        x: images, (B, C, H, W).
        generator: draws which images are mirrored.

    Returns:
        The images, of the same shape.

    Example:
        >>> import torch
        >>> from speedysnn.finetune.augment import flip
        >>> images = torch.tensor([1.0, 2.0]).expand(6, 1, 1, 2)
        >>> flip(images, torch.Generator().manual_seed(0))[:, 0, 0, 0].tolist()
        [2.0, 1.0, 2.0, 2.0, 2.0, 1.0]
    """
    chosen = torch.rand(x.shape[0], generator=generator) < 0.5
    return torch.where(chosen.view(-1, *[1] * (x.ndim - 1)).to(x.device), x.flip(-1), x)


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to an eighth of its width in both directions and repeat its border.

    Args:
        x: images, (B, C, H, W).
        generator: draws how far each image moves.

    Returns:
        The images, of the same shape.

    Example:
        >>> import torch
        >>> from speedysnn.finetune.augment import shift
        >>> shift(torch.ones(2, 1, 8, 8), torch.Generator()).unique().tolist()  # nothing but the image itself
        [1.0]
    """
    reach = max(1, x.shape[-1] // 8)
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    offsets = torch.randint(0, 2 * reach + 1, (x.shape[0], 2), generator=generator).tolist()
    height, width = x.shape[-2:]
    return torch.stack([padded[i, :, r : r + height, c : c + width] for i, (r, c) in enumerate(offsets)])


def flip_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror and move the images: the usual augmentation of small natural images.

    Args:
        x: images, (B, C, H, W).
        generator: draws which images are mirrored and how far each moves.

    Returns:
        The images, of the same shape.
    """
    return shift(flip(x, generator), generator)


def _each_image(x: Tensor, generator: torch.Generator, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a torchvision transform to every image by itself; its random draws come from the generator."""
    with _seeded_from(generator):
        return torch.stack([transform(image) for image in x])


@contextmanager
def _seeded_from(generator: torch.Generator) -> Iterator[None]:
    """Seed torch's global generator by a draw from this one; the global generator's state comes back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**62, (1,), generator=generator)))
        yield


def affine(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each image by up to 10 degrees, move it by up to a tenth, scale it by 0.9 to 1.1 (torchvision v2).

    Args:
        x: images, (B, C, H, W).
        generator: draws the change of each image.

    Returns:
        The images, of the same shape.
    """
    transform = _v2().RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1))
    return _each_image(x, generator, transform)


def erase(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror and move the images, then with probability one half blank a rectangle of each (torchvision v2).

    Args:
        x: images, (B, C, H, W).
        generator: draws the change of each image.

    Returns:
        The images, of the same shape.
    """
    return _each_image(flip_crop(x, generator), generator, _v2().RandomErasing(0.5))


def trivial(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror and move the images, then change geometry or colour of each at random (torchvision's TrivialAugmentWide).

    The transform works on 8 bits a channel. Each channel's range over the batch is mapped to 0..255 and back.

    Args:
        x: images, (B, C, H, W), C being 1 or 3.
        generator: draws the change of each image.

    Returns:
        The images, of the same shape and range.
    """
    transform = _v2().TrivialAugmentWide()
    x = flip_crop(x, generator)
    dims = [0, *range(2, x.ndim)]
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    span = (high - low).clamp_min(torch.finfo(x.dtype).tiny)
    bytes_ = ((x - low) / span * 255).round().to(torch.uint8)
    return _each_image(bytes_, generator, transform).to(x.dtype) / 255 * span + low


def _v2() -> Any:
    from torchvision.transforms import v2  # late: its import takes a second, and some installations lack its operators

    return v2


def auto(x: Tensor, generator: torch.Generator) -> Tensor:
    """Choose by the shape: `flip_crop` for images of three colours, `shift` for grey ones, nothing for all else.

    The teacher answers the changed image, so that one which never occurs does no harm beyond a wasted step.

    Args:
        x: inputs, (B, ...).
        generator: draws the change of each image.

    Returns:
        The inputs, of the same shape.

    Example:
        >>> import torch
        >>> from speedysnn.finetune.augment import auto, flip_crop
        >>> images, vectors = torch.rand(4, 3, 8, 8), torch.rand(4, 8)
        >>> draws = (torch.Generator().manual_seed(0) for _ in range(3))
        >>> torch.equal(auto(images, next(draws)), flip_crop(images, next(draws)))
        True
        >>> auto(vectors, next(draws)) is vectors
        True
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return x
    return flip_crop(x, generator) if x.shape[1] == 3 else shift(x, generator)


AUGMENTATIONS: dict[str, Augment] = {
    "auto": auto, "none": none, "flip": flip, "shift": shift, "flip-crop": flip_crop, "affine": affine, "erase": erase,
    "trivial": trivial,
}  # fmt: skip


def augmentation(name: str) -> Augment:
    """Look up an augmentation by name.

    Args:
        name: a key of `AUGMENTATIONS`, to which a user may add.

    Returns:
        What augments a batch: (images, generator) -> images.

    Raises:
        InputError: no augmentation has that name.

    Example:
        >>> from speedysnn.finetune.augment import AUGMENTATIONS, augmentation
        >>> list(AUGMENTATIONS)
        ['auto', 'none', 'flip', 'shift', 'flip-crop', 'affine', 'erase', 'trivial']
        >>> augmentation("flip").__name__
        'flip'
    """
    if name not in AUGMENTATIONS:
        raise InputError(f"augment: expected one of {', '.join(AUGMENTATIONS)}, got {name!r}")
    return AUGMENTATIONS[name]


def mix(
    x: Tensor, alpha: float, generator: torch.Generator, labels: Tensor | None = None, classes: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Mix every image with its neighbour in the batch (mixup, Zhang et al. 2018, arXiv:1710.09412).

    x[i] <- lambda x[i] + (1 - lambda) x[i-1], with one lambda from Beta(alpha, alpha) for the whole batch;
    labels likewise. torchvision's `MixUp` does the work, and its draw comes from the generator.

    Args:
        x: a batch of images in random order, (B, ...).
        alpha: of the Beta distribution; 0 leaves the batch as it is.
        generator: draws the weight, the same one with labels and without.
        labels: classes, (B,).
        classes: number of classes, for labels.

    Returns:
        The images, and the labels as probabilities of the classes (B, classes), None where none were given.

    Example:
        >>> import torch
        >>> from speedysnn.finetune.augment import mix
        >>> images, draw = torch.tensor([[0.0], [1.0]]), torch.Generator().manual_seed(0)
        >>> mixed, shares = mix(images, 0.2, draw, torch.tensor([0, 1]), classes=2)
        >>> bool(torch.isclose(mixed[0], shares[0, 1]))  # the share of the second image is that of its label
        True
    """
    if alpha <= 0:
        return x, labels
    images = x.reshape(len(x), 1, 1, -1)  # the transform takes batches of images alone, of any size
    given = torch.zeros(len(x), dtype=torch.long) if labels is None else labels.long().cpu()
    with _seeded_from(generator):
        mixed, shares = _v2().MixUp(alpha=alpha, num_classes=classes if labels is not None else 1)(images, given)
    return mixed.reshape(x.shape), None if labels is None else shares


def as_dataset(data: Any, inputs: int | None = None) -> Dataset[Any]:
    """Make one indexable data set of what holds the training data.

    Args:
        data: a dataset, which is taken as it is; a loader, whose dataset is taken; or tensors or batches, which are put
            together in memory.
        inputs: tensors that the network takes; of what follows them in a sample classes are kept, and nothing else.

    Returns:
        A dataset with a length.

    Raises:
        DataError: nothing in it, or no length.

    Example:
        >>> import torch
        >>> from speedysnn.finetune.augment import as_dataset
        >>> len(as_dataset((torch.rand(5, 3), torch.arange(5))))
        5
    """
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, Dataset):
        if not hasattr(data, "__len__"):
            raise DataError("training data: expected a dataset with a length; gather the stream into tensors first")
        return data if inputs is None else _taken(data, inputs)
    batches = list(iter_batches(data, what="training data", inputs=inputs))
    columns = [torch.cat(column) for column in zip(*(batch.inputs for batch in batches), strict=True)]
    labels = [batch.labels for batch in batches]
    if all(label is not None for label in labels):
        columns.append(torch.cat([label for label in labels if label is not None]))
    return TensorDataset(*columns)


def gather(dataset: Dataset[Any], indices: Sequence[int]) -> Batch:
    """Gather the samples of these indices into one batch.

    Args:
        dataset: an indexable data set.
        indices: which samples, in order.

    Returns:
        The inputs, and labels where there are any.
    """
    if isinstance(dataset, TensorDataset):
        chosen = torch.as_tensor(indices)
        columns: list[Tensor] = [column[chosen] for column in dataset.tensors]
        return next(iter_batches([columns], what="training data"))
    if steps_of(dataset):  # events train on their mean over time
        own = Subset(dataset, indices)
        return next(iter_batches(own, batch_size=len(indices), what="training data", dtype=torch.float32))
    return next(iter_batches([default_collate([dataset[i] for i in indices])], what="training data"))


def _taken(data: Dataset[Any], inputs: int) -> Dataset[Any]:
    """The dataset, or of its samples what the network takes, with the class where that is what follows."""
    if isinstance(data, TensorDataset):
        tensors = data.tensors
        last = tensors[inputs] if len(tensors) > inputs else None
        labelled = last is not None and last.ndim == 1 and not last.is_floating_point()
        kept = inputs + labelled
        return data if len(tensors) <= kept else TensorDataset(*tensors[:kept])
    sample = data[0] if len(data) else ()  # type: ignore[arg-type]
    return data if _kept(sample, inputs) is sample else Taken(data, inputs)


def _kept(sample: Any, inputs: int) -> Any:
    if not isinstance(sample, (tuple, list)) or len(sample) <= inputs:
        return sample
    label = sample[inputs]
    alone = isinstance(label, Tensor) and not label.ndim and not label.is_floating_point()
    kept = inputs + int(isinstance(label, (int, np.integer)) or alone)
    return sample if len(sample) == kept else tuple(sample[:kept])


class Taken(Dataset[Any]):
    """Of each sample what the network takes, and its class where that is what follows.

    Attributes:
        dataset: the dataset.
        inputs: tensors that the network takes.
    """

    def __init__(self, data: Dataset[Any], inputs: int) -> None:
        self.dataset, self.inputs = data, inputs

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return _kept(self.dataset[index], self.inputs)


class Unlabelled(Dataset[tuple[Tensor, ...]]):
    """The inputs of a dataset, without its labels.

    Attributes:
        data: the dataset.
    """

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return (self.data[index][0],)


def hold_out(data: Any, fraction: float, seed: int, inputs: int | None = None) -> tuple[Dataset[Any], Dataset[Any]]:
    """Split the training data into a part that trains and a part that judges.

    Args:
        data: anything that `as_dataset` takes.
        fraction: share of the images that is held out, between 0 and 1.
        seed: of the split.

    Returns:
        (train, validation): two datasets with no image in common.

    Raises:
        DataError: too few images to hold one out.

    Example:
        >>> import torch
        >>> from speedysnn.finetune.augment import hold_out
        >>> [len(part) for part in hold_out(torch.rand(10, 3), 0.2, seed=0)]
        [8, 2]
    """
    dataset = as_dataset(data, inputs)
    if len(dataset) < 2:  # type: ignore[arg-type]
        raise DataError("training data: expected at least two images, one of them for validation")
    return split_holdout(dataset, fraction, seed)
