"""The bundled digits and networks: what is stored is what the script makes, and it is accurate."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from speedysnn import assets, data
from speedysnn.assets import digits as make
from speedysnn.assets.digits import NETWORKS, avg_net, load_digits_net, max_net
from speedysnn.errors import InputError, SpeedySNNError


def _stored():
    with np.load(assets.asset_path(assets.DIGITS), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive}


def test_the_stored_digits_are_what_the_script_makes():
    pytest.importorskip("sklearn")
    made, stored = make.make_digits(seed=0), _stored()
    assert made.keys() == stored.keys()
    assert all(np.array_equal(made[key], stored[key]) and made[key].dtype == np.uint8 for key in made)


def test_the_split_is_stratified_and_covers_the_range():
    stored = _stored()
    assert stored["x_train"].shape == (1200, 8, 8)
    assert stored["x_test"].shape == (597, 8, 8)
    shares = [np.bincount(stored[key]) / len(stored[key]) for key in ("y_train", "y_test")]
    assert np.abs(shares[0] - shares[1]).max() < 0.002
    assert (stored["x_train"].min(), stored["x_train"].max()) == (0, 255)


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_trained_networks_reach_the_accuracy_their_file_states(pool):
    net = load_digits_net(pool)
    assert not net.training
    correct = count = 0
    with torch.no_grad():
        for batch in data.iter_batches(data.load("digits"), batch_size=200):
            correct += int((net(*batch.inputs).argmax(1) == batch.labels).sum())
            count += len(batch.labels)
    with safe_open(assets.asset_path(assets.weights_name(pool)), "pt") as file:
        metadata = file.metadata()
    assert count == int(metadata["test_images"])
    assert correct / count == pytest.approx(float(metadata["test_accuracy"]), abs=0.002)
    assert correct / count > 0.985
    assert metadata["script"] == "python -m speedysnn.assets.digits"
    assert {"seed", "torch", "epochs"} <= metadata.keys()


@pytest.mark.parametrize(("make_net", "pooling"), [(avg_net, nn.AvgPool2d), (max_net, nn.MaxPool2d)])
def test_the_networks_are_what_they_say(make_net, pooling):
    net = make_net(num_classes=3)
    kinds = [type(module) for module in net.children()]
    assert kinds.count(nn.Conv2d) == 4
    assert kinds.count(nn.BatchNorm2d) == 4
    assert kinds.count(nn.ReLU) == 5
    assert kinds.count(pooling) == 2
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_training_is_reproducible(monkeypatch):
    monkeypatch.setattr(make, "EPOCHS", 2)
    few = {key: values[:200] for key, values in _stored().items()}
    runs = [make.train("avg", few, seed=3) for _ in range(2)]
    assert runs[0][1] == runs[1][1]
    pairs = zip(runs[0][0].state_dict().values(), runs[1][0].state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_augmentation_shifts_by_at_most_one_pixel(monkeypatch):
    monkeypatch.setattr(make, "NOISE", 0.0)
    image = torch.zeros(64, 1, 8, 8)
    image[:, :, 4, 4] = 1
    moved = make._augment(image, torch.Generator().manual_seed(0))
    assert moved.shape == image.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(64))
    places = {tuple(place) for place in moved.nonzero()[:, 2:].tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


def test_the_script_writes_all_files(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(make, "train", lambda pool, arrays, seed: (NETWORKS[pool](), 0.5))
    make.main(["--out", str(tmp_path / "new")])
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "digits.npz",
        "digits_avg.safetensors",
        "digits_max.safetensors",
    }
    assert "50.00%" in capsys.readouterr().out


def test_mistakes():
    with pytest.raises(InputError, match="'avg', 'max', not 'sum'"):
        load_digits_net("sum")
    with pytest.raises(SpeedySNNError, match="missing from this installation; reinstall"):
        assets.asset_path("absent.npz")


def test_the_files_are_small():
    names = [assets.DIGITS, *map(assets.weights_name, NETWORKS)]
    assert sum(assets.asset_path(name).stat().st_size for name in names) < 1_000_000
