"""Saving and loading: the same network, without the source's code; damage is named; nothing in the way is lost."""

import copy
import hashlib
import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes
from torch import nn

import speedysnn
from speedysnn import convert
from speedysnn.artifact import NETWORK, WEIGHTS
from speedysnn.errors import ArtifactError


@pytest.fixture(scope="module")
def snn() -> speedysnn.SpikingNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3), nn.ReLU6())
    return convert.to_spiking(net, torch.randn(16, 1, 8, 8), timesteps=3, spikes="ternary", delay=1)


def test_round_trip(snn, tmp_path: Path) -> None:
    x = torch.randn(4, 1, 8, 8)
    other = speedysnn.load(speedysnn.save(snn, tmp_path / "n.snn"))
    assert torch.equal(other(x), snn(x))
    assert {path.name for path in (tmp_path / "n.snn").iterdir()} == {NETWORK, WEIGHTS}
    assert other.provenance == snn.provenance
    for network in (other, copy.deepcopy(snn)):
        network.timesteps = 9
        network.recalibrate()


def test_nothing_in_the_way_is_lost(snn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for name in ("file", "folder"):
        for overwrite in (False, True):
            with pytest.raises(ArtifactError, match="no saved network"):
                speedysnn.save(snn, tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "mine").read_text() == "mine"
    target = speedysnn.save(snn, tmp_path / "n.snn")
    with pytest.raises(ArtifactError, match="overwrite"):
        speedysnn.save(snn, target)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ArtifactError, match="No space left"):
            speedysnn.save(snn, target, overwrite=True)
    speedysnn.load(target)
    speedysnn.save(snn, target, overwrite=True)
    speedysnn.load(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "n.snn"]


def test_damage_is_named(snn, tmp_path: Path) -> None:
    def damaged(change) -> str:
        target = speedysnn.save(snn, tmp_path / f"{len(list(tmp_path.iterdir()))}.snn")
        change(target)
        with pytest.raises(ArtifactError) as caught:
            speedysnn.load(target)
        return str(caught.value)

    def flip(target: Path) -> None:
        raw = bytearray((target / WEIGHTS).read_bytes())
        raw[-1] ^= 1
        (target / WEIGHTS).write_bytes(bytes(raw))

    def schema(target: Path) -> None:
        document = json.loads((target / NETWORK).read_text())
        (target / NETWORK).write_text(json.dumps({**document, "schema": "speedysnn/9"}))

    assert "checksum" in damaged(flip)
    assert "checksum" in damaged(lambda target: (target / WEIGHTS).write_bytes(b""))
    assert "missing" in damaged(lambda target: (target / WEIGHTS).unlink())
    assert "cannot be read" in damaged(lambda target: (target / NETWORK).write_text("{"))
    assert "speedysnn/9" in damaged(schema)
    with pytest.raises(ArtifactError, match="nothing is there"):
        speedysnn.load(tmp_path / "none.snn")


def paths(value, prefix=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*prefix, key)
        yield from paths(item, (*prefix, key))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(pick=st.integers(0, 10**6), new=st.sampled_from([None, -1, 0, 3.5, "x", [], {}, "drop", 10**9, True]))
def test_mutated_json_loads_or_is_refused(snn, tmp_path_factory: pytest.TempPathFactory, pick: int, new) -> None:
    target = speedysnn.save(snn, tmp_path_factory.mktemp("m") / "n.snn")
    document = json.loads((target / NETWORK).read_text())
    every = list(paths(document))
    *way, last = every[pick % len(every)]
    holder = document
    for key in way:
        holder = holder[key]
    if new == "drop":
        del holder[last]
    else:
        holder[last] = new
    (target / NETWORK).write_text(json.dumps(document))
    with suppress(ArtifactError):  # anything else fails the test
        speedysnn.load(target)


NEURON = {"spikes": "binary", "delay": 0, "surrogate": "rectangle", "width": 1.0, "detach_reset": False,
          "channel_dim": 1, "ceiling": None, "floor": 0.0, "steps": None}  # fmt: skip


def by_hand(folder: Path, timesteps: int) -> dict[str, torch.Tensor]:
    """A folder as version 0.1 wrote it, from the documented schema alone: conv, neurons, flatten, linear."""

    def node(name: str, op: str, inputs: list[str], **attrs: object) -> dict[str, object]:
        return {"name": name, "op": op, "inputs": inputs, "attrs": attrs, "path": name, "source": "net.py:1"}

    conv = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    shape = {"ceiling": None, "floor": 0.0, "shape": [3, 4, 4], "features": 48, "channel_dim": 1}
    nodes = [
        node("input", "input", []), node("block.conv", "conv2d", ["input"], **conv),
        node("block.relu", "neuron", ["block.conv"], **shape),
        node("flatten", "flatten", ["block.relu"], start=1, end=3), node("fc", "linear", ["flatten"]),
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "layer:block.conv:weight": torch.randn(3, 2, 3, 3, generator=generator) / 4,
        "layer:block.conv:bias": torch.randn(3, generator=generator) / 4,
        "layer:fc:weight": torch.randn(5, 48, generator=generator) / 7,
        "layer:fc:bias": torch.randn(5, generator=generator),
        "neuron:block.relu:log_threshold": torch.tensor([0.5, 1.0, 2.0]).log(),
        "neuron:block.relu:v_init": torch.tensor(0.5),
    }
    folder.mkdir()
    weights = to_bytes(tensors)
    document = {
        "schema": "speedysnn/1", "timesteps": timesteps, "input_shapes": [[2, 4, 4]],
        "graph": {"nodes": nodes, "outputs": "fc"}, "neurons": {"block.relu": NEURON},
        "calibration": {"rules": {"block.relu": "mse"}, "histograms": []}, "provenance": {"network": "Net"},
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }  # fmt: skip
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "network.json").write_text(json.dumps(document), encoding="utf-8")
    return tensors


def test_a_folder_of_the_first_version_loads_and_answers_as_its_definition(tmp_path: Path) -> None:
    steps, own = 4, by_hand(tmp_path / "old.snn", 4)
    snn = speedysnn.load(tmp_path / "old.snn")
    assert [type(module) for module in snn.layers.values()] == [torch.nn.Conv2d, torch.nn.Linear]
    x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    drive = torch.nn.functional.conv2d(x, own["layer:block.conv:weight"], own["layer:block.conv:bias"], padding=1)
    theta = own["neuron:block.relu:log_threshold"].exp().view(1, 3, 1, 1)
    fired = torch.zeros_like(drive)
    for step in range(1, steps + 1):
        fired += (step * drive / theta + 0.5 - fired >= 1).to(drive)
    values = {
        "analog": drive.clamp_min(0), "spiking": theta * fired / steps,
        "quantized": theta / steps * torch.floor(steps * drive / theta + 0.5).clamp(0, steps),
    }  # fmt: skip
    for reading, value in values.items():
        expected = value.flatten(1) @ own["layer:fc:weight"].T + own["layer:fc:bias"]
        with torch.no_grad():
            torch.testing.assert_close(snn.read(reading, x), expected, rtol=1e-5, atol=1e-5)
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "new.snn"))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in snn.state_dict().items())
