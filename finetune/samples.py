"""Training data as one indexable set of images, with a validation part held out of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from speedysnn._batches import steps_of
from speedysnn.data import Batch, iter_batches, split_holdout
from speedysnn.errors import DataError


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
