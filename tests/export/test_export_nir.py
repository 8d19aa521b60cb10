"""A network written to NIR gives the same spikes in another simulator, or is refused."""

import sys
import warnings

import pytest
import torch
from torch import nn

import speedysnn
from speedysnn import convert, data
from speedysnn.assets.digits import load_digits_net
from speedysnn.cli import main
from speedysnn.errors import ArtifactError, ConversionError, InputError
from speedysnn.export import to_nir
from speedysnn.export.nir import NIRWarning


class Branches(nn.Module):
    """A shortcut, a shortcut with a weight, grouped convolution, global pooling: every way a theta can leave a neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.outer = nn.Conv2d(4, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.side = nn.Conv2d(4, 6, 1, stride=2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.outer(torch.relu(self.inner(x))) + x)
        x = torch.relu(self.down(x) + self.side(x))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def branches(**options) -> speedysnn.SpikingNetwork:
    torch.manual_seed(0)
    return convert.to_spiking(Branches(), torch.randn(32, 3, 8, 8), 4, **options)


def digits(**options) -> speedysnn.SpikingNetwork:
    return convert.to_spiking(load_digits_net("avg"), data.load("digits", "train"), timesteps=4, **options)


def simulate(file, x: torch.Tensor, *, with_state: bool = True):
    """The file in snnTorch's neurons through nirtorch; what each neuron emitted (T, B, ...), the mean of the output."""
    nir, nirtorch = pytest.importorskip("nir"), pytest.importorskip("nirtorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        snntorch = pytest.importorskip("snntorch")
        graph = nir.read(file)
        handlers = {
            nir.IF: lambda n: snntorch.Leaky(
                beta=1.0, threshold=1.0, reset_mechanism=n.metadata["reset"], reset_delay=True, init_hidden=True
            ),
            nir.Affine: affine,  # the default of nirtorch 2.6 leaves a random bias
            nir.Flatten: lambda n: nn.Flatten(int(n.start_dim), int(n.end_dim)),
            nir.Scale: lambda n: Times(torch.from_numpy(n.scale)),
        }
        net = nirtorch.nir_to_torch(graph, handlers)
    spikes: dict[str, list[torch.Tensor]] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, nir.IF):
            assert (node.v_threshold == 1).all()
            module = net.get_submodule(name)
            v_init = torch.from_numpy(node.metadata["v_init"]).view(-1, *[1] * (node.r.ndim - 1))
            module.mem = (v_init * with_state).expand(len(x), *node.r.shape).clone()
            module.register_forward_hook(lambda _, __, out, name=name: spikes.setdefault(name, []).append(out.clone()))
    with torch.no_grad():
        outputs = [net(x)[0] for _ in range(int(graph.metadata["timesteps"]))]
    return {name: torch.stack(train) for name, train in spikes.items()}, torch.stack(outputs).mean(0)


def affine(node) -> nn.Linear:
    layer = nn.Linear(node.weight.shape[1], node.weight.shape[0])
    layer.load_state_dict({"weight": torch.from_numpy(node.weight), "bias": torch.from_numpy(node.bias)})
    return layer


class Times(nn.Module):
    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def ours(snn: speedysnn.SpikingNetwork, x: torch.Tensor):
    """What each neuron emits divided by its amplitude, (T, B, ...), and the mean of the output."""
    spikes: dict[str, torch.Tensor] = {}

    def record(tap) -> None:
        neuron = snn.neurons[tap.name]
        count = tap.output / neuron.per_channel(neuron.amplitude, tap.output.ndim)
        spikes[tap.name] = count.round().unflatten(0, (snn.timesteps, -1)).clone()

    with torch.no_grad():
        out = snn(x, observer=record)
    return spikes, out


def same_images(theirs: dict[str, torch.Tensor], spikes: dict[str, torch.Tensor]) -> torch.Tensor:
    """Images without one spike that differs; rounding on the threshold may move one spike in 10,000, no more."""
    differs = {name: theirs[name] != train for name, train in spikes.items()}
    assert max(float(each.float().mean()) for each in differs.values()) <= 1e-4
    alike = ~torch.stack([each.transpose(0, 1).flatten(1).any(1) for each in differs.values()]).any(0)
    assert alike.float().mean() > 0.95
    return alike


