"""What each mistake in data says."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from speedysnn.data import load, loader, split_holdout
from speedysnn.errors import DataError, InputError
from tests.material import data_files
from tests.material.data_files import cifar_files, fashion_files, image_folder, npz_of, random_pixels

elsewhere, functions = data_files.elsewhere, data_files.functions


ARGUMENTS = [
    ("digit", {}, r"unknown data 'digit'; did you mean 'digits'\?; expected 'digits', 'fashion-mnist\[:DIR\]'"),
    ("a.npz", {}, r"did you mean 'npz:a\.npz'\?"),
    ("mine.py", {}, r"name the function in it too: 'mine\.py:FUNCTION'"),
    (".", {}, r"did you mean 'imagefolder:\.'\?"),
    ("digits:folder", {}, "takes nothing after a colon, got 'folder'"),
    ("digits", {"split": "val"}, "split must be 'train' or 'test', not 'val'"),
    ("digits", {"limit": 0}, "limit must be at least 1, not 0"),
    ("digits", {"normalize": "imagenet"}, r"is for 3 channel\(s\), the images have 1 channel\(s\); give one mean"),
    ("digits", {"normalize": "imgnet"}, "normalize='imgnet' is not understood; expected 'none', 'imagenet'"),
    ("digits", {"normalize": "0.5"}, "not understood"),
    ("digits", {"normalize": "0.5,0.5/1"}, "has 2 means and 1 deviations"),
    ("digits", {"normalize": "0.5/0"}, "every standard deviation must be above 0"),
]


@pytest.mark.parametrize(("spec", "options", "message"), ARGUMENTS)
def test_argument_mistakes(spec, options, message):
    with pytest.raises(InputError, match=message):
        load(spec, **options)


ARRAYS = {
    "wrong keys": ({"images": random_pixels(2, 4, 4)}, r"holds images, expected x_test and y_test \(or x and y\)$"),
    "other split": ({"x_train": random_pixels(2, 4, 4)}, r"holds x_train, .*for its other part ask for split='train'"),
    "no images": ({"x": random_pixels(0, 4, 4)}, r"with N at least 1, got \(0, 4, 4\)"),
    "rows": ({"x": random_pixels(5, 64)}, r"expected images of shape .* got \(5, 64\); reshape them, or serve"),
    "unclear axes": ({"x": random_pixels(2, 5, 6, 7)}, r"cannot tell which axis of the shape \(2, 5, 6, 7\)"),
    "float 0..255": ({"x": np.array([[[0.0, 255.0]]])}, r"go from 0 to 255, expected \[0, 1\]"),
    "integers": ({"x": np.array([[[0, 4000]]])}, "are int64 from 0 to 4000, expected 0 to 255"),
    "text": ({"x": np.array([[["a"]]])}, "pixels are <U1, expected uint8 or floats"),
    "NaN": ({"x": np.array([[[0.5]], [[np.nan]]])}, "1 of 2 images hold NaN or infinity, first 1"),
    "fewer labels": ({"x": random_pixels(3, 4, 4), "y": [0, 1]}, "expected 3 labels, one an image, .* got shape"),
    "one-hot": ({"x": random_pixels(3, 4, 4), "y": np.eye(3)}, "give class numbers, not one-hot rows"),
    "negative labels": ({"x": random_pixels(2, 4, 4), "y": [-1, 0]}, r"whole numbers from 0 up, got int64 such as \[-1, 0"),
    "half labels": ({"x": random_pixels(2, 4, 4), "y": [0.5, 0]}, "whole numbers from 0 up, got float64"),
    "text labels": ({"x": random_pixels(2, 4, 4), "y": ["a", "b"]}, "whole numbers from 0 up, got <U1"),
}


@pytest.mark.parametrize("mistake", ARRAYS)
def test_array_mistakes(mistake):
    arrays, message = ARRAYS[mistake]
    with pytest.raises(DataError, match=message):
        load(npz_of(**arrays))


def test_normalising_twice():
    with pytest.raises(InputError, match="hold values below 0, so they are normalised already; use 'none'"):
        load(npz_of(x=np.array([[[-1.0, 2.0]]])), normalize="0.5/0.5")


def _write(name, content):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content)


def _cut_npz():
    np.savez("a.npz", x=random_pixels(9, 9, 9))
    _write("a.npz", Path("a.npz").read_bytes()[:300])


def _cut_gzip():
    fashion_files(Path("f"))
    file = Path("f/t10k-images-idx3-ubyte.gz")
    file.write_bytes(file.read_bytes()[:-20])


def _damaged_image():
    image_folder("f")
    Path("f/cat/0.png").write_bytes(b"no image")


def _boundless_image():
    image_folder("f", suffix=".png")
    file = Path("f/cat/0.png")
    content = file.read_bytes()
    size = struct.pack(">II", 9000, 9000)
    file.write_bytes(content[:16] + size + content[24:29] + struct.pack(">I", zlib.crc32(content[12:16] + size + content[24:29])) + content[33:])


def _other_classes():
    image_folder("f/train")
    image_folder("f/test", classes=("cat",))


FILES = {
    "npz missing": ("npz:a.npz", None, r"a\.npz does not exist, expected an \.npz file; check the path"),
    "npz folder": ("npz:a.npz", lambda: Path("a.npz").mkdir(), r"a\.npz is a folder, expected an \.npz file"),
    "npz empty": ("npz:a.npz", lambda: _write("a.npz", b""), r"is empty \(0 bytes\)"),
    "npz text": ("npz:a.npz", lambda: _write("a.npz", b"<html>"), r"is not a whole \.npz file"),
    "npz cut": ("npz:a.npz", _cut_npz, r"is not a whole \.npz file"),
    "npz objects": (
        "npz:a.npz",
        lambda: np.savez("a.npz", x=np.array([{"a": 1}], dtype=object)),
        "holds Python objects, which are not opened as they may run code",
    ),
    "npy": ("npz:a.npy", lambda: np.save("a.npy", random_pixels(2, 2, 2)), "is a single array, expected an .npz file"),
    "fashion folder missing": ("fashion-mnist:f", None, "the folder f does not exist; give the folder"),
    "fashion no name": ("fashion-mnist:~a\0b", None, "does not exist; give the folder"),
    "fashion file": ("fashion-mnist:f", lambda: _write("f", b"x"), "the folder f is a file"),
    "fashion not there": (
        "fashion-mnist:f",
        lambda: Path("f").mkdir(),
        "no t10k-images-idx3-ubyte and .* in f, f/fash",
    ),
    "fashion cut gzip": ("fashion-mnist:f", _cut_gzip, "not a whole gzip file"),
    "fashion cut": ("fashion-mnist:f", lambda: fashion_files(Path("f"), False, 9), r"is cut short: .* sizes \(7, 28, 28\)"),
    "fashion web page": (
        "fashion-mnist:f",
        lambda: [fashion_files(Path("f"), False), _write("f/t10k-images-idx3-ubyte", b"<html>")],
        r"not an idx file of 3 dimension\(s\): it begins with b'<htm'",
    ),
    "cifar not there": ("cifar10", None, r"no test_batch\.bin and no cifar10\*\.npz in data, .*Nothing is downloaded"),
    "cifar pickles": ("cifar10:f", lambda: _write("f/cifar-10-batches-py/batches.meta", b""), "has the Python version"),
    "cifar cut": (
        "cifar10:f",
        lambda: _write("f/test_batch.bin", b"\0" * 3000),
        "is not a whole CIFAR-10 batch: 3,000",
    ),
    "cifar label": ("cifar10:f", lambda: _write("f/test_batch.bin", b"\xff" * 3073), "not a whole CIFAR-10 batch"),
    "cifar empty": ("cifar10:f", lambda: _write("f/test_batch.bin", b""), "is empty"),
    "cifar other images": (
        "cifar10:cifar10.npz",
        lambda: np.savez("cifar10.npz", x=random_pixels(2, 8, 8), y=[0, 1]),
        r"is not CIFAR-10: expected labelled images \(3, 32, 32\) of 10 classes, got \(1, 8, 8\) of 2",
    ),
    "cifar unlabelled": (
        "cifar10:cifar10.npz",
        lambda: np.savez("cifar10.npz", x=random_pixels(2, 32, 32, 3)),
        "is not CIFAR-10: .* got no labels",
    ),
    "images missing": ("imagefolder:f", None, "the folder f does not exist; expected 'imagefolder:DIR'"),
    "images unnamed": ("imagefolder:", None, r"the folder \(none given\) does not exist"),
    "images a file": ("imagefolder:f", lambda: _write("f", b"x"), "the folder f is a file"),
    "images none": ("imagefolder:f", lambda: Path("f").mkdir(), "is not a folder of images: expected one folder a"),
    "images class empty": ("imagefolder:f", lambda: Path("f/cat").mkdir(parents=True), "is not a folder of images"),
    "images only train": ("imagefolder:f", lambda: image_folder("f/train"), "f has train, but no test or val or valid"),
    "images classes differ": ("imagefolder:f", _other_classes, "has the classes cat, f/train has cat, dog; labels are"),
    "images that claim": ("imagefolder:f", _boundless_image, r"0\.png was not opened: \d+ bytes claim 9000x9000 pixels"),
    "images damaged": ("imagefolder:f", _damaged_image, r"f/cat/0\.png is damaged or not an image"),
}


@pytest.mark.parametrize("mistake", FILES)
def test_file_mistakes(mistake):
    spec, write, message = FILES[mistake]
    if write:
        write()
    with pytest.raises(DataError, match=message) as caught:
        load(spec)
    assert "\n" not in str(caught.value)


def test_images_of_different_sizes():
    image_folder("f", sizes=((6, 4), (8, 8)))
    with pytest.raises(DataError, match=r"1\.png is 8x8 \(width x height\), the first image 6x4; .*'imagefolder:f@4'"):
        list(load("imagefolder:f"))
    with pytest.raises(InputError, match="the size after @ must be at least 1"):
        load("imagefolder:f@0")


def test_a_missing_training_batch(tmp_path):
    cifar_files(tmp_path / "data")
    (tmp_path / "data" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin does not exist, expected a CIFAR-10 batch"):
        load("cifar10", "train")


FUNCTION_MISTAKES = [
    ("absent", r"has no function 'absent' \(it defines tensors, unlabelled"),
    ("no_split", "is called with split='test', but takes no argument split; add it"),
    ("broken", r"calling broken failed at mine\.py:\d+: KeyError: 'test'"),
    ("text", r"returned a str, expected a torch Dataset or tensors \(images, labels\)"),
    ("lengths", r"returned labels of torch\.int64, shape \(2,\), for 3 images; expected whole numbers of shape \(3,\)"),
    ("empty", "no images in its test split"),
    ("stream", "returned a Stream without a length; expected a map-style Dataset"),
    ("bad_sample", "reading sample 0 failed: OSError: disk gone"),
]


@pytest.mark.parametrize(("name", "message"), FUNCTION_MISTAKES)
def test_function_mistakes(functions, name, message):
    with pytest.raises(DataError, match=message):
        load(f"{functions}:{name}")


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 0.001, float("nan")])
def test_holdout_mistakes(fraction):
    with pytest.raises(InputError, match="cannot hold out the fraction"):
        split_holdout(load("digits", limit=20), fraction)


def test_loader_and_subset_mistakes():
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        loader(load("digits"), 0)
    with pytest.raises(InputError, match="no samples were chosen"):
        load("digits").subset([])
