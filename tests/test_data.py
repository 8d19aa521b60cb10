"""Data by name and batches out of anything: what loads, that values survive, and what each mistake says."""

import gzip
import struct
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from speedysnn._data_files import DEBIAN
from speedysnn.data import Batch, ImageData, iter_batches, load, loader, split_holdout
from speedysnn.errors import DataError, InputError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder without a search folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPEEDYSNN_DATA", raising=False)


def _pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def _npz(name="a.npz", **arrays):
    np.savez(name, **arrays)
    return f"npz:{name}"


# --- every kind -----------------------------------------------------------------------------------------------------


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
    pixels = _pixels(*shape)
    images = load(_npz(x=pixels, y=np.arange(4)))
    want = torch.from_numpy(expected(pixels).copy()).float() / 255
    assert torch.equal(torch.stack([image for image, _ in images]), want)
    assert [label for _, label in images] == [0, 1, 2, 3]
    assert images.image_shape == tuple(want.shape[1:])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, np.float16, np.float32, np.float64, ">f4", np.bool_])
def test_npz_pixel_types(dtype):
    whole = np.dtype(dtype).kind in "iu"
    pixels = np.array([[[0, 255 if whole else 1]]]).astype(dtype)
    image, _ = load(_npz(x=pixels, y=[0]))[0]
    assert image.dtype == torch.float32
    assert image.tolist() == [[[0.0, 1.0]]]


def test_npz_splits_labels_and_classes():
    spec = _npz(x_train=_pixels(3, 4, 4), y_train=[[0], [1], [6]], x_test=_pixels(2, 4, 4), y_test=[0.0, 1.0])
    assert [label for _, label in load(spec, "train")] == [0, 1, 6]
    assert load(spec, "test").classes == 7


def test_npz_without_labels():
    images = load(_npz(x=_pixels(3, 4, 4)), normalize="0.5/0.5")
    assert not images.labelled
    assert images.classes == 0
    assert images[0].shape == (1, 4, 4)
    assert next(iter_batches(images)).labels is None


def _idx(array, zipped, cut=0):
    head = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    whole = head + array.tobytes()
    whole = whole[: len(whole) - cut]
    return gzip.compress(whole) if zipped else whole


def _fashion(folder, zipped=True, cut=0):
    folder.mkdir(parents=True, exist_ok=True)
    images, end = _pixels(7, 28, 28), ".gz" if zipped else ""
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte{end}").write_bytes(_idx(images, zipped, cut))
        (folder / f"{prefix}-labels-idx1-ubyte{end}").write_bytes(_idx(np.arange(7, dtype=np.uint8), zipped))
    return images


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist(tmp_path, monkeypatch, zipped):
    images = _fashion(tmp_path / "mine" / "FashionMNIST" / "raw", zipped)
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


