"""The default correction of a conversion: what it leaves alone, what may follow it, and which claims still hold."""

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import speedysnn
from speedysnn import analysis, convert, export, finetune, integer
from speedysnn.analysis.report.verdict import settings_to_try
from speedysnn.assets.digits import load_digits_net
from speedysnn.cli import main
from speedysnn.convert.correct import DEFAULT, FEWEST
from speedysnn.network import SpikingNetwork, correction_in_place
from tests.convert.test_correct_graphs import NETWORKS, QCFS
from tests.material.corrections import alike, digits, outputs, same, settings, two_layers


def default(**options: object) -> SpikingNetwork:
    return convert.to_spiking(load_digits_net("avg"), digits(), **{"timesteps": 2, **options})


def plain(**options: object) -> SpikingNetwork:
    return default(correct="none", **options)


def test_it_is_the_correction_of_the_same_images() -> None:
    snn, by_hand = default(), plain()
    assert correction_in_place(by_hand) is None
    convert.apply_correction(by_hand, digits(), DEFAULT)
    assert correction_in_place(snn) == DEFAULT == "moments"
    assert snn.provenance["correction"]["images"] == 256
    assert alike(settings(snn), settings(by_hand))
    snn.uncorrect()
    assert alike(settings(snn), settings(plain()))


def test_other_settings_follow_it_without_an_error() -> None:
    snn, other = default(), plain()
    for network in (snn, other):
        network.set_delay(1)
        network.set_spikes("ternary")
        network.timesteps = 8
    assert correction_in_place(snn) == "moments"
    snn.recalibrate()
    other.recalibrate()
    assert alike(settings(snn), settings(other))
    assert same(outputs(snn, digits(8)), outputs(other, digits(8)))
    said = snn.provenance["correction_removed"]["said"]
    assert "measured at T=2, was taken back" in said
    assert "convert.apply_correction(snn, images, 'moments')" in said
    assert "correction_removed" not in other.provenance
    convert.apply_correction(snn, digits(), "moments")
    assert snn.provenance["correction"]["timesteps"] == 8
    assert "correction_removed" not in snn.provenance


def test_what_is_measured_inside_a_block_leaves_its_record_there() -> None:
    snn = default()
    record, before = snn.provenance["correction"], settings(snn)
    with snn.preserved():
        snn.timesteps = 4
        snn.recalibrate()
        assert correction_in_place(snn) is None
    assert snn.provenance["correction"] is record
    assert "correction_removed" not in snn.provenance
    assert alike(settings(snn), before)
    other = plain()
    with other.preserved():
        convert.apply_correction(other, digits(), "moments")
    assert "correction" not in other.provenance


def test_a_given_threshold_stays_what_was_given() -> None:
    names = list(plain().neurons)
    snn = default(threshold={names[0]: 0.75, names[-1]: 1.25})
    for name, theta in ((names[0], 0.75), (names[-1], 1.25)):
        neuron = snn.neurons[name]
        torch.testing.assert_close(neuron.threshold, torch.full_like(neuron.threshold, theta))
        assert neuron.log_amplitude is None
        assert neuron.offset is None
    assert list(snn.provenance["correction"]["passes"]["moments"]) == names[1:-1]
    every = default(threshold=dict.fromkeys(names, 1.0))
    assert correction_in_place(every) is None
    assert "every theta was given or is a trained clip" in every.provenance["correction"]["said"]


