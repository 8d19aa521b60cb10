"""Saving and loading: the same network, without the source's code; damage is named; nothing in the way is lost."""

import copy
import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
    for network in (other, copy.deepcopy(snn)):
        network.timesteps = 9
        network.recalibrate()
    assert other.provenance == snn.provenance


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
