"""Good files of every kind that the package reads, made once in a folder; the fuzz targets start from them."""

import gzip
import io
import json
import logging
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as dump_tensors
from torch import nn

from speedysnn import artifact, convert
from speedysnn.finetune import checkpoint as runs
from speedysnn.finetune.checkpoint import Origin
from speedysnn.finetune.config import Config
from tests.material.networks import Small, randomise

USER = "from torch import nn\n\ndef make(num_classes=3):\n    return nn.Linear(4, num_classes)\n\nnumber = 3\n"


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3), nn.ReLU6(),
                         nn.Linear(3, 3))  # fmt: skip


def make(root: Path) -> Path:
    """Fill the folder."""
    torch.manual_seed(0)
    snn = convert.to_spiking(small().eval(), torch.randn(16, 1, 6, 6), timesteps=3, spikes="ternary", delay=1, correct="bias")
    artifact.save(snn, root / "net.snn")
    config = Config(epochs_quantized=1, epochs_spiking=0)
    (root / "run").mkdir()
    runs.write(root / "run", snn, runs.RunState(best=runs.snapshot(snn), history=[{"epoch": 1}]), Origin.of(snn, config))
    _checkpoints(root)
    _data(root)
    _programs(root)
    (root / "user.py").write_text(USER)
    (root / "bad.py").write_text("def f(:\n")
    return root


def _checkpoints(root: Path) -> None:
    weights = {"first.weight": torch.randn(4, 3), "first.bias": torch.randn(4), "n": torch.tensor(3)}
    torch.save({"state_dict": weights, "epoch": 3, "args": np.float64(0.5)}, root / "weights.pth")
    torch.save({"model": {"module.w": torch.randn(3).half()}, "ema": {"w": torch.randn(3)}}, root / "nested.pth")
    torch.save(weights, root / "legacy.pth", _use_new_zipfile_serialization=False)
    (root / "plain.pth").write_bytes(pickle.dumps({"a": 1, "b": [1, 2, {"c": "d"}]}))
    (root / "weights.safetensors").write_bytes(dump_tensors(weights))
    folder = root / "sharded"
    folder.mkdir()
    for i, name in enumerate(("first.weight", "first.bias")):
        (folder / f"model-{i}.safetensors").write_bytes(dump_tensors({name: weights[name]}))
    index = {"metadata": {"total_size": 64}, "weight_map": {"first.weight": "model-0.safetensors", "first.bias": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _data(root: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 8, 8), dtype=np.uint8), np.arange(6) % 3
    np.savez(root / "images.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    np.savez_compressed(root / "floats.npz", x=rng.random((4, 3, 5, 5), dtype=np.float32), y=labels[:4])
    np.savez(root / "events.npz", x=rng.integers(0, 3, (3, 4, 2, 5, 5)).astype(np.float32))
    for split, count in (("train", 6), ("t10k", 4)):
        header = struct.pack(">4B3I", 0, 0, 8, 3, count, 4, 4)
        (root / f"{split}-images-idx3-ubyte").write_bytes(header + rng.bytes(count * 16))
        header = struct.pack(">4BI", 0, 0, 8, 1, count)
        (root / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + bytes(i % 3 for i in range(count))))
    (root / "test_batch.bin").write_bytes(b"".join(bytes([i]) + rng.bytes(3072) for i in range(3)))
    for kind in ("png", "jpg", "bmp", "webp", "ppm", "gif", "tif"):
        buffer = io.BytesIO()
        picture = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        picture.save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(kind, kind))
        (root / f"picture.{kind}").write_bytes(buffer.getvalue())


def _programs(root: Path) -> None:
    net = randomise(Small())
    x = torch.randn(2, 3, 16, 16)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False), str(root / "net.pt2"))
        try:
            torch.onnx.export(net, (x[:1],), str(root / "net.onnx"), dynamo=False, input_names=["x"], opset_version=17)
        except Exception:  # the package onnx is missing: the target is left out
            (root / "net.onnx").unlink(missing_ok=True)
    logging.disable(logging.NOTSET)
