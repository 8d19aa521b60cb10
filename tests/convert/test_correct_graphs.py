"""Corrections of every kind of graph, through files, streams and exports, and the way back."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import speedysnn
from speedysnn import convert, export
from speedysnn.assets.digits import load_digits_net
from speedysnn.convert.correct import correct_on
from tests.material.corrections import CORRECTIONS, alike, digits, outputs, same, settings


class Graphs(nn.Module):
    """A layer without bias read twice, a shortcut, a concatenation, max-pooling, two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.side, self.out, self.score = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found = self.a(x)
        both = torch.cat([torch.relu(found), torch.relu(-found)], 1)
        deep = nn.functional.max_pool2d(torch.relu(self.b(both) + both), 2).mean((2, 3))
        mixed = torch.relu(deep + self.side(y))
        return {"classes": self.out(mixed), "score": torch.relu(self.score(mixed)).squeeze(1) * 2}


class Signed(nn.Module):
    """A sum that is re-encoded by signed neurons, with clips of its own, and a channel that never fires."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        nn.init.constant_(self.a.bias[:1], -100.0)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self.a(x))
        return self.c(torch.nn.functional.hardtanh(self.b(self.b(y) + y)))


class Attention(nn.Module):
    """Softmax and layer-norm on running means; neurons with their channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        weights = torch.softmax(y @ y.transpose(1, 2), -1)
        return self.c(torch.relu(self.b(self.norm(weights @ y))).mean(1))


NETWORKS = {
    "graphs": (Graphs, (torch.Size([1, 8, 8]), torch.Size([3]))),
    "signed": (Signed, (torch.Size([6]),)),
    "attention": (Attention, (torch.Size([5, 6]),)),
    "digits": (lambda: load_digits_net("max"), (torch.Size([1, 8, 8]),)),
}
OPTIONS = [
    {"timesteps": 1, "delay": 0}, {"timesteps": 3, "delay": 1}, {"timesteps": 4, "delay": "full"},
    {"timesteps": 3, "delay": 0, "granularity": "layer"}, {"timesteps": 3, "delay": 1, "spikes": "ternary"},
    {"timesteps": 2, "delay": 0, "spikes": "graded:3"},
]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("options", OPTIONS, ids=[str(list(options.values())) for options in OPTIONS])
def test_every_kind_of_graph_is_corrected_and_comes_back(name: str, options) -> None:
    make, shapes = NETWORKS[name]
    net, generator = make().eval(), torch.Generator().manual_seed(3)
    inputs = tuple(torch.rand(40, *shape, generator=generator) for shape in shapes)
    snn = convert.to_spiking(net, [inputs], allow_hybrid=True, threshold="max", correct="none", **options)
    before, plain = outputs(snn, *inputs), settings(snn)
    for kind in ("moments", "bias", "potential", "moments+bias+potential"):
        correct_on(snn, inputs, kind)
        after = outputs(snn, *inputs)
        assert same(before, after, ("analog",))
        assert all(bool(x.isfinite().all()) for found in after.values() for x in found)
        for neuron in snn.neurons.values():
            most = neuron.levels_per_step * neuron.threshold.detach()
            assert neuron.offset is None or bool((neuron.offset.abs() <= most * 1.0001).all())
            assert bool(((neuron.v_init >= 0) & (neuron.v_init <= 1)).all())
        snn.uncorrect()
        assert alike(plain, settings(snn))
        assert same(before, outputs(snn, *inputs))
        assert "correction" not in snn.provenance


class QCFS(nn.Module):
    """A learned clip of four levels."""

    def __init__(self) -> None:
        super().__init__()
        self.thresh, self.L = nn.Parameter(torch.tensor([0.8])), 4

    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(torch.clamp(x / self.thresh, 0, 1) * self.L + 0.5) / self.L * self.thresh