def _cifar(folder, count=2):
    folder.mkdir(parents=True)
    records = np.concatenate([np.arange(count, dtype=np.uint8)[:, None], _pixels(count, 3072)], 1)
    for name in ("test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return records


@pytest.mark.parametrize("spec", ["cifar10", "cifar10:data", "cifar10:data/cifar-10-batches-bin"])
def test_cifar10_binary(tmp_path, spec):
    records = _cifar(tmp_path / "data" / "cifar-10-batches-bin")
    train, test = load(spec, "train"), load(spec, "test")
    assert (len(train), len(test), train.classes, train.image_shape) == (10, 2, 10, (3, 32, 32))
    image, label = train[9]
    assert label == 1
    assert torch.equal((image * 255).round().byte().flatten(), torch.from_numpy(records[1, 1:]))


@pytest.mark.parametrize("spec", ["cifar10", "cifar10:data", "cifar10:data/cifar10-part.npz"])
def test_cifar10_npz(tmp_path, spec):
    (tmp_path / "data").mkdir()
    np.savez("data/cifar10-part.npz", x_test=_pixels(3, 32, 32, 3), y_test=[0, 1, 2])
    found = load(spec, normalize="cifar10")
    assert (found.name, found.classes, found.image_shape) == ("cifar10", 10, (3, 32, 32))


def _folder(root, sizes=((6, 4),), classes=("cat", "dog"), suffix=".png"):
    for label, name in enumerate(classes):
        (Path(root) / name).mkdir(parents=True)
        for number, size in enumerate(sizes):
            Image.new("L", size, 40 * label).save(Path(root) / name / f"{number}{suffix}")


@pytest.mark.parametrize(("below", "split"), [("train", "train"), ("test", "test"), ("val", "test"), (".", "train")])
def test_image_folders(below, split):
    _folder(Path("set") / below)
    found = load("imagefolder:set", split)
    assert (found.name, found.classes, found.image_shape) == ("set", 2, (3, 4, 6))
    image, label = found[1]
    assert label == 1
    assert torch.allclose(image, torch.full((3, 4, 6), 40 / 255))


def test_image_folder_resized():
    _folder("set", sizes=((6, 4), (40, 30)))
    found = load("imagefolder:set@8", limit=3)
    assert {tuple(image.shape) for image, _ in found} == {(3, 8, 8)}


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


def test_functions(functions):
    tensors = load(f"{functions}:tensors")
    assert (len(tensors), tensors.classes, tensors.image_shape) == (4, 3, (1, 2, 2))
    assert tensors[0][0].tolist() == [[[1.0, 1.0], [1.0, 1.0]]]
    dataset = load("mine:dataset", limit=2)
    assert (len(dataset), dataset.classes, dataset.image_shape) == (2, 3, (2,))
    assert load(f"{functions}:unlabelled")[0].shape == (7,)


# --- limit, normalize, split, loader --------------------------------------------------------------------------------


def test_limit_is_a_seeded_random_choice():
    whole, first, again, other = (load("digits", limit=n, seed=s) for n, s in ((None, 0), (50, 0), (50, 0), (50, 1)))
    labels = [[label for _, label in part] for part in (whole, first, again, other)]
    order = torch.randperm(597, generator=torch.Generator().manual_seed(0))[:50].tolist()
    assert labels[1] == labels[2] == [labels[0][index] for index in order]
    assert labels[1] != labels[3]
    assert len(load("digits", limit=9999)) == 597


@pytest.mark.parametrize("normalize", ["imagenet", "cifar10", "0.5,0.4,0.3/0.2,0.1,1"])
def test_normalize(normalize):
    spec = _npz(x=_pixels(2, 5, 5, 3), y=[0, 1])
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


# --- mistakes -------------------------------------------------------------------------------------------------------

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
    "wrong keys": ({"images": _pixels(2, 4, 4)}, r"holds images, expected x_test and y_test \(or x and y\)$"),
    "other split": ({"x_train": _pixels(2, 4, 4)}, r"holds x_train, .*for its other part ask for split='train'"),
    "no images": ({"x": _pixels(0, 4, 4)}, r"with N at least 1, got \(0, 4, 4\)"),
    "rows": ({"x": _pixels(5, 64)}, r"expected images of shape .* got \(5, 64\); reshape them, or serve"),
    "unclear axes": ({"x": _pixels(2, 5, 6, 7)}, r"cannot tell which axis of the shape \(2, 5, 6, 7\)"),
    "float 0..255": ({"x": np.array([[[0.0, 255.0]]])}, r"go from 0 to 255, expected \[0, 1\]"),
    "integers": ({"x": np.array([[[0, 4000]]])}, "are int64 from 0 to 4000, expected 0 to 255"),
    "text": ({"x": np.array([[["a"]]])}, "pixels are <U1, expected uint8 or floats"),
    "NaN": ({"x": np.array([[[0.5]], [[np.nan]]])}, "1 of 2 images hold NaN or infinity, first 1"),
    "fewer labels": ({"x": _pixels(3, 4, 4), "y": [0, 1]}, "expected 3 labels, one an image, .* got shape"),
    "one-hot": ({"x": _pixels(3, 4, 4), "y": np.eye(3)}, "give class numbers, not one-hot rows"),
    "negative labels": ({"x": _pixels(2, 4, 4), "y": [-1, 0]}, r"whole numbers from 0 up, got int64 such as \[-1, 0"),
    "half labels": ({"x": _pixels(2, 4, 4), "y": [0.5, 0]}, "whole numbers from 0 up, got float64"),
    "text labels": ({"x": _pixels(2, 4, 4), "y": ["a", "b"]}, "whole numbers from 0 up, got <U1"),
}


