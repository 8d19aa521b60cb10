"""Corrections: their equations, the halves that choose and check, every kind of graph, and the way back."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import speedysnn
from speedysnn import convert, data, export
from speedysnn.assets.digits import load_digits_net
from speedysnn.cli import main
from speedysnn.convert.correct import KINDS, Sample, correct_on, scores, what_was_done
from speedysnn.convert.matching import halves
from speedysnn.data.batches import iter_batches
from speedysnn.errors import DataError, InputError
from speedysnn.network import SpikingNetwork

CORRECTIONS = [kind for kind in KINDS if kind != "none"]
READINGS = ("analog", "quantized", "spiking")


def digits(count: int = 256) -> Tensor:
    loaded = data.load("digits", "train")
    return torch.stack([loaded[i][0] for i in range(count)])


def outputs(snn: SpikingNetwork, *x: Tensor) -> dict[str, list[Tensor]]:
    with torch.no_grad():
        found = {reading: snn.read(reading, *x) for reading in READINGS}
    return {reading: torch.utils._pytree.tree_leaves(out) for reading, out in found.items()}


def same(a: dict[str, list[Tensor]], b: dict[str, list[Tensor]], readings=READINGS) -> bool:
    return all(torch.equal(x, y) for reading in readings for x, y in zip(a[reading], b[reading], strict=True))


def settings(snn: SpikingNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in snn.state_dict().items()}


def alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def test_moments_are_matched_as_the_equation_says() -> None:
    net, x, steps = two_layers(), torch.rand(80, 4), 2
    snn = convert.to_spiking(net, x, steps, delay="full", correct="none")
    theta = [neuron.threshold.detach().double().numpy() for neuron in snn.neurons.values()]
    correct_on(snn, [x], "moments")
    first, second = ((net[i].weight.detach().double().numpy().T, net[i].bias.detach().double().numpy()) for i in (0, 2))
    drive = x.double().numpy() @ first[0] + first[1]
    ours = theta[0] / steps * np.clip(np.floor(steps * drive / theta[0] + 0.5), 0, steps) @ second[0] + second[1]
    source = np.maximum(drive, 0) @ second[0] + second[1]
    chosen, checked = (half.numpy() for half in halves(80, 80))
    a = np.clip(source[chosen].std(0) / ours[chosen].std(0), 0.3, 3)
    b = source[chosen].mean(0) - a * ours[chosen].mean(0)
    goal, there = source[checked], ours[checked]
    apart = [(goal.mean(0) - y.mean(0)) ** 2 + (goal.std(0) - y.std(0)) ** 2 for y in (there, a * there + b)]
    better = apart[1] < apart[0]
    assert better.sum() > 0
    neuron = list(snn.neurons.values())[1]
    np.testing.assert_allclose(neuron.threshold.detach(), theta[1] / np.where(better, a, 1), rtol=1e-4)
    np.testing.assert_allclose(neuron.offset, np.where(better, b / a, 0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(neuron.amplitude.detach(), theta[1], rtol=1e-6)
    done = snn.provenance["correction"]["passes"]["moments"]
    assert done["3"]["left_alone"] == (~better).sum()
    power = (goal**2).mean(0).sum()
    assert done["3"]["error_before"] == pytest.approx(apart[0].sum() / power, rel=1e-3)
    assert done["3"]["error_after"] == pytest.approx(np.minimum(*apart).sum() / power, rel=1e-3)
    assert done["1"]["left_alone"] == 8, "what reaches the first layer is the source's own"
    assert snn.neurons["1"].log_amplitude is None
    assert snn.neurons["1"].offset is None


def test_bias_and_potential_are_what_the_equations_say() -> None:
    x = torch.rand(64, 3)
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    for kind in ("bias", "potential"):
        snn = convert.to_spiking(net, x, 2, threshold="max", v_init=0.0, delay="full", correct="none")
        with torch.no_grad():
            drive = net[0](x[halves(64, 64)[0]]).double()
            gap = snn.neurons["1"].quantized(drive.float()).double().mean(0) - drive.clamp_min(0).mean(0)
        correct_on(snn, [x], kind)
        neuron = snn.neurons["1"]
        kept = (neuron.offset if kind == "bias" else neuron.v_init.detach()) != 0
        assert bool(kept.any())
        wanted = -gap if kind == "bias" else (-2 * gap / neuron.threshold.detach()).clamp(0, 1)
        found = neuron.offset if kind == "bias" else neuron.v_init.detach()
        torch.testing.assert_close(found[kept].double(), wanted[kept].double(), rtol=1e-4, atol=1e-6)


CHOSEN, CHECKED = halves(64, 64)


def floors() -> tuple[SpikingNetwork, Tensor]:
    """Two neurons that floor; in the images that check, the first one gets whole levels and is right already."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    nn.init.eye_(net[0].weight)
    even, odd = torch.linspace(0.01, 0.99, 32), torch.linspace(0.02, 0.98, 32)
    x = torch.empty(64, 2)
    x[CHOSEN], x[CHECKED] = torch.stack([even, even], 1), torch.stack([torch.where(odd > 0.5, 1.0, 0.5), odd], 1)
    return convert.to_spiking(net, x, 2, threshold={"1": 1.0}, v_init=0.0, delay="full", correct="none"), x


