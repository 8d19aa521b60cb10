"""Corrections: the gap they are defined on shrinks, the analog reading stays, streaming and artifacts agree."""

import pytest
import torch
from torch import Tensor, nn

import speedysnn
from speedysnn import convert, data
from speedysnn.assets.digits import load_digits_net
from speedysnn.convert.correct import KINDS, channel_means, images_for
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork

DIGITS = data.load("digits")
CORRECTIONS = [kind for kind in KINDS if kind != "none"]


class Shared(nn.Module):
    """A layer without bias read twice, and a shortcut: nothing a bias could be folded into."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = torch.relu(y) + torch.relu(-y)
        return self.out(torch.relu(self.b(z) + z).mean((2, 3)))


def images(count: int = 256) -> Tensor:
    return torch.stack([DIGITS[i][0] for i in range(count)])


def gaps(snn: SpikingNetwork, x: Tensor) -> dict[str, float]:
    """Mean absolute gap a channel between the spiking output and the analog activation, for every layer."""
    means: dict[str, dict[str, Tensor]] = {"analog": {}, "spiking": {}}
    for reading, found in means.items():
        with torch.no_grad(), snn.reading(reading):
            snn(x, observer=lambda tap, found=found: found.update({tap.name: channel_means(tap.output, tap.neuron.channel_dim)}))
    return {name: float((means["spiking"][name] - means["analog"][name]).abs().mean()) for name in means["analog"]}


@pytest.mark.parametrize("kind", CORRECTIONS)
@pytest.mark.parametrize(("steps", "delay"), [(2, 0), (4, 0), (4, 1), (4, "full")])
def test_the_gap_shrinks_and_the_analog_reading_stays(kind: str, steps: int, delay) -> None:
    source, x = load_digits_net("avg"), images()
    plain = convert.to_spiking(source, x, steps, threshold="max", delay=delay)
    snn = convert.to_spiking(source, x, steps, threshold="max", delay=delay, correct=kind)
    before, after = gaps(plain, x), gaps(snn, x)
    assert sum(after.values()) < 0.8 * sum(before.values()), (before, after)
    with torch.no_grad(), snn.reading("analog"), plain.reading("analog"):
        assert torch.equal(snn(x), plain(x))
        torch.testing.assert_close(snn(x), source(x), rtol=1e-4, atol=1e-4)
    record = snn.provenance["correction"]
    assert (record["kind"], record["images"], record["timesteps"]) == (kind, 256, steps)
    for change, layers in record["passes"].items():
        assert change in kind
        assert all(row["gap_after"] <= row["gap_before"] for row in layers.values())
    last = record["passes"][kind.split("+")[-1]]
    assert {name: row["gap_after"] for name, row in last.items()} == pytest.approx(after, rel=1e-3, abs=1e-6)


def test_layers_without_bias_shared_and_behind_shortcuts() -> None:
    x = torch.randn(128, 1, 8, 8)
    for granularity in ("layer", "channel"):
        plain = convert.to_spiking(Shared(), x, 4, threshold="max", granularity=granularity)
        total = sum(gaps(plain, x).values())
        for kind in CORRECTIONS:
            convert.apply_correction(plain, x, kind)
            assert sum(gaps(plain, x).values()) < 0.9 * total
            assert len(plain.summary()) == 3
        assert "offset" not in "".join(name for name, _ in plain.named_parameters())


@pytest.mark.parametrize("kind", CORRECTIONS)
@pytest.mark.parametrize("delay", [0, 1, "full"])
def test_save_load_stream_and_replay(kind: str, delay, tmp_path) -> None:
    x = images(64)
    snn = convert.to_spiking(load_digits_net("max"), x, 4, delay=delay, correct=kind)
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    for reading in ("analog", "quantized", "spiking"):
        with torch.no_grad(), snn.reading(reading), again.reading(reading):
            assert torch.equal(snn(x), again(x))
    assert again.provenance["correction"] == snn.provenance["correction"]
    with torch.no_grad():
        whole = snn(x, per_step=True)
        outs = [snn.step(x if t < 4 else None) for t in range(snn.latency)]
    streamed = torch.stack([out for out in outs if out is not None]).cumsum(0) / torch.arange(1, 5).view(-1, 1, 1)
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-4)


def test_recalibrate_and_none_take_corrections_back() -> None:
    x = images(128)
    plain = convert.to_spiking(load_digits_net("avg"), x, 4)
    for kind in CORRECTIONS:
        snn = convert.to_spiking(load_digits_net("avg"), x, 4, correct=kind)
        state = snn.state_dict()
        assert any(not torch.equal(value, state[name]) for name, value in plain.state_dict().items() if "v_init" in name) == (
            "potential" in kind
        )
        assert any("offset" in name for name in state) == ("bias" in kind)
        assert all(bool(((n.v_init >= 0) & (n.v_init <= 1)).all()) for n in snn.neurons.values())
        snn.recalibrate()
        assert snn.state_dict().keys() == plain.state_dict().keys()
        assert all(torch.equal(value, snn.state_dict()[name]) for name, value in plain.state_dict().items())
        twice = convert.apply_correction(convert.apply_correction(snn, x, kind), x, kind)
        assert all(torch.equal(value, twice.state_dict()[name]) for name, value in state.items())
        assert convert.apply_correction(twice, x, "none").provenance.get("correction") is None


def test_bounded_images_and_bad_kinds() -> None:
    snn = convert.to_spiking(load_digits_net("avg"), images(300), 4, correct="bias")
    assert snn.provenance["correction"]["images"] == 256
    assert snn.provenance["calibration_images"] == 300
    snn.timesteps = 2**12
    assert images_for(snn) == 2**26 // 2**12 // (16 * 64)
    with pytest.raises(InputError, match="correct: expected one of 'none', 'bias'.*got 'weights'"):
        convert.apply_correction(snn, images(4), "weights")
