"""Batches out of anything: what they hold, and what each mistake says."""


import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from speedysnn.data import Batch, iter_batches
from speedysnn.errors import DataError, InputError

X, Y, X2 = torch.rand(5, 2), torch.arange(5), torch.rand(5, 3)


class _Events(IterableDataset):
    def __iter__(self):
        return iter([(x, int(y)) for x, y in zip(X, Y, strict=True)])


# what is given: the data, the number of inputs, whether there are labels, the sizes of the batches
SHAPES = {
    "tensor": (lambda: X, 1, False, [2, 2, 1]),
    "pair": (lambda: (X, Y), 1, True, [2, 2, 1]),
    "two inputs": (lambda: (X, X2), 2, False, [2, 2, 1]),
    "two inputs and labels": (lambda: ((X, X2), Y), 2, True, [2, 2, 1]),
    "flat two inputs and labels": (lambda: (X, X2, Y), 2, True, [2, 2, 1]),
    "Batch": (lambda: Batch((X,), Y), 1, True, [2, 2, 1]),
    "dict": (lambda: {"x": X, "y": Y}, 1, True, [2, 2, 1]),
    "dataset": (lambda: TensorDataset(X, Y), 1, True, [2, 2, 1]),
    "dataset without labels": (lambda: TensorDataset(X), 1, False, [2, 2, 1]),
    "iterable dataset": (_Events, 1, True, [2, 2, 1]),
    "loader": (lambda: DataLoader(TensorDataset(X, Y), batch_size=4), 1, True, [4, 1]),
    "list of tensors": (lambda: [X, X[:3]], 1, False, [5, 3]),
    "list of pairs": (lambda: [(X, Y), [X[:3], Y[:3]]], 1, True, [5, 3]),
    "generator of pairs": (lambda: ((X, Y) for _ in range(2)), 1, True, [5, 5]),
    "pairs without labels": (lambda: [(X, None)], 1, False, [5]),
    "image dicts": (lambda: [{"image": X, "label": Y}], 1, True, [5]),
    "model dicts": (lambda: [{"pixel_values": X, "labels": Y}], 1, True, [5]),
    "input dicts": (lambda: [{"input": X, "other": "text"}], 1, False, [5]),
    "events in time": (lambda: [(X.expand(4, 5, 2), Y)], 1, True, [5]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_batches_from(shape):
    make, inputs, labelled, sizes = SHAPES[shape]
    batches = list(iter_batches(make(), batch_size=2))
    assert [len(batch.inputs[0]) for batch in batches] == sizes
    assert all(len(batch.inputs) == inputs for batch in batches)
    assert all((batch.labels is not None) == labelled for batch in batches)
    if labelled and shape != "generator of pairs" and sum(sizes) == 5:
        assert torch.equal(torch.cat([batch.labels for batch in batches]), Y)
        assert torch.equal(torch.cat([batch.inputs[0] for batch in batches]), X)


def test_a_batch_prints_shapes_only():
    assert repr(Batch((X,), Y)) == "Batch(inputs=[(5, 2)], labels=(5,))"


def _used():
    batches = iter([X])
    list(batches)
    return batches


class _Failing(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 4:
            raise ValueError("bad file 4")
        return X[0]


class _Ragged(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.ones(index + 1)


_NAN = torch.tensor([[1.0], [float("nan")]])

BATCH_MISTAKES = {
    "empty list": (lambda: [], "calibration data: no batch in it; expected a Dataset, a DataLoader"),
    "used up": (_used, "an iterator that gives its batches once and is used up; pass a list"),
    "empty tensor": (lambda: torch.ones(0, 3), r"an input of shape \[\(0, 3\)\] holds no image"),
    "empty batch": (lambda: [X, X[:0]], r"batch 1: an input of shape \[\(0, 2\)\] holds no image"),
    "scalar": (lambda: torch.tensor(1.0), "holds no image"),
    "NaN": (lambda: [X, _NAN], "calibration data, batch 1: 1 of 2 values are NaN or infinity"),
    "infinity": (lambda: [(X / 0, Y)], "batch 0: 10 of 10 values are NaN or infinity"),
    "None": (lambda: None, "got NoneType, expected a Dataset"),
    "number": (lambda: 3, "got int, expected a Dataset"),
    "text": (lambda: "digits", r"got the text 'digits'; load it first, as speedysnn\.data\.load\('digits'\)"),
    "numpy": (lambda: np.ones((2, 2)), "got ndarray, .*make it a tensor with torch.from_numpy"),
    "numpy batch": (lambda: [np.ones((2, 2))], "batch 0: got ndarray, expected a tensor"),
    "numpy in a pair": (lambda: [(np.ones((2, 2)), Y)], "got ndarray where a tensor of inputs was expected; make it"),
    "strings": (lambda: ["a"], "batch 0: got str, expected a tensor"),
    "empty tuple": (lambda: [()], "batch 0: an empty tuple, expected inputs"),
    "samples": (lambda: [(X[0], 3)], "the label is one number, so this is a single image"),
    "dict keys": (lambda: [{"picture": X}], "a dict with the keys 'picture'; the images must be below one of 'image'"),
    "dict labels": (lambda: [{"x": X, "y": X}], "labels are a tensor of torch.float32"),
    "lengths": (lambda: [(X, Y[:3])], r"batch 0: inputs and labels differ in length \(\(5, 2\), \(3,\)\)"),
    "tuple of batches": (lambda: (X, X[:3]), "a sequence of batches must be a list, not a tuple"),
    "bytes": (lambda: (X * 255).byte(), r"inputs are uint8; scale them as in training, for example images\.float"),
    "failing dataset": (_Failing, "reading batch 2 failed: ValueError: bad file 4"),
    "ragged dataset": (_Ragged, "reading batch 0 failed: RuntimeError"),
}


@pytest.mark.parametrize("mistake", BATCH_MISTAKES)
def test_batch_mistakes(mistake):
    make, message = BATCH_MISTAKES[mistake]
    with pytest.raises(DataError, match=message) as caught:
        list(iter_batches(make(), batch_size=2))
    assert "\n" not in str(caught.value)


def test_messages_use_the_callers_name_for_the_data():
    with pytest.raises(DataError, match=r"^test images, batch 0: "):
        list(iter_batches(_NAN, what="test images"))
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        list(iter_batches(X, batch_size=0))