def test_a_channel_keeps_a_change_only_where_the_images_that_check_are_better_off() -> None:
    snn, x = floors()
    correct_on(snn, [x], "bias")
    first, second = snn.neurons["1"].offset.tolist()
    assert first == 0
    assert second == pytest.approx(0.25, abs=0.02)
    assert snn.provenance["correction"]["passes"]["bias"]["1"]["left_alone"] == 1


def test_the_whole_is_taken_back_where_the_answers_become_worse() -> None:
    """The images that check lie beside the border between two classes, and the correction moves it over them."""
    snn, x = floors()
    final = snn.layer("2")
    assert final is not None
    with torch.no_grad():
        final.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        final.bias.copy_(torch.tensor([-0.3, 0.3]))
    x[CHECKED, 1] = torch.where(torch.arange(32) % 2 == 0, 0.26, 0.999)
    before, answers = settings(snn), outputs(snn, x)
    correct_on(snn, [x], "bias")
    done = snn.provenance["correction"]
    assert done["passes"]["bias"]["1"]["left_alone"] == 1
    assert done["output"]["after"]["agreement"] < done["output"]["before"]["agreement"]
    assert done["taken_back"] is True
    assert "taken back" in done["said"]
    assert alike(before, settings(snn))
    assert same(answers, outputs(snn, x))
    snn.neurons["1"].set_threshold(2.0)
    snn.uncorrect()
    assert snn.neurons["1"].threshold.item() == 2.0, "nothing is left to take back"


@pytest.mark.parametrize("kind", CORRECTIONS)
@pytest.mark.parametrize(("steps", "delay"), [(1, 0), (4, 0), (4, 1), (4, "full")])
def test_errors_fall_and_the_analog_reading_stays(kind: str, steps: int, delay) -> None:
    source, x = load_digits_net("avg"), digits()
    plain = convert.to_spiking(source, x, steps, threshold="max", delay=delay, correct="none")
    snn = convert.to_spiking(source, x, steps, threshold="max", delay=delay, correct=kind)
    assert same(outputs(plain, x), outputs(snn, x), ("analog",))
    record = snn.provenance["correction"]
    assert (record["kind"], record["images"], record["timesteps"]) == (kind, 256, steps)
    assert record["reading"] == ("quantized" if delay == "full" else "spiking")
    for change, layers in record["passes"].items():
        assert change in kind
        assert all(row["error_after"] <= row["error_before"] for row in layers.values())
        assert sum(row["channels"] - row["left_alone"] for row in layers.values()) > 0
    assert record["taken_back"] == (record["output"]["after"]["agreement"] < record["output"]["before"]["agreement"])
    assert not record["taken_back"] or same(outputs(plain, x), outputs(snn, x))
    assert what_was_done(record) == record["said"]
    assert json.loads(json.dumps(record, allow_nan=False)) == record


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


def sorted_images() -> tuple[Tensor, Tensor]:
    """2,000 images in ten classes, one class after the other; pixel 0 is the class."""
    labels = torch.arange(10).repeat_interleave(200)
    return torch.cat([labels.view(-1, 1).float(), torch.rand(2000, 3)], 1), labels


class Counted(Dataset[tuple[Tensor, int]]):
    """A dataset that counts how many images were read."""

    def __init__(self) -> None:
        self.x, self.y = sorted_images()
        self.read = 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        return self.x[index], int(self.y[index])


@pytest.mark.parametrize("size", [1, 64, 300])
def test_the_images_are_drawn_from_all_of_sorted_data(size: int) -> None:
    x, _ = sorted_images()
    sample = Sample(256)
    for _ in sample.passing(iter_batches(x, batch_size=size)):
        pass
    (found,) = sample.inputs()
    assert len(found) == 256
    counts = torch.bincount(found[:, 0].long(), minlength=10)
    assert int(counts.min()) >= 10, counts
    assert all(int(torch.bincount(found[half, 0].long(), minlength=10).min()) >= 3 for half in halves(256, 256))
    other = Sample(256)
    for _ in other.passing(iter_batches(x, batch_size=77)):
        pass
    assert torch.equal(found, other.inputs()[0])