def digit_images(count: int) -> torch.Tensor:
    """The first training images."""
    return torch.stack([image for image, _ in data.load("digits", "train")])[:count]


@pytest.mark.parametrize("granularity", ["channel", "layer"])
@pytest.mark.parametrize("make", [digits, branches])
@pytest.mark.parametrize("v_init", [0.5, 0.25])
def test_another_simulator_gives_the_same_spikes(tmp_path, make, granularity, v_init) -> None:
    pytest.importorskip("nir")
    snn = make(granularity=granularity, v_init=v_init)
    x = digit_images(200) if make is digits else torch.randn(200, 3, 8, 8)
    with pytest.warns(NIRWarning, match="v_init"):
        to_nir(snn, tmp_path / "net.nir")
    theirs, output = simulate(tmp_path / "net.nir", x)
    spikes, expected = ours(snn, x)
    assert set(theirs) == set(spikes)
    for train in spikes.values():
        assert 0 < train.mean() < 1
    alike = same_images(theirs, spikes)
    torch.testing.assert_close(output[alike], expected[alike], rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """Neurons behind a convolution that is read twice and behind pooling: no weight layer can take their current."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.b, self.out = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        twice = self.a(torch.relu(self.stem(x)))
        deep = torch.relu(self.b(torch.relu(twice)) + twice)
        return self.out(torch.relu(nn.functional.avg_pool2d(deep, 8).flatten(1)))


def test_a_current_that_no_weight_layer_can_take_gets_a_layer_of_its_own(tmp_path) -> None:
    pytest.importorskip("nir")
    snn = convert.to_spiking(Shared(), torch.randn(32, 3, 8, 8), 4, correct="none")
    for i, neuron in enumerate(snn.neurons.values()):
        theta = neuron.threshold.detach()
        neuron.set_amplitude(theta)
        neuron.set_threshold(0.9 * theta)
        neuron.offset = theta * torch.linspace(-0.3, 0.4, 4) * (1 + i / 10)
    with pytest.warns(NIRWarning):
        graph = to_nir(snn, tmp_path / "net.nir")
    own = [name for name in graph.nodes if name.endswith("_current")]
    assert [type(graph.nodes[name]).__name__ for name in own] == ["Conv2d", "Affine"]
    x = torch.randn(200, 3, 8, 8)
    theirs, output = simulate(tmp_path / "net.nir", x)
    spikes, expected = ours(snn, x)
    alike = same_images(theirs, spikes)
    torch.testing.assert_close(output[alike], expected[alike], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("granularity", ["channel", "layer"])
@pytest.mark.parametrize("make", [digits, branches])
def test_amplitudes_of_their_own_are_folded(tmp_path, make, granularity) -> None:
    """Thresholds into the weights before, amplitudes into those after, whichever of them is one a channel."""
    pytest.importorskip("nir")
    snn = make(granularity=granularity)
    x = digit_images(200) if make is digits else torch.randn(200, 3, 8, 8)
    for i, neuron in enumerate(snn.neurons.values()):
        theta = neuron.threshold.detach()
        neuron.set_amplitude(1.3 * theta.mean() if i % 2 else theta * torch.linspace(0.8, 1.4, max(1, theta.numel())).view_as(theta))
        neuron.set_threshold(0.9 * theta)
    with pytest.warns(NIRWarning):
        to_nir(snn, tmp_path / "net.nir")
    theirs, output = simulate(tmp_path / "net.nir", x)
    spikes, expected = ours(snn, x)
    alike = same_images(theirs, spikes)
    torch.testing.assert_close(output[alike], expected[alike], rtol=1e-4, atol=1e-4)


def test_a_corrected_bias_is_written(tmp_path) -> None:
    pytest.importorskip("nir")
    snn, x = digits(), digit_images(200)
    for neuron in snn.neurons.values():
        neuron.offset = neuron.threshold.detach() / 7
    with pytest.warns(NIRWarning):
        to_nir(snn, tmp_path / "net.nir")
    theirs, _ = simulate(tmp_path / "net.nir", x)
    same_images(theirs, ours(snn, x)[0])


def test_without_the_initial_membrane_spikes_are_lost(tmp_path) -> None:
    pytest.importorskip("nir")
    snn, x = digits(), digit_images(200)
    with pytest.warns(NIRWarning):
        to_nir(snn, tmp_path / "net.nir")
    theirs, _ = simulate(tmp_path / "net.nir", x, with_state=False)
    spikes, _ = ours(snn, x)
    assert theirs["relu1"].sum() < spikes["relu1"].sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"spikes": "graded:2"}, "spikes='binary'"), ({"spikes": "ternary"}, "spikes='binary'"), ({"delay": 1}, "delay=0"),
     ({"spikes": "power2:3"}, "power2:3 spikes, NIR's neurons 0 or 1")],
)
def test_what_nir_cannot_say_is_refused(tmp_path, options, message) -> None:
    pytest.importorskip("nir")
    with pytest.raises(ConversionError, match=message):
        to_nir(branches(**options), tmp_path / "net.nir")
    assert list(tmp_path.iterdir()) == []


class Corner(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "slice":
            return x[:, :, 1:]
        if self.how == "mean":
            return x.mean(1, keepdim=True).expand(-1, 4, -1, -1)
        if self.how == "cat":
            return torch.cat([x, x], 2)
        return nn.functional.pad(x, (1, 0), value=1.0 if self.how == "ones" else 0.0)


@pytest.mark.parametrize(
    ("how", "message"),
    [("slice", "cuts places off"), ("pad", "unequally"), ("ones", "than zero"), ("cat", "other dimensions than the channels"),
     ("mean", "other dimensions than all places")],
)  # fmt: skip
def test_what_no_convolution_can_place_is_refused_by_name(how, message) -> None:
    pytest.importorskip("nir")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Corner(how), nn.Conv2d(4, 3, 1), nn.ReLU())
    with pytest.raises(ConversionError, match=message):
        to_nir(convert.to_spiking(net, torch.randn(8, 3, 8, 8), 4))


@pytest.mark.parametrize(("layer", "message"), [(nn.SiLU(), "analog unit"), (nn.MaxPool2d(2), "max_pool2d of rates")])
def test_operators_nir_does_not_have_are_refused(layer, message) -> None:
    pytest.importorskip("nir")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), layer, nn.Conv2d(4, 3, 3), nn.ReLU())
    snn = convert.to_spiking(net, torch.randn(8, 3, 8, 8), 4, allow_hybrid=True)
    with pytest.raises(ConversionError, match=message):
        to_nir(snn)


def test_without_the_package_one_line_says_what_to_do(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setitem(sys.modules, "nir", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"speedysnn\[nir\]"):
        to_nir(branches())
    speedysnn.save(branches(), "net.snn")
    assert main(["export", "net.snn", "--to", "nir", "-o", "net.nir"]) == 2
    assert 'pip install "speedysnn[nir]"' in " ".join(capsys.readouterr().err.split())


def test_the_command(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("nir")
    monkeypatch.chdir(tmp_path)
    speedysnn.save(branches(), "net.snn")
    assert main(["export", "net.snn", "--to", "nir", "-o", "net.nir"]) == 0
    said = capsys.readouterr()
    assert "no soft reset" in " ".join((said.out + said.err).split())
    assert main(["export", "net.snn", "--to", "nir", "-o", "late.nir", "--delay", "1"]) == 2
    assert "delay=0" in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.nir", "net.snn"]


def test_what_is_there_stays(tmp_path) -> None:
    pytest.importorskip("nir")
    snn, file = branches(), tmp_path / "net.nir"
    file.write_text("mine")
    with pytest.raises(ArtifactError, match="already"):
        to_nir(snn, file)
    with pytest.raises(ArtifactError, match=r"ends in \.nir"):
        to_nir(snn, tmp_path / "net.h5")
    assert file.read_text() == "mine"
