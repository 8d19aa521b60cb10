"""Convert, evaluate and tune a network; what comes out as a line of hashes. Run as a program or imported."""

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from speedysnn import analysis, convert, data, finetune
from speedysnn.assets.digits import load_digits_net

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
IMAGES, WEIGHTS = SHARED / "cifar10-subset.npz", SHARED / "resnet20-12fca82f.th"


def digits() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """(source, training images, their labels, test images)."""
    train, test = data.load("digits", "train", limit=96), data.load("digits", "test", limit=64)
    x, y = zip(*(train[i] for i in range(len(train))), strict=True)
    return load_digits_net("avg"), torch.stack(x), torch.tensor(y), torch.stack([test[i][0] for i in range(len(test))])


def random_net() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A net wide enough for events, of random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b, stride in ((3, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(a, b, 3, stride, 1), nn.ReLU()]
    ann = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    x = torch.rand(48, 3, 16, 16)
    return ann, x, torch.arange(48) % 10, torch.rand(40, 3, 16, 16)


def published(images: int = 96) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The published ResNet-20 and so many test images."""
    from speedysnn.sources import load_model

    network = f"{ROOT / 'reports' / 'cifar10_resnet20' / 'resnet20.py'}:make"
    train = data.load(f"npz:{IMAGES}", "train", normalize="imagenet", limit=128)
    test = data.load(f"npz:{IMAGES}", "test", normalize="imagenet", limit=images)
    x, y = zip(*(train[i] for i in range(len(train))), strict=True)
    held_out = torch.stack([test[i][0] for i in range(len(test))])
    return load_model(network, checkpoint=WEIGHTS).model, torch.stack(x), torch.tensor(y), held_out


CASES = {"digits": digits, "random": random_net, "published": published}


def hashed(tensors: Iterable[Tensor]) -> str:
    """Of all bits."""
    out = hashlib.sha256()
    for tensor in tensors:
        out.update(tensor.detach().contiguous().numpy().tobytes())
    return out.hexdigest()[:16]


def found(case: str) -> dict[str, str]:
    """What one conversion, its evaluation and a short tuning run give."""
    ann, x, y, test = CASES[case]()
    out: dict[str, str] = {}
    for delay in (0, "full"):
        snn = convert.to_spiking(ann, x, timesteps=8, delay=delay, correct="none")  # made for one look-ahead
        with torch.no_grad():
            out[f"spiking {delay}"] = hashed([snn.read("spiking", test)])
            out[f"quantized {delay}"] = hashed([snn.read("quantized", test)])
        out[f"network {delay}"] = hashed(snn.state_dict().values())
    out["evaluation"] = json.dumps(asdict(analysis.evaluate(snn, [(test[:32], torch.arange(32) % 10)])), sort_keys=True)
    snn = convert.to_spiking(ann, x, timesteps=4)
    config = finetune.Config(epochs_quantized=1, epochs_spiking=1, batch_size=32)
    finetune.fit(snn, torch.utils.data.TensorDataset(x[:64], y[:64]), config=config)
    out["tuned"] = hashed(snn.state_dict().values())
    with torch.no_grad():
        out["tuned spiking"] = hashed([snn(test)])
    return out


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({case: found(case) for case in sys.argv[2:]}))