def test_one_image_each_layer_its_own_look_ahead_and_learned_clips() -> None:
    net = load_digits_net("avg")
    snn = convert.to_spiking(net, digits(64), 4, correct="none")
    snn.set_delay({name: ("full", 0, 2)[i % 3] for i, name in enumerate(snn.neurons)})
    for images in (digits(1), digits(3)):
        correct_on(snn, [images], "moments+bias")
        assert all(bool(x.isfinite().all()) for found in outputs(snn, images).values() for x in found)
    assert snn.provenance["correction"]["checked_on"] == 1
    staircase = nn.Sequential(nn.Linear(6, 8), QCFS(), nn.Linear(8, 8), QCFS(), nn.Linear(8, 3))
    x = torch.rand(64, 6)
    learned = convert.to_spiking(staircase, x, 4, delay="full", correct="none")
    assert all(neuron.steps == 4 for neuron in learned.neurons.values())
    before = outputs(learned, x)
    correct_on(learned, [x], "moments")
    assert same(before, outputs(learned, x)), "at T = L the quantized reading is the source's staircase already"


@pytest.mark.parametrize("delay", [0, 1, "full"])
def test_save_load_stream_and_export(delay, tmp_path) -> None:
    x = digits(64)
    snn = convert.to_spiking(load_digits_net("avg"), x, 4, threshold="max", delay=delay, correct="moments+bias+potential")
    assert any(neuron.log_amplitude is not None for neuron in snn.neurons.values())
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))
    assert same(outputs(snn, x), outputs(again, x))
    assert again.provenance["correction"] == snn.provenance["correction"]
    with torch.no_grad():
        whole = snn(x, per_step=True)
        outs = [snn.step(x if t < 4 else None) for t in range(snn.latency)]
    streamed = torch.stack([out for out in outs if out is not None]).cumsum(0) / torch.arange(1, 5).view(-1, 1, 1)
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-4)
    plain = convert.to_spiking(load_digits_net("avg"), x, 4, threshold="max", delay=delay, correct="none")
    assert alike(settings(again.recalibrate()), settings(plain))


class Residual(nn.Module):
    """A sum before a neuron: the current of its correction goes into the bias of the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.b, self.out = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.out(torch.flatten(torch.relu(self.b(torch.relu(self.a(x))) + x), 1))


def test_nir_holds_what_a_correction_changed() -> None:
    pytest.importorskip("nir")
    snn = convert.to_spiking(Residual(), torch.rand(64, 1, 8, 8), 4, threshold="max", correct="none")
    last = snn.graph.neurons[-1]
    for neuron in snn.neurons.values():
        neuron.set_amplitude(neuron.threshold.detach())
        neuron.set_threshold(neuron.threshold.detach() / 1.2)
        neuron.offset = neuron.threshold.detach() / 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = export.to_nir(snn)
    neuron = snn.neurons[last.name]
    theta, own = neuron.threshold.detach(), snn.tensors("b")
    torch.testing.assert_close(torch.from_numpy(graph.nodes["b"].bias), (own["bias"] + neuron.offset).detach() / theta)


def test_recalibrate_and_none_take_corrections_back() -> None:
    x = digits(128)
    plain = convert.to_spiking(load_digits_net("avg"), x, 4, threshold="max", correct="none")
    for kind in CORRECTIONS:
        snn = convert.to_spiking(load_digits_net("avg"), x, 4, threshold="max", correct=kind)
        state = settings(snn)
        assert any("log_amplitude" in name for name in state) == ("moments" in kind)
        moved = any(not torch.equal(value, state[name]) for name, value in settings(plain).items() if "v_init" in name)
        assert moved == ("potential" in kind)
        twice = convert.apply_correction(snn, x, kind)
        assert alike(state, settings(convert.apply_correction(twice, x, kind))), "the same images again"
        assert convert.apply_correction(twice, x, "none").provenance.get("correction") is None
        assert alike(settings(plain), settings(twice))


def test_what_was_trained_on_a_correction_is_not_taken_back_with_it() -> None:
    x = digits(128)
    snn = convert.to_spiking(load_digits_net("avg"), x, 4, threshold="max", correct="moments")
    snn.provenance["finetuned"] = [{"config": {"train": ["thresholds"]}}]
    trained = settings(snn)
    snn.uncorrect()
    assert alike(trained, settings(snn))
    assert "correction" not in snn.provenance
    gains = [float((n.amplitude / n.threshold).detach().mean()) for n in snn.neurons.values()]
    correct_on(snn, [x], "moments")  # for a network that is right already little is left to do
    again = [float((n.amplitude / n.threshold).detach().mean()) for n in snn.neurons.values()]
    assert again == pytest.approx(gains, rel=0.1)
