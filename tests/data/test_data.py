"""Data by name: what loads, that values survive, and how they are chosen, normalised, split and put into batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from speedysnn.data import ImageData, iter_batches, load, loader, split_holdout
from speedysnn.data.readers import DEBIAN
from tests.material import data_files
from tests.material.data_files import cifar_files, fashion_files, image_folder, npz_of, random_pixels

elsewhere, functions = data_files.elsewhere, data_files.functions


@pytest.mark.parametrize(("split", "count"), [("train", 1200), ("test", 597)])
def test_digits(split, count):
    digits = load("digits", split)
    image, label = digits[0]
    assert (len(digits), digits.name, digits.classes, digits.image_shape) == (count, "digits", 10, (1, 8, 8))
    assert image.dtype == torch.float32
    assert isinstance(label, int)
    stacked = torch.stack([image for image, _ in digits])
    assert (stacked.min(), stacked.max()) == (0, 1)
    assert repr(digits) == f"ImageData('digits', {count} images (1, 8, 8), 10 classes)"


LAYOUTS = {
    "NHW": ((4, 5, 6), lambda a: a[:, None]),
    "NHWC": ((4, 5, 6, 3), lambda a: a.transpose(0, 3, 1, 2)),
    "NCHW": ((4, 3, 5, 6), lambda a: a),
    "NHWC, small": ((4, 3, 3, 1), lambda a: a.transpose(0, 3, 1, 2)),
    "NCHW, many channels": ((4, 16, 5, 5), lambda a: a),
    "NHWC, many channels": ((4, 5, 5, 16), lambda a: a.transpose(0, 3, 1, 2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_npz_layouts(layout):
    shape, expected = LAYOUTS[layout]
    pixels = random_pixels(*shape)
    images = load(npz_of(x=pixels, y=np.arange(4)))
    want = torch.from_numpy(expected(pixels).copy()).float() / 255
    assert torch.equal(torch.stack([image for image, _ in images]), want)
    assert [label for _, label in images] == [0, 1, 2, 3]
    assert images.image_shape == tuple(want.shape[1:])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, np.float16, np.float32, np.float64, ">f4", np.bool_])
def test_npz_pixel_types(dtype):
    whole = np.dtype(dtype).kind in "iu"
    pixels = np.array([[[0, 255 if whole else 1]]]).astype(dtype)
    image, _ = load(npz_of(x=pixels, y=[0]))[0]
    assert image.dtype == torch.float32
    assert image.tolist() == [[[0.0, 1.0]]]


def test_npz_splits_labels_and_classes():
    spec = npz_of(x_train=random_pixels(3, 4, 4), y_train=[[0], [1], [6]], x_test=random_pixels(2, 4, 4), y_test=[0.0, 1.0])
    assert [label for _, label in load(spec, "train")] == [0, 1, 6]
    assert load(spec, "test").classes == 7


def test_npz_without_labels():
    images = load(npz_of(x=random_pixels(3, 4, 4)), normalize="0.5/0.5")
    assert not images.labelled
    assert images.classes == 0
    assert images[0].shape == (1, 4, 4)
    assert next(iter_batches(images)).labels is None


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist(tmp_path, monkeypatch, zipped):
    images = fashion_files(tmp_path / "mine" / "FashionMNIST" / "raw", zipped)
    for spec, variable in (("fashion-mnist:mine", ""), ("fashion-mnist", "mine")):
        monkeypatch.setenv("SPEEDYSNN_DATA", variable)
        found = load(spec, "train")
        assert (found.name, found.classes, found.image_shape) == ("fashion-mnist", 10, (1, 28, 28))
        assert torch.equal((found[6][0] * 255).round().byte()[0], torch.from_numpy(images[6]))


def test_fashion_mnist_of_the_debian_package():
    if not DEBIAN.is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    found = load("fashion-mnist", "test", limit=100)
    assert found.classes == 10
    assert {label for _, label in found} == set(range(10))


@pytest.mark.parametrize("spec", ["cifar10", "cifar10:data", "cifar10:data/cifar-10-batches-bin"])
def test_cifar10_binary(tmp_path, spec):
    records = cifar_files(tmp_path / "data" / "cifar-10-batches-bin")
    train, test = load(spec, "train"), load(spec, "test")
    assert (len(train), len(test), train.classes, train.image_shape) == (10, 2, 10, (3, 32, 32))
    image, label = train[9]
    assert label == 1
    assert torch.equal((image * 255).round().byte().flatten(), torch.from_numpy(records[1, 1:]))


@pytest.mark.parametrize("spec", ["cifar10", "cifar10:data", "cifar10:data/cifar10-part.npz"])
def test_cifar10_npz(tmp_path, spec):
    (tmp_path / "data").mkdir()
    np.savez("data/cifar10-part.npz", x_test=random_pixels(3, 32, 32, 3), y_test=[0, 1, 2])
    found = load(spec, normalize="cifar10")
    assert (found.name, found.classes, found.image_shape) == ("cifar10", 10, (3, 32, 32))


@pytest.mark.parametrize(("below", "split"), [("train", "train"), ("test", "test"), ("val", "test"), (".", "train")])
def test_image_folders(below, split):
    image_folder(Path("set") / below)
    found = load("imagefolder:set", split)
    assert (found.name, found.classes, found.image_shape) == ("set", 2, (3, 4, 6))
    image, label = found[1]
    assert label == 1
    assert torch.allclose(image, torch.full((3, 4, 6), 40 / 255))


def test_image_folder_resized():
    image_folder("set", sizes=((6, 4), (40, 30)))
    found = load("imagefolder:set@8", limit=3)
    assert {tuple(image.shape) for image, _ in found} == {(3, 8, 8)}


def test_functions(functions):
    tensors = load(f"{functions}:tensors")
    assert (len(tensors), tensors.classes, tensors.image_shape) == (4, 3, (1, 2, 2))
    assert tensors[0][0].tolist() == [[[1.0, 1.0], [1.0, 1.0]]]
    dataset = load("mine:dataset", limit=2)
    assert (len(dataset), dataset.classes, dataset.image_shape) == (2, 3, (2,))
    assert load(f"{functions}:unlabelled")[0].shape == (7,)


def test_limit_is_a_seeded_random_choice():
    whole, first, again, other = (load("digits", limit=n, seed=s) for n, s in ((None, 0), (50, 0), (50, 0), (50, 1)))
    labels = [[label for _, label in part] for part in (whole, first, again, other)]
    order = torch.randperm(597, generator=torch.Generator().manual_seed(0))[:50].tolist()
    assert labels[1] == labels[2] == [labels[0][index] for index in order]
    assert labels[1] != labels[3]
    assert len(load("digits", limit=9999)) == 597


@pytest.mark.parametrize("normalize", ["imagenet", "cifar10", "0.5,0.4,0.3/0.2,0.1,1"])
def test_normalize(normalize):
    spec = npz_of(x=random_pixels(2, 5, 5, 3), y=[0, 1])
    plain, normal = load(spec, normalize="none"), load(spec, normalize=normalize)
    mean, std = {
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    }.get(normalize, ((0.5, 0.4, 0.3), (0.2, 0.1, 1)))
    want = (plain[1][0] - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(normal[1][0], want)


def test_split_holdout():
    digits = load("digits", "train", limit=100)
    train, held = split_holdout(digits, 0.2, seed=3)
    assert isinstance(train, ImageData)
    assert (len(train), len(held), held.name, held.classes) == (80, 20, "digits", 10)
    images = torch.stack([image for part in (train, held) for image, _ in part]).flatten(1)
    whole = torch.stack([image for image, _ in digits]).flatten(1)
    assert sorted(images.tolist()) == sorted(whole.tolist())
    assert torch.equal(split_holdout(digits, 0.2, seed=3)[1][0][0], held[0][0])
    assert isinstance(split_holdout(TensorDataset(torch.arange(10)), 0.5)[0], Subset)


def test_loader_order_depends_on_the_seed_alone():
    digits = load("digits", limit=50)
    runs = [torch.cat([y for _, y in loader(digits, 16, shuffle=True, seed=s)]).tolist() for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert len(loader(digits, 16, drop_last=True)) == 3
    assert len(loader(digits)) == 1