def test_few_images_are_all_kept_and_other_shapes_passed_over() -> None:
    sample = Sample(8)
    for batch in ([torch.arange(3.0).view(3, 1)], [torch.rand(2, 5)], [torch.arange(3.0, 6).view(3, 1)]):
        list(sample.passing(iter_batches(batch)))
    (found,) = sample.inputs()
    assert sorted(found.flatten().tolist()) == list(range(6))


@pytest.mark.parametrize("kind", ["tensor", "dataset", "loader", "batches"])
def test_every_form_of_sorted_data_corrects_for_every_class(kind: str, monkeypatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr("speedysnn.convert.correct.correct_on", lambda snn, inputs, kind, progress=False: seen.append(inputs[0]))
    x, y = sorted_images()
    counted = Counted()
    forms = {"tensor": x, "dataset": counted, "loader": torch.utils.data.DataLoader(TensorDataset(x, y), batch_size=50),
             "batches": list(x.split(90))}  # fmt: skip
    snn = convert.to_spiking(two_layers(), x[::100], 2, correct="none")
    convert.apply_correction(snn, forms[kind], "bias")
    assert int(torch.bincount(seen[0][:, 0].long(), minlength=10).min()) >= 10
    assert counted.read in (0, 256), "what will not be used is not read"


def test_to_spiking_corrects_on_images_of_all_classes(monkeypatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr("speedysnn.convert.spiking.correct_on", lambda snn, inputs, kind, progress=False: seen.append(inputs[0]))
    convert.to_spiking(two_layers(), sorted_images()[0], 2, correct="bias")
    assert int(torch.bincount(seen[0][:, 0].long(), minlength=10).min()) >= 10


class Events(Dataset[tuple[Tensor, int]]):
    """Events (T, 4) of which all come in the last step."""

    timesteps = 3

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(self):
            raise IndexError
        out = torch.zeros(3, 4)
        out[2] = 3 * torch.rand(4, generator=torch.Generator().manual_seed(index))
        return out, index % 2


def test_events_are_corrected_as_events() -> None:
    torch.manual_seed(1)
    net = two_layers()
    snn = convert.to_spiking(net, Events(), 3, threshold="max", correct="bias")
    events = torch.stack([Events()[i][0] for i in range(40)], 1)
    by_hand = convert.to_spiking(net, Events(), 3, threshold="max", correct="none")
    convert.apply_correction(by_hand, [events], "bias")
    assert alike(settings(snn), settings(by_hand))
    constant = convert.apply_correction(copy.deepcopy(by_hand), events.mean(0), "bias")
    assert not alike(settings(snn), settings(constant)), "spikes come late in one and evenly in the other"
    assert snn.provenance["correction"]["images"] == 40
    by_hand.timesteps = 2  # other steps than the events have: their mean
    convert.apply_correction(by_hand, [events], "bias")
    assert by_hand.provenance["correction"]["timesteps"] == 2


def test_bad_kinds_and_images_are_refused() -> None:
    x = digits(64)
    snn = convert.to_spiking(load_digits_net("avg"), x, 4, correct="none")
    before = settings(snn)
    with pytest.raises(InputError, match="correct: expected one of 'none', 'moments', 'bias'.*got 'weights'"):
        convert.apply_correction(snn, x, "weights")
    for wrong in (torch.rand(8, 3, 8, 8), torch.rand(8, 64)):
        with pytest.raises(DataError, match="the network does not run on images"):
            convert.apply_correction(snn, wrong, "bias")
    with pytest.raises(DataError, match="no batch in it"):
        convert.apply_correction(snn, [], "bias")
    assert alike(before, settings(snn))


def test_scores_of_outputs() -> None:
    a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    found = scores([[a[:1]], [a[1:]]], [[b[:1]], [b[1:]]])
    assert found == {"error": pytest.approx(6 / 5), "agreement": 0.5}
    assert scores([[a[:, 0]]], [[b[:, 0]]]) == {"error": pytest.approx(2 / 5)}


def test_the_command_says_what_was_kept(tmp_path, capsys) -> None:
    path = tmp_path / "net.snn"
    assert main(["convert", "speedysnn.assets.digits:load_digits_net", "-d", "digits", "--threshold", "max", "--correct",
                 "moments", "--limit", "64", "-o", str(path), "--json", str(tmp_path / "net.json")]) == 0  # fmt: skip
    said = speedysnn.load(path).provenance["correction"]["said"]
    assert said.startswith("correction: moments kept in ")
    assert said in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "net.json").read_text())["provenance"]["correction"]["said"] == said