@pytest.mark.parametrize("mistake", ARRAYS)
def test_array_mistakes(mistake):
    arrays, message = ARRAYS[mistake]
    with pytest.raises(DataError, match=message):
        load(_npz(**arrays))


def test_normalising_twice():
    with pytest.raises(InputError, match="hold values below 0, so they are normalised already; use 'none'"):
        load(_npz(x=np.array([[[-1.0, 2.0]]])), normalize="0.5/0.5")


def _write(name, content):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content)


def _cut_npz():
    np.savez("a.npz", x=_pixels(9, 9, 9))
    _write("a.npz", Path("a.npz").read_bytes()[:300])


def _cut_gzip():
    _fashion(Path("f"))
    file = Path("f/t10k-images-idx3-ubyte.gz")
    file.write_bytes(file.read_bytes()[:-20])


def _damaged_image():
    _folder("f")
    Path("f/cat/0.png").write_bytes(b"no image")


def _boundless_image():
    _folder("f", suffix=".png")
    file = Path("f/cat/0.png")
    content = file.read_bytes()
    size = struct.pack(">II", 9000, 9000)
    file.write_bytes(content[:16] + size + content[24:29] + struct.pack(">I", zlib.crc32(content[12:16] + size + content[24:29])) + content[33:])


def _other_classes():
    _folder("f/train")
    _folder("f/test", classes=("cat",))


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
    "npy": ("npz:a.npy", lambda: np.save("a.npy", _pixels(2, 2, 2)), "is a single array, expected an .npz file"),
    "fashion folder missing": ("fashion-mnist:f", None, "the folder f does not exist; give the folder"),
    "fashion no name": ("fashion-mnist:~a\0b", None, "does not exist; give the folder"),
    "fashion file": ("fashion-mnist:f", lambda: _write("f", b"x"), "the folder f is a file"),
    "fashion not there": (
        "fashion-mnist:f",
        lambda: Path("f").mkdir(),
        "no t10k-images-idx3-ubyte and .* in f, f/fash",
    ),
    "fashion cut gzip": ("fashion-mnist:f", _cut_gzip, "not a whole gzip file"),
    "fashion cut": ("fashion-mnist:f", lambda: _fashion(Path("f"), False, 9), r"is cut short: .* sizes \(7, 28, 28\)"),
    "fashion web page": (
        "fashion-mnist:f",
        lambda: [_fashion(Path("f"), False), _write("f/t10k-images-idx3-ubyte", b"<html>")],
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
        lambda: np.savez("cifar10.npz", x=_pixels(2, 8, 8), y=[0, 1]),
        r"is not CIFAR-10: expected labelled images \(3, 32, 32\) of 10 classes, got \(1, 8, 8\) of 2",
    ),
    "cifar unlabelled": (
        "cifar10:cifar10.npz",
        lambda: np.savez("cifar10.npz", x=_pixels(2, 32, 32, 3)),
        "is not CIFAR-10: .* got no labels",
    ),
    "images missing": ("imagefolder:f", None, "the folder f does not exist; expected 'imagefolder:DIR'"),
    "images unnamed": ("imagefolder:", None, r"the folder \(none given\) does not exist"),
    "images a file": ("imagefolder:f", lambda: _write("f", b"x"), "the folder f is a file"),
    "images none": ("imagefolder:f", lambda: Path("f").mkdir(), "is not a folder of images: expected one folder a"),
    "images class empty": ("imagefolder:f", lambda: Path("f/cat").mkdir(parents=True), "is not a folder of images"),
    "images only train": ("imagefolder:f", lambda: _folder("f/train"), "f has train, but no test or val or valid"),
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
    _folder("f", sizes=((6, 4), (8, 8)))
    with pytest.raises(DataError, match=r"1\.png is 8x8 \(width x height\), the first image 6x4; .*'imagefolder:f@4'"):
        list(load("imagefolder:f"))
    with pytest.raises(InputError, match="the size after @ must be at least 1"):
        load("imagefolder:f@0")


def test_a_missing_training_batch(tmp_path):
    _cifar(tmp_path / "data")
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


# --- batches --------------------------------------------------------------------------------------------------------

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
