"""Whatever converts can be saved, and what was saved can be loaded and gives the same."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import speedysnn
from speedysnn import convert
from speedysnn.errors import ArtifactError, ConversionError


class Net(nn.Module):
    """Layers of several kinds, and a function that uses them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.a, self.b, self.qkv, self.out = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 24), nn.Linear(8, 3)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("causal", torch.triu(torch.full((5, 5), -math.inf), 1))
        self.register_buffer("least", torch.full((1, 1, 1), -math.inf))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _pixels(net: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, c)
    return net.b(torch.relu(net.a(rows))).reshape(b, h * w, 2).mean(1)


def _windows(net: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    parts = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
    y = torch.relu(net.a(parts)).view(b, h // 2, w // 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, 8)
    return net.b(y).mean((1, 2))


def _frames(net: Any, x: Tensor) -> Tensor:
    b, t = x.shape[:2]
    y = torch.relu(net.conv(x.reshape(b * t, *x.shape[2:]))).mean((2, 3))
    return y.view(b, t, 4).mean(1)


def _rows_out(net: Any, x: Tensor) -> Tensor:
    return net.b(torch.relu(net.a(x.permute(0, 2, 3, 1).reshape(-1, 3))))


def _scores(net: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = net.qkv(x).chunk(3, -1)
    return q, k, v


def _attended(net: Any, mask: Tensor, x: Tensor) -> Tensor:
    return net.out(F.relu(F.scaled_dot_product_attention(*_scores(net, x), attn_mask=mask)).mean(1))


def _summed(net: Any, x: Tensor) -> Tensor:
    q, k, v = _scores(net, x)
    return net.out(F.relu((q @ k.transpose(1, 2) / 8**0.5 + net.causal).softmax(-1) @ v).mean(1))


def _chosen(net: Any, other: Any, x: Tensor) -> Tensor:
    q, k, v = _scores(net, x)
    scores = q @ k.transpose(1, 2) / 8**0.5
    return net.out(F.relu(torch.where(scores > -9, scores, other).softmax(-1) @ v).mean(1))


PIXELS, SEQUENCE = (3, 4, 4), (5, 8)
CAUSAL = torch.triu(torch.full((5, 5), -math.inf), 1)
NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[Any, Tensor], Tensor]]] = {
    "pixels as rows": (PIXELS, _pixels),
    "windows": (PIXELS, _windows),
    "frames": ((2, *PIXELS), _frames),
    "an output of rows": (PIXELS, _rows_out),
    "attn_mask of -inf": (SEQUENCE, lambda net, x: _attended(net, net.causal, x)),
    "attn_mask of -inf and numbers": (SEQUENCE, lambda net, x: _attended(net, net.causal + 0.5 * net.causal.exp(), x)),
    "attn_mask of truth values": (SEQUENCE, lambda net, x: _attended(net, net.causal == 0, x)),
    "scores + mask": (SEQUENCE, _summed),
    "MultiheadAttention, float mask": (SEQUENCE, lambda net, x: net.out(F.relu(net.attention(x, x, x, attn_mask=net.causal)[0]).mean(1))),
    "MultiheadAttention, bool mask": (SEQUENCE, lambda net, x: net.out(F.relu(net.attention(x, x, x, attn_mask=net.causal < 0)[0]).mean(1))),
    "clamp(min=-inf)": (PIXELS, lambda net, x: F.relu(net.conv(x)).clamp(min=-math.inf).mean((2, 3))),
    "clamp(max=largest float)": (PIXELS, lambda net, x: net.conv(x).clamp(0, torch.finfo(x.dtype).max).mean((2, 3))),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_what_converts_is_saved_and_loaded(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    shape, function = NETWORKS[name]
    net, x = Net(function).eval(), torch.randn(8, *shape)
    snn = convert.to_spiking(net, x, allow_hybrid=True)
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    with torch.no_grad(), again.reading("analog"):
        torch.testing.assert_close(again(x), net(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(again(x), snn(x))
    ticks = torch.stack([again.step(x) for _ in range(again.timesteps)])
    torch.testing.assert_close(ticks.mean(0), again(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("other", ["number", "tensor"])
def test_infinity_that_time_would_make_no_number_is_refused(other: str) -> None:
    net = Net(lambda net, x: _chosen(net, net.least if other == "tensor" else -math.inf, x)).eval()
    with pytest.raises(ConversionError, match="infinity beside a branch"):
        convert.to_spiking(net, torch.randn(8, *SEQUENCE), allow_hybrid=True)


def test_save_refuses_what_load_would(tmp_path) -> None:
    snn = convert.to_spiking(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(8, 3))
    snn.layer("2").weight.data[0, 0] = math.nan
    with pytest.raises(ArtifactError, match="nothing was saved.*layer:2:weight holds NaN or infinity"):
        speedysnn.save(snn, tmp_path / "net.snn")
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_loaded_is_refused_before_calibrating() -> None:
    read = []

    def batches() -> Iterator[Tensor]:
        for number in range(3):
            read.append(number)
            yield torch.rand(8, 3)

    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ConversionError, match="not loaded again: provenance: expected JSON data"):
        convert.to_spiking(net, batches(), provenance={"made": object()})
    assert read == [0]


def test_rows_that_do_not_follow_the_images_are_refused(tmp_path) -> None:
    """Two images make six rows, three make eight: whose rows they are nobody can say."""
    snn = convert.to_spiking(Net(_pixels).eval(), torch.rand(8, *PIXELS))
    saved = speedysnn.save(snn, tmp_path / "net.snn")
    text = (saved / "network.json").read_text(encoding="utf-8")
    assert '"shape": [\n      -1,\n      3\n     ]' in text
    (saved / "network.json").write_text(text.replace("      -1,\n      3\n", "      24,\n      -1\n"), encoding="utf-8")
    with pytest.raises(ArtifactError, match="images|cannot run"):
        speedysnn.load(saved)