@pytest.mark.parametrize(("steps", "delay"), [(4, "full"), (4, 0), (2, 1)])
def test_a_trained_quantizer_is_left_alone(steps: int, delay) -> None:
    """With T = L and full look-ahead it is the source's own staircase, which must stay so."""
    net, x = nn.Sequential(nn.Linear(6, 8), QCFS(), nn.Linear(8, 8), QCFS(), nn.Linear(8, 3)), torch.rand(64, 6)
    snn = convert.to_spiking(net, x, steps, delay=delay)
    other = convert.to_spiking(net, x, steps, delay=delay, correct="none")
    assert alike(settings(snn), settings(other))
    assert "apply_correction matches them all the same" in snn.provenance["correction"]["said"]
    mixed = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), QCFS(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    snn = convert.to_spiking(mixed, x, steps, delay=delay)
    assert list(snn.provenance["correction"]["passes"]["moments"]) == ["1", "5"]
    assert snn.neurons["3"].log_amplitude is None


def test_few_images_choose_no_correction() -> None:
    for count in (1, FEWEST - 1):
        snn = convert.to_spiking(load_digits_net("avg"), digits(count), 2)
        assert alike(settings(snn), settings(convert.to_spiking(load_digits_net("avg"), digits(count), 2, correct="none")))
        assert f"expected at least {FEWEST} calibration images, got {count}" in snn.provenance["correction"]["said"]
    enough = convert.to_spiking(load_digits_net("avg"), digits(FEWEST), 2)
    assert enough.provenance["correction"]["images"] == FEWEST


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("delay", [0, "full"])
def test_networks_of_other_types_are_corrected_in_theirs(dtype: torch.dtype, delay) -> None:
    net, x = two_layers().to(dtype), torch.rand(64, 4).to(dtype)
    snn = convert.to_spiking(net, x, 2, delay=delay)
    assert {"passes", "said"} <= snn.provenance["correction"].keys()
    found = outputs(snn, x)
    assert all(tensor.dtype == dtype and bool(tensor.isfinite().all()) for values in found.values() for tensor in values)
    other = convert.to_spiking(net, x, 2, delay=delay, correct="none")
    assert same(found, outputs(other, x), ("analog",))
    snn.uncorrect()
    assert alike(settings(snn), settings(other))


@pytest.mark.parametrize("name", NETWORKS)
def test_full_look_ahead_is_the_quantized_reading_of_every_kind_of_graph(name: str) -> None:
    """Several inputs and outputs, shapes that are no images, signed neurons, analog units."""
    make, shapes = NETWORKS[name]
    net, inputs = make().eval(), tuple(torch.rand(40, *shape) for shape in shapes)
    snn = convert.to_spiking(net, [inputs], 2, allow_hybrid=True, delay="full")
    other = convert.to_spiking(net, [inputs], 2, allow_hybrid=True, delay="full", correct="none")
    found = outputs(snn, *inputs)
    for spiking, quantized in zip(found["spiking"], found["quantized"], strict=True):
        torch.testing.assert_close(spiking, quantized, rtol=1e-5, atol=1e-6)
    assert same(found, outputs(other, *inputs), ("analog",))
    snn.uncorrect()
    assert alike(settings(snn), settings(other))
    assert same(outputs(snn, *inputs), outputs(other, *inputs))


class Once(IterableDataset[Tensor]):
    """Events (T, 4) of a stream that is gone once it was read."""

    timesteps = 3

    def __init__(self) -> None:
        self.left = [3 * torch.rand(3, 4) * torch.tensor([0.0, 0.0, 1.0]).view(3, 1) for _ in range(40)]

    def __iter__(self) -> Iterator[Tensor]:
        while self.left:
            yield self.left.pop()


def test_a_stream_of_events_is_read_once() -> None:
    stream = Once()
    events = torch.stack(stream.left[::-1], 1)
    net = two_layers()
    snn = convert.to_spiking(net, DataLoader(stream, batch_size=7), 3)
    assert snn.provenance["calibration_images"] == 40
    assert snn.provenance["correction"]["images"] == 40
    by_hand = convert.to_spiking(net, events.mean(0), 3, correct="none")
    convert.apply_correction(by_hand, [events], "moments")
    assert alike(settings(snn), settings(by_hand)), "thresholds see the mean, the correction the steps"


def test_a_sweep_measures_the_network_and_leaves_it_as_it_was() -> None:
    snn, x = default(), digits(64)
    before, record = settings(snn), snn.provenance["correction"]
    table = analysis.sweep(snn, x, timesteps=(2, 4)).set_index(["timesteps", "theta"])
    assert table.loc[(2, "fixed"), "sqnr_db"] == analysis.evaluate(snn, x).sqnr_db
    other = plain()
    assert table.loc[(2, "recalibrated"), "sqnr_db"] == analysis.evaluate(other, x).sqnr_db
    other.timesteps = 4
    other.recalibrate()
    assert table.loc[(4, "recalibrated"), "sqnr_db"] == analysis.evaluate(other, x).sqnr_db
    assert alike(settings(snn), before)
    assert snn.provenance["correction"] is record
    snn.timesteps = 4
    assert table.loc[(4, "fixed"), "sqnr_db"] == analysis.evaluate(snn, x).sqnr_db


def test_the_verdict_makes_the_correction_anew_and_does_not_recommend_what_is_there(tmp_path) -> None:
    x = digits(200)
    reports = [analysis.measure_noise(convert.to_spiking(load_digits_net("max"), x, 2, correct=kind), x)
               for kind in ("none", "moments")]  # fmt: skip
    assert [report.outputs["correction"] for report in reports] == [None, "moments"]
    tried = [[row["setting"] for row in report.outputs["tried"]] for report in reports]
    assert "moments matched" in tried[0], "the case is one of lost gain"
    assert "moments matched" not in tried[1]
    settings = {one.words: one for one in settings_to_try(reports[1].layers, reports[1].outputs)}
    ahead = settings["look-ahead 1"]
    assert ahead.python == 'snn.set_delay(1); convert.apply_correction(snn, calibration, "moments")'
    assert ahead.deed == "let every neuron look 1 step ahead, corrected anew"
    assert all(one.correct == "moments" for one in settings.values() if one.scaled is None)
    assert "look-ahead 1" in tried[1]
    for report, name in zip(reports, ("none", "moments"), strict=True):
        text = (report.save(tmp_path / name) / "report.md").read_text(encoding="utf-8")
        assert ("binary spikes, corrected (moments)" in text) == (name == "moments")


@pytest.mark.parametrize("profile", list(integer.PROFILES))
def test_chips_take_it_as_they_take_none(profile: str) -> None:
    options = {"granularity": "layer"} if integer.PROFILES[profile].one_scale else {}
    programs = [speedysnn.to_integer(make(**options), **options).program for make in (default, plain)]
    found, without = (integer.misfits(program, profile) for program in programs)
    assert [(item.layer, item.advice) for item in found] == [(item.layer, item.advice) for item in without]


def test_whole_numbers_and_exports_answer_as_the_network(tmp_path) -> None:
    snn = default()
    assert any(neuron.offset is not None for neuron in snn.neurons.values())
    pixels = (digits(100) * 255).round().to(torch.uint8)
    with torch.no_grad():
        answers = snn(pixels / 255).argmax(1)
        chip = speedysnn.to_integer(snn)
        assert float((chip(pixels).argmax(1) == answers).float().mean()) > 0.95
        program = torch.export.load(export.export(snn, tmp_path / "net.pt2", to="pt2")).module()
        torch.testing.assert_close(program(digits(4)), snn(digits(4)), rtol=1e-4, atol=1e-4)
    export.export(chip, tmp_path / "c", to="c")
    assert (tmp_path / "c" / "Makefile").is_file()
    pytest.importorskip("nir")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert export.to_nir(snn).nodes


def test_a_reconstruction_starts_from_its_own_correction() -> None:
    """The conversion's was made for spikes, and the first half of a reconstruction works on the quantized reading."""
    config = finetune.ReconstructConfig(epochs=0, output_epochs=0)
    snn, other = default(), plain()
    for network in (snn, other):
        finetune.reconstruct(network, digits(64), config)
    assert alike(settings(snn), settings(other))


def test_tuning_keeps_it_and_what_was_trained_is_not_taken_back() -> None:
    snn = default()
    config = finetune.Config(epochs_quantized=1, epochs_spiking=0, train=("thresholds",), batch_size=64)
    offsets = {name: copy.deepcopy(neuron.offset) for name, neuron in snn.neurons.items()}
    finetune.fit(snn, digits(128), config=config)
    assert correction_in_place(snn) is None, "it is part of what was trained by now"
    trained = settings(snn)
    snn.uncorrect()
    assert alike(settings(snn), trained)
    for name, neuron in snn.neurons.items():
        assert (neuron.offset is None) == (offsets[name] is None)


def test_the_command_has_the_same_default(tmp_path, capsys) -> None:
    command = ["convert", "speedysnn.assets.digits:load_digits_net", "-d", "digits", "-T", "2", "--limit", "64", "-o"]
    assert main([*command, str(tmp_path / "net.snn")]) == 0
    assert "correction: moments kept in" in " ".join(capsys.readouterr().out.split())
    assert correction_in_place(speedysnn.load(tmp_path / "net.snn")) == "moments"
    assert main([*command, str(tmp_path / "plain.snn"), "--correct", "none"]) == 0
    assert "correction:" not in capsys.readouterr().out


def test_a_network_says_that_its_correction_was_made_for_other_settings() -> None:
    snn = default()
    assert "correction" not in snn.extra_repr()
    snn.set_delay(1)
    assert "the correction (moments) was made for T=2, look-ahead 0 and binary spikes" in snn.extra_repr()
    convert.apply_correction(snn, digits(), "moments")
    assert "correction" not in snn.extra_repr()
