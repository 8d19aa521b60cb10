"""The fuzz targets: each draws one mutated input from a `random.Random` and gives back what to call with it."""

import hashlib
import json
import random
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import speedysnn
from speedysnn import data
from speedysnn.artifact import NETWORK, WEIGHTS
from speedysnn.finetune import checkpoint as runs
from speedysnn.finetune.checkpoint import Origin
from speedysnn.finetune.config import Config
from speedysnn.sources import load_model, read_checkpoint
from speedysnn.sources.exported import load_program
from speedysnn.sources.onnx_reader import load_onnx
from tests.fuzz import mutate, pickles

Case = Callable[[], object]


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def artifact(rng: random.Random, good: Path, work: Path) -> Case:
    """A saved network: its JSON, its tensors with the checksum made right again, or its bytes; then one image is run."""
    document, weights = json.loads((good / "net.snn" / NETWORK).read_text()), (good / "net.snn" / WEIGHTS).read_bytes()
    kind = rng.randrange(10)
    if kind < 2:
        weights = mutate.safetensors(rng, weights)
        document["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    elif kind == 2:
        weights = mutate.some_bytes(rng, weights)
    text = mutate.dumped(mutate.some_json(rng, document) if kind > 2 else document)
    if kind == 9:
        text = mutate.some_bytes(rng, text)
    _write(work / "net.snn" / NETWORK, text)
    _write(work / "net.snn" / WEIGHTS, weights)

    def call() -> None:
        snn = speedysnn.load(work / "net.snn")
        if snn.timesteps > 64 or len(snn.input_shapes) != 1:
            return
        snn(torch.zeros(1, *snn.input_shapes[0]))
        snn.read("analog", torch.zeros(1, *snn.input_shapes[0]))
        str(snn.summary())
        speedysnn.network.weights_tuned(snn)
        assert isinstance(snn.provenance.get("normalize"), str | None)

    return call


def checkpoint(rng: random.Random, good: Path, work: Path) -> Case:
    """Files of torch.save, old and new, of safetensors, in shards, and pickles that call what they should not."""
    kind = rng.randrange(8)
    if kind < 3:
        source = good / rng.choice(("weights.pth", "nested.pth"))
        change = pickles.spoiled if kind else lambda r, _, content: mutate.some_bytes(r, content)
        content = mutate.archive(rng, source.read_bytes(), change)
    elif kind == 3:
        content = mutate.some_bytes(rng, (good / rng.choice(("legacy.pth", "plain.pth"))).read_bytes())
    elif kind == 4:
        content = pickles.hostile(rng)
    elif kind == 5:
        return partial(read_checkpoint, _write(work / "w.safetensors", mutate.safetensors(rng, (good / "weights.safetensors").read_bytes())))
    elif kind == 6:
        folder = work / "sharded"
        for file in (good / "sharded").iterdir():
            _write(folder / file.name, file.read_bytes())
        name = rng.choice(sorted(file.name for file in folder.iterdir()))
        change = mutate.json_bytes if name.endswith(".json") else mutate.safetensors
        _write(folder / name, change(rng, (folder / name).read_bytes()))
        return partial(read_checkpoint, folder)
    else:
        return partial(read_checkpoint, _write(work / "w.pth", pickles.archive(rng, (good / "weights.pth").read_bytes())))
    return partial(read_checkpoint, _write(work / "w.pth", content))


def pt2(rng: random.Random, good: Path, work: Path) -> Case:
    """An exported program: its graph, its tables of tensors, its members, its bytes."""

    def change(r: random.Random, name: str, content: bytes) -> bytes:
        if name.endswith(".json"):
            return mutate.json_bytes(r, content)
        return pickles.hostile(r) if r.random() < 0.3 else mutate.some_bytes(r, content)

    content = (good / "net.pt2").read_bytes()
    if rng.random() < 0.7:  # most of the archive is no graph, so the graph is picked out
        content = pickles.member(rng, content, lambda name: name.endswith(".json"), change)
    else:
        content = mutate.archive(rng, content, change)
    return partial(load_program, _write(work / "net.pt2", content))


def onnx(rng: random.Random, good: Path, work: Path) -> Case:
    """An ONNX file: its fields as the format's own reader sees them, or its bytes."""
    from tests.fuzz import protos

    content = (good / "net.onnx").read_bytes()
    content = mutate.some_bytes(rng, content) if rng.random() < 0.4 else protos.some_fields(rng, content)
    return partial(load_onnx, _write(work / "net.onnx", content))


_WORDS = ("torchvision", "resnet18", "squeezenet1_1", "alexnet", "vgg", ":", ":", "::", "user.py", "bad.py", "none.py", "make", "number",
          "digits", "fashion-mnist", "cifar10", "npz", "imagefolder", "images.npz", "events.npz", ".", "..", "/none", "~", "~nobody/x", "@", "@0",
          "@32", "@99999999999", ".pt2", ".onnx", "net.pt2", "\x00", "\n", " ", "\ud800", "é", "", "a" * 300, "%s", "{}", "__main__", "-", "*",
          "/dev/null", "/dev/zero", "/proc/self/mem", "C:\\x", "no.such.module", "speedysnn.assets.digits", "load_digits_net")  # fmt: skip


def _text(rng: random.Random) -> str:
    if rng.random() < 0.1:
        return "".join(chr(rng.randrange(rng.choice((128, 0x3000)))) for _ in range(rng.randrange(30)))
    return "".join(rng.choice(_WORDS) for _ in range(rng.choice((1, 2, 3, 3, 4, 6))))


def model_spec(rng: random.Random, good: Path, work: Path) -> Case:
    """What stands where a network is named."""
    text = rng.choice((_text(rng), f"torchvision:{_text(rng)}", f"user.py:{_text(rng)}", f"user.py:make{_text(rng)}"))
    classes = rng.choice((None, None, None, 0, -1, 3, 10**30))
    given = rng.choice((None, None, None, work / _text(rng), "w.pth::x", "\x00", good / "weights.pth"))
    return partial(load_model, text, checkpoint=given, num_classes=classes)


def data_spec(rng: random.Random, good: Path, work: Path) -> Case:
    """What stands where data is named, with its options."""
    text = rng.choice((_text(rng), f"npz:{_text(rng)}", f"imagefolder:{_text(rng)}", f"fashion-mnist:{_text(rng)}", f"cifar10:{_text(rng)}"))
    normalize = rng.choice((None, None, "imagenet", "0.5/0.5", "0/0", "nan/1", "1,2/1", "/", "1e400/1", "0.5/1e-400", _text(rng)))
    limit, seed = rng.choice((None, None, 1, 3, 0, -1, 10**30)), rng.choice((0, 0, 1, -1, 2**63, 2**64, 10**30))
    split = rng.choice(("train", "test", "test", "", "TEST", "val"))
    return partial(data.load, text, split, normalize=normalize, limit=limit, seed=seed)


def _all_of(spec: str, split: str) -> None:
    images = data.load(spec, split)
    for i in range(min(3, len(images))):
        images[i]


def _lying_npy(rng: random.Random, content: bytes) -> bytes:
    """An array whose header says other sizes or another type."""
    if rng.random() < 0.3:
        return mutate.some_bytes(rng, content)
    shape = tuple(rng.choice((0, 1, 2, 6, 8, 10**6, 10**9, 10**12, 2**62, -1)) for _ in range(rng.randrange(6)))
    kind = rng.choice(("|u1", "<f4", "<f8", "<i8", "|O", "<c16", "|S9", "<U9", "|V8", "<M8[s]", "<f2", ">i2", "|b1", "<U999999999", "bogus"))
    header = repr({"descr": kind, "fortran_order": rng.random() < 0.2, "shape": shape}).encode()
    if rng.random() < 0.2:
        header = mutate.some_bytes(rng, header)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) % 2**16) + header + content[128 : 128 + rng.choice((0, 64, 10**6))]


