"""Every NIR file that a reader is said to read gives the same spikes in it, and one that does not is refused."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import speedysnn
from speedysnn import convert, data, export
from speedysnn.assets.digits import load_digits_net
from speedysnn.cli import main
from speedysnn.errors import ArtifactError, ConversionError, InputError
from speedysnn.export import READERS, Reader, compare, defects, to_nir
from speedysnn.export.nir_readers import Opened, PlainIF, open_nirtorch

pytestmark = pytest.mark.filterwarnings("ignore::speedysnn.export.nir.NIRWarning")
ALL = ("nirtorch", "snntorch", "norse", "sinabs")


def installed(reader: str) -> str:
    """The reader's name; the test is skipped where it is not installed."""
    for name in ("nir", "nirtorch", reader):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    return reader


class Line(nn.Module):
    """1-d: a grouped convolution, padded pooling, the mean over all places."""

    shape = (2, 17)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = (
            nn.Conv1d(2, 4, 3, padding="same"),
            nn.Conv1d(4, 6, 3, stride=2, groups=2),
            nn.Linear(6, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.fc(F.avg_pool1d(x, 3, 2, padding=1).mean(2))


class Volume(nn.Module):
    """3-d: groups, other strides for depth, a pooling of depth, flattened."""

    shape = (2, 4, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv3d(2, 4, 3, padding=1, groups=2)
        self.b = nn.Conv3d(4, 4, (2, 3, 3), stride=(1, 2, 1), padding=(0, 1, 1))
        self.fc = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.fc(torch.flatten(torch.relu(F.avg_pool3d(x, (2, 1, 1), (1, 1, 1))), 1))


class Dense(nn.Module):
    """Concatenation of spikes and of the image, batch-norm alone, a flat kernel, features that meet."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
        self.norm, self.c, self.fc = nn.BatchNorm2d(11), nn.Conv2d(11, 5, 3, stride=2), nn.Linear(50, 3)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.normal_(self.norm.bias, std=0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        x = torch.relu(self.norm(torch.cat([y, torch.relu(self.b(y)), x], 1)))
        x = torch.relu(self.c(x))
        return self.fc(torch.cat([torch.flatten(x, 1), F.adaptive_avg_pool2d(x, 1).flatten(1)], 1))


class Branches(nn.Module):
    """Shortcuts with and without a weight, of other lengths than what they meet."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.outer, self.down = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.side, self.fc = nn.Conv2d(4, 6, 1, stride=2), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.outer(torch.relu(self.inner(x))) + x)
        x = torch.relu(self.down(x) + self.side(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Cut(nn.Module):
    """Channels and places left out, zeros put in: the shortcuts of early residual networks, in 3-d too."""

    shape = (2, 4, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(2, 4, 3, padding=1), nn.Conv3d(4, 6, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        short = F.pad(x[:, 1:, ::2, ::2, ::2], (0, 0, 0, 0, 0, 0, 1, 2))
        x = torch.relu(self.b(x) + short).mean((2, 3, 4))
        return F.pad(torch.relu(x)[:, ::2], (1, 0))


NO_CONV1D = {("norse", Line), ("sinabs", Line)}


def network(kind: type, **options) -> speedysnn.SpikingNetwork:
    torch.manual_seed(0)
    return convert.to_spiking(kind().eval(), torch.randn(64, *kind.shape), 4, **options)


def small(**options) -> speedysnn.SpikingNetwork:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    return convert.to_spiking(ann, torch.randn(64, 4), timesteps=4, **options)


@pytest.mark.parametrize("granularity", ["channel", "layer"])
@pytest.mark.parametrize("kind", [Line, Volume, Dense, Branches, Cut])
@pytest.mark.parametrize("reader", ALL)
def test_the_same_spikes(tmp_path, reader, kind, granularity) -> None:
    snn = network(kind, granularity=granularity)
    to_nir(snn, tmp_path / "net.nir")
    if (installed(reader), kind) in NO_CONV1D:
        with pytest.raises(ArtifactError, match="cannot open"):
            compare(snn, tmp_path / "net.nir", reader)
        return
    found = compare(snn, tmp_path / "net.nir", reader)
    assert found.same, str(found)
    assert len(found.layers) == len(snn.neurons)
    assert found.layers["spikes"].all()
    assert (found.layers["spikes"] < found.layers["decisions"]).all()


@pytest.mark.parametrize("reader", ALL)
def test_digits_on_the_command_line(tmp_path, monkeypatch, capsys, reader) -> None:
    monkeypatch.chdir(tmp_path)
    installed(reader)
    speedysnn.save(convert.to_spiking(load_digits_net("avg"), data.load("digits", "train"), timesteps=8), "net.snn")
    assert main(["export", "net.snn", "--to", "nir", "--verify", reader, "-o", "net.nir"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "reads net.nir: the same spikes" in said
    assert "set: " in said


@pytest.mark.parametrize("reader", ALL[1:])
def test_a_reader_that_is_told_nothing_fires_otherwise(tmp_path, reader) -> None:
    """The defects are the reader's: where an assertion fails, it was mended, and what is set for it may go."""
    installed(reader)
    known = {"snntorch": "leaks", "norse": "resets to zero", "sinabs": "several times"}
    assert any(known[reader] in line for line in defects(reader, bare=True))
    assert any("starts at zero" in line for line in defects(reader, bare=True))
    assert defects(reader) == []
    snn = small()
    to_nir(snn, tmp_path / "net.nir")
    if reader == "snntorch":  # its neurons hand on a tuple
        with pytest.raises(ArtifactError, match="cannot run it"):
            compare(snn, tmp_path / "net.nir", reader, bare=True)
    else:
        found = compare(snn, tmp_path / "net.nir", reader, bare=True)
        assert not found.same
        assert "other spikes, first in layer '1' at step 1" in str(found)


def altered(change) -> Reader:
    """nirtorch, whose opened network is changed."""

    def opened(path, bare) -> Opened:
        found = open_nirtorch(path, bare)
        change(found)
        return found

    return Reader(opened, "nirtorch", "")


def test_the_first_layer_and_step_that_differ_are_named(tmp_path, monkeypatch) -> None:
    installed("nirtorch")

    def change(found: Opened) -> None:
        if "3" in found.neurons:
            found.neurons["3"].threshold[5] = 0.5
        else:
            found.neurons["neuron"].start[:] = 0

    monkeypatch.setitem(READERS, "nirtorch", altered(change))
    with pytest.raises(ArtifactError, match=r"first in layer '3' at step \d: \d+ of 512 differ") as caught:
        export.export(small(), tmp_path / "net.nir", to="nir", verify="nirtorch")
    assert "it starts at zero" in str(caught.value)
    assert "another reader" in str(caught.value)
    found = compare(small(), tmp_path / "net.nir", "nirtorch")
    row = found.layers.set_index("layer").loc["3"]
    assert row["wrong"] > 0
    assert row["spikes_read"] > row["spikes"]
    assert not found.layers.set_index("layer").loc["1", "differ"]


def test_another_output_is_found(tmp_path) -> None:
    installed("nirtorch")

    def change(found: Opened) -> None:
        with torch.no_grad():
            found.module.get_submodule("4").bias += 0.1

    to_nir(small(), tmp_path / "net.nir")
    found = compare(small(), tmp_path / "net.nir", altered(change))
    assert not found.same
    assert "output differs by" in str(found)


def tied(threshold: float):
    """A neuron whose membrane meets its threshold exactly in step 2, and what a reader of another threshold makes of it."""
    ann = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1))
    for layer in ann[::2]:
        nn.init.ones_(layer.weight)
    snn = convert.to_spiking(
        ann, torch.ones(8, 1), timesteps=4, v_init=0.0, threshold={"1": 1.0, "3": 1.0}, correct="none"
    )

    def change(found: Opened) -> None:
        found.neurons["1"].threshold[:] = threshold

    return snn, altered(change)


def test_a_membrane_within_rounding_of_its_threshold_is_excused_and_one_that_is_not_is_not(tmp_path) -> None:
    installed("nirtorch")
    for threshold, current, same in ((1 + 1e-6, 0.5, True), (1.01, 0.502, False)):
        snn, reader = tied(threshold)
        to_nir(snn, tmp_path / "net.nir", overwrite=True)
        found = compare(snn, tmp_path / "net.nir", reader, torch.full((1, 1), current))
        assert found.same is same
        row = found.layers.iloc[0]
        assert (row["rounded"], row["wrong"], row["first_step"]) == ((1, 0, 2) if same else (0, 1, 2))
        assert list(found.layers.iloc[1][["rounded", "wrong"]]) == [0, 0]  # what follows is judged on our spikes
        assert found.layers.iloc[1]["differ"] > 0


@pytest.mark.parametrize("reader", ALL)
def test_a_membrane_on_its_threshold_fires_in_every_reader(tmp_path, reader) -> None:
    snn, _ = tied(1.0)
    to_nir(snn, tmp_path / "net.nir")
    found = compare(snn, tmp_path / "net.nir", installed(reader), torch.tensor([[0.25], [0.5], [1.0]]))
    assert found.same, str(found)
    assert not found.layers["differ"].any()


@pytest.mark.parametrize("reader", ALL)
def test_events_and_corrections(tmp_path, reader) -> None:
    snn = small(correct="bias+potential", v_init=0.25)
    to_nir(snn, tmp_path / "net.nir")
    events = torch.randint(0, 3, (4, 8, 4), generator=torch.Generator().manual_seed(0)).float()
    found = compare(snn, tmp_path / "net.nir", installed(reader), events)
    assert found.same, str(found)
    assert found.images == 8


def test_silence_shows_nothing(tmp_path) -> None:
    installed("nirtorch")
    snn = small()
    for layer in ("0", "2"):
        snn.tensors(layer)["bias"].data.fill_(-1.0)
    to_nir(snn, tmp_path / "net.nir")
    found = compare(snn, tmp_path / "net.nir", "nirtorch", torch.zeros(2, 4))
    assert not found.same
    assert "nothing fired" in str(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"spikes": "ternary"}, "'binary'"), ({"spikes": "graded:3"}, "'binary'"), ({"delay": 1}, "delay=0")],
)
def test_what_no_file_says_is_refused_by_name(tmp_path, options, message) -> None:
    installed("nirtorch")
    to_nir(small(), tmp_path / "net.nir")
    with pytest.raises(ConversionError, match=message):
        compare(small(**options), tmp_path / "net.nir", "nirtorch")


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch) -> None:
    installed("nirtorch")
    monkeypatch.setitem(sys.modules, "norse", None)
    with pytest.raises(InputError, match=r'package norse .*pip install "speedysnn\[readers\]"'):
        export.export(small(), tmp_path / "net.nir", to="nir", verify="norse")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="nirtorch, snntorch, norse, sinabs"):
        export.export(small(), tmp_path / "net.nir", to="nir", verify="lava")
    with pytest.raises(InputError, match="expected one of nirtorch"):
        compare(small(), tmp_path / "net.nir", "lava")


def test_a_reader_that_raises_or_has_other_layers_is_refused(tmp_path) -> None:
    installed("nirtorch")
    to_nir(small(), tmp_path / "net.nir")

    def fail(path, bare):
        raise RuntimeError("no such word")

    with pytest.raises(ArtifactError, match="cannot open net.nir: no such word"):
        compare(small(), tmp_path / "net.nir", Reader(fail, "nirtorch", ""))
    with pytest.raises(ArtifactError, match="expected the layers 1, 3, it has 1"):
        compare(small(), tmp_path / "net.nir", altered(lambda found: found.neurons.pop("3")))


def test_the_plain_neuron_against_numpy() -> None:
    nir = importlib.import_module(installed("nir"))
    ones = np.ones(5, dtype=np.float32)
    neuron = PlainIF(nir.IF(r=ones, v_threshold=ones, metadata={"v_init": 0.5 * ones}))
    currents = np.random.default_rng(0).normal(0.4, 1, (6, 3, 5)).astype(np.float32)
    membrane, state = np.full((3, 5), 0.5, dtype=np.float32), None
    for current in currents:
        membrane = membrane + current
        expected = (membrane >= 1).astype(np.float32)
        membrane = membrane - expected
        spikes, state = neuron(torch.from_numpy(current), state)
        np.testing.assert_array_equal(spikes.numpy(), expected)
