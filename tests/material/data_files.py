"""Files of images as other programs write them, and functions that return data, for the tests of data."""

import gzip
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder without a search folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPEEDYSNN_DATA", raising=False)


def random_pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def npz_of(name="a.npz", **arrays):
    np.savez(name, **arrays)
    return f"npz:{name}"


def idx_bytes(array, zipped, cut=0):
    head = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    whole = head + array.tobytes()
    whole = whole[: len(whole) - cut]
    return gzip.compress(whole) if zipped else whole


def fashion_files(folder, zipped=True, cut=0):
    folder.mkdir(parents=True, exist_ok=True)
    images, end = random_pixels(7, 28, 28), ".gz" if zipped else ""
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte{end}").write_bytes(idx_bytes(images, zipped, cut))
        (folder / f"{prefix}-labels-idx1-ubyte{end}").write_bytes(idx_bytes(np.arange(7, dtype=np.uint8), zipped))
    return images


def cifar_files(folder, count=2):
    folder.mkdir(parents=True)
    records = np.concatenate([np.arange(count, dtype=np.uint8)[:, None], random_pixels(count, 3072)], 1)
    for name in ("test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return records


def image_folder(root, sizes=((6, 4),), classes=("cat", "dog"), suffix=".png"):
    for label, name in enumerate(classes):
        (Path(root) / name).mkdir(parents=True)
        for number, size in enumerate(sizes):
            Image.new("L", size, 40 * label).save(Path(root) / name / f"{number}{suffix}")


FUNCTIONS = """
    import torch
    from torch.utils.data import IterableDataset, TensorDataset

    def tensors(split):
        return torch.full((4, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([0, 1, 2, 2])

    def unlabelled(split):
        return torch.randn(4, 7)

    def dataset(split, size=3):
        data = TensorDataset(torch.ones(size, 2), torch.arange(size))
        data.classes = ["a", "b", "c"]
        return data

    def no_split():
        return torch.ones(1, 1)

    def broken(split):
        raise KeyError(split)

    def text(split):
        return "images"

    def lengths(split):
        return torch.ones(3, 1), torch.arange(2)

    def empty(split):
        return torch.ones(0, 1)

    def stream(split):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter(())
        return Stream()

    def bad_sample(split):
        class Bad(torch.utils.data.Dataset):
            def __len__(self):
                return 2
            def __getitem__(self, index):
                raise OSError("disk gone")
        return Bad()
"""


@pytest.fixture
def functions(tmp_path):
    """A file of functions that return data."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(FUNCTIONS))
    yield "mine.py"
    sys.modules.pop("mine", None)