def npz(rng: random.Random, good: Path, work: Path) -> Case:
    """Arrays in an .npz file."""
    content = (good / rng.choice(("images.npz", "floats.npz", "events.npz"))).read_bytes()
    content = mutate.archive(rng, content, lambda r, _, member: _lying_npy(r, member))
    return partial(_all_of, f"npz:{_write(work / 'images.npz', content)}", rng.choice(("train", "test")))


def idx(rng: random.Random, good: Path, work: Path) -> Case:
    """MNIST's idx files, plain and gzip, and CIFAR-10's records."""
    if rng.random() < 0.2:
        _write(work / "test_batch.bin", mutate.some_bytes(rng, (good / "test_batch.bin").read_bytes()))
        return partial(_all_of, f"cifar10:{work}", "test")
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz"):
        content = (good / name).read_bytes()
        if rng.random() < 0.7:
            content = mutate.some_bytes(rng, content)
        _write(work / name, content)
    return partial(_all_of, f"fashion-mnist:{work}", "test")


def images(rng: random.Random, good: Path, work: Path) -> Case:
    """Pictures in a folder a class."""
    for i in range(2):
        kind = rng.choice(("png", "png", "jpg", "bmp", "webp", "ppm", "gif", "tif"))
        content = mutate.some_bytes(rng, (good / f"picture.{kind}").read_bytes())
        if kind == "png" and rng.random() < 0.3:  # sizes that lie
            content = content[:16] + struct.pack(">II", rng.choice(mutate.NUMBERS) % 2**32, rng.choice(mutate.NUMBERS) % 2**32) + content[24:]
        for old in (work / "photos" / str(i)).glob("*"):
            old.unlink()
        _write(work / "photos" / str(i) / f"a.{kind}", content)
    return partial(_all_of, f"imagefolder:{work / 'photos'}{rng.choice(('', '@8', '@8'))}", "test")


def run_state(rng: random.Random, good: Path, work: Path) -> Case:
    """The state that `finetune --resume` goes on with."""
    _write(work / "run" / runs.FILE, mutate.safetensors(rng, (good / "run" / runs.FILE).read_bytes()))
    snn = speedysnn.load(good / "net.snn")
    return partial(runs.read, work / "run", snn, Origin.of(snn, Config(epochs_quantized=1, epochs_spiking=0)))


TARGETS: dict[str, Callable[[random.Random, Path, Path], Case]] = {
    "artifact": artifact, "checkpoint": checkpoint, "pt2": pt2, "onnx": onnx, "model_spec": model_spec, "data_spec": data_spec,
    "npz": npz, "idx": idx, "images": images, "run_state": run_state,
}  # fmt: skip
