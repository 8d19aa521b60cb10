"""What the verdict recommends was tried on some of the images, is better there, and leaves nothing in the network."""

import copy
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from speedysnn.analysis import NoiseSums, measure_noise
from speedysnn.analysis.noise.measure import MOST_TRIED, TRIED
from speedysnn.analysis.report.verdict import PRESENT, Setting, advise, settings_to_try
from speedysnn.convert import apply_correction, to_spiking
from speedysnn.errors import InputError

OUTPUTS: dict[str, Any] = {
    "images": 100, "timesteps": 8, "delay": 1, "latency": 13, "depth": 5, "spikes": "binary", "spikes_per_neuron": 0.8,
    "accuracy": None, "twin_accuracy": None, "analog_accuracy": None, "agreement": 0.58, "twin_agreement": 0.75,
    "sqnr_db": 5.0, "twin_sqnr_db": 9.0, "temporal_gap_db": 4.0,
}  # fmt: skip
LAYER: dict[str, Any] = {
    "layer": "relu1", "reads": "", "sqnr_db": 5.0, "silent": 0.0, "bias_share": 0.1, "saturated": 0.01,
    "share_clip": 0.0, "share_round": 0.0, "share_propagated": 0.0, "share_temporal": 0.9,
    "affine_share": 0.0, "drive_gain": 1.0,
}  # fmt: skip


def row(setting: str, agreement: float | None, sqnr: float, latency: int = 13, spikes: float = 0.8) -> dict[str, Any]:
    return dict(zip(TRIED, (setting, 64, agreement, sqnr, latency, spikes), strict=True))


def advice(tried: list[dict[str, Any]], layer: dict[str, Any] | None = None, **outputs: Any) -> list[Any]:
    return list(advise(pd.DataFrame([{**LAYER, **(layer or {})}]), {**OUTPUTS, "tried": tried, **outputs}))


def said(*args: Any, **outputs: Any) -> str:
    return " ".join(one.sentence() for one in advice(*args, **outputs))


def rows_of(noise: Any) -> dict[str, dict[str, Any]]:
    return {one["setting"]: one for one in noise.outputs["tried"]}


def state(snn: Any) -> Any:
    neurons = [(n.delay, n.spikes, n.timesteps, n.offset, n.log_amplitude, n.log_threshold.data.clone(),
                n.v_init.data.clone()) for n in snn.neurons.values()]  # fmt: skip
    return snn.timesteps, snn.images_per_pass, json.dumps(snn.provenance), neurons, [id(p) for p in snn.parameters()]


def test_what_was_better_is_recommended_best_first_with_its_figures_and_price() -> None:
    tried = [row(PRESENT, 0.58, 5.0), row("look-ahead 2", 0.6, 5.5, 18), row("ternary spikes", 0.75, 8.8, 13, 1.02),
             row("look-ahead 2, ternary spikes", 0.58, 5.08, 18)]  # fmt: skip
    calls = [one for one in advice(tried) if one.python.startswith("snn.")]
    assert [one.python for one in calls] == ['snn.set_spikes("ternary")', "snn.set_delay(2)"]
    assert calls[0].text == (
        "Recommended, as measured on 64 of the images, best first. Let neurons take spikes back: agreement 75.0 % "
        "instead of 58.0 %, output SQNR 8.8 dB instead of 5.0 dB, latency 13 steps as now, spikes per neuron 1.02 "
        "instead of 0.80."
    )
    assert "latency 18 steps instead of 13 steps" in calls[1].text
    assert calls[0].argv[-2:] == ("--spikes", "ternary")
    assert (
        "Tried on 64 of the images and no better than as it is (agreement 58.0 %, output SQNR 5.0 dB): look-ahead 2, "
        "ternary spikes (agreement 58.0 %, output SQNR 5.1 dB)." in said(tried)
    )


def test_nothing_is_recommended_where_nothing_helped() -> None:
    tried = [row(PRESENT, 0.58, 5.0), row("look-ahead 2", 0.57, 9.0), row("ternary spikes", 0.4, 3.0),
             row("look-ahead 2, ternary spikes", 0.5, 4.0)]  # fmt: skip
    assert "Recommended" not in said(tried)
    assert not [one for one in advice(tried) if one.python.startswith("snn.")]
    assert said(tried).count("no better than as it is") == 1


def test_without_classes_the_output_decides() -> None:
    tried = [row(PRESENT, None, 5.0), row("look-ahead 2", None, 7.0), row("ternary spikes", None, 4.0)]
    text = said(tried, agreement=None, twin_agreement=None)
    assert "look 2 steps ahead: output SQNR 7.0 dB instead of 5.0 dB" in text
    assert "ternary spikes (output SQNR 4.0 dB)" in text
    assert "None" not in text
    silent = [row(PRESENT, None, math.nan), row("ternary spikes", None, math.nan)]
    assert "Recommended" not in said(silent, agreement=None, twin_agreement=None)


def test_what_was_not_tried_and_training_are_possibilities() -> None:
    for one in advice([]):
        if one.python:
            assert one.text.startswith(("Possible, but not tried here: ", "Possible, but not measured here: "))
    tried = [row(PRESENT, 0.58, 5.0), row("look-ahead 2", 0.6, 5.5)]
    assert "Possible, but not tried here: let neurons take spikes back." in said(tried)
    assert said(tried).count("Possible, but not measured here: training through time.") == 1


@pytest.mark.parametrize(
    ("layer", "outputs", "words"),
    [
        ({}, {}, ["look-ahead 2", "ternary spikes", "look-ahead 2, ternary spikes"]),
        ({}, {"spikes": "ternary"}, ["look-ahead 2"]),
        ({}, {"delay": "full"}, ["ternary spikes"]),
        ({}, {"delay": "mixed", "spikes": "mixed"}, ["look-ahead full"]),
        ({"share_temporal": 0.0, "share_clip": 1.0}, {"temporal_gap_db": 0.0}, ["theta of relu1 x 1.25"]),
        ({"share_temporal": 0.0, "share_round": 1.0}, {"temporal_gap_db": 0.0}, ["T = 16, theta chosen again"]),
        ({"share_propagated": 1.0, "affine_share": 0.5}, {"temporal_gap_db": 0.0}, ["moments matched"]),
        ({"bias_share": 0.9}, {"temporal_gap_db": 0.0}, []),
    ],
)
def test_settings_fit_what_was_found(layer: dict[str, Any], outputs: dict[str, Any], words: list[str]) -> None:
    found = settings_to_try(pd.DataFrame([{**LAYER, **layer}]), {**OUTPUTS, **outputs})
    assert [one.words for one in found] == words
    assert all(isinstance(one, Setting) and one.python for one in found)


def test_reconstruction_is_possible_where_gain_is_lost() -> None:
    call, lost, clip = (
        "finetune.reconstruct(snn, images)",
        {"share_propagated": 1.0, "affine_share": 0.5},
        {"share_clip": 1.0},
    )
    for layer, named in ((lost, True), (clip, False)):
        found = advice([], {"share_temporal": 0.0, **layer}, temporal_gap_db=0.0)
        assert (call in [one.python for one in found]) == named


def test_rows_are_what_the_settings_give(build, digits) -> None:
    snn, x = build("max", 4), digits[0][:40]
    noise = measure_noise(snn, x)
    rows = rows_of(noise)
    assert list(rows) == [PRESENT, "look-ahead 1", "ternary spikes", "look-ahead 1, ternary spikes"]
    with snn.reading("analog"), torch.no_grad():
        a = snn(x).double().numpy()
    for setting, delay, spikes in ((PRESENT, 0, "binary"), ("look-ahead 1, ternary spikes", 1, "ternary")):
        other = copy.deepcopy(snn)
        other.set_delay(delay)
        other.set_spikes(spikes)
        with torch.no_grad():
            s = other(x).double().numpy()
        found = rows[setting]
        assert tuple(found) == TRIED
        assert found["images"] == 40
        assert found["agreement"] == np.mean(s.argmax(1) == a.argmax(1))
        assert found["sqnr_db"] == pytest.approx(10 * np.log10((a**2).sum() / ((s - a) ** 2).sum()), abs=1e-4)
        assert found["latency"] == other.latency
    assert rows[PRESENT]["spikes_per_neuron"] == pytest.approx(noise.outputs["spikes_per_neuron"])


def test_the_images_are_some_of_all_whatever_the_batches(build, digits) -> None:
    snn, (x, y) = build("max", 4), digits
    noise = measure_noise(snn, (x, y), try_settings=20)
    assert [one["images"] for one in noise.outputs["tried"]] == [20] * len(noise.outputs["tried"])
    assert len(noise.outputs["tried"]) <= MOST_TRIED + 1
    again = measure_noise(snn, [(x[i : i + 7], y[i : i + 7]) for i in range(0, 130, 7)], try_settings=20)
    assert again.outputs["tried"] == noise.outputs["tried"]
    assert again.verdict == noise.verdict


def test_the_network_stays_bit_for_bit(build, digits) -> None:
    snn, x = build("max", 2), digits[0]
    snn.step(x[:2])
    stream, before, out = snn._stream, state(snn), snn.read("spiking", x)
    noise = measure_noise(snn, x)
    assert "moments matched" in rows_of(noise)
    after = state(snn)
    assert after[:3] == before[:3]
    assert after[4] == before[4]
    for new, old in zip(after[3], before[3], strict=True):
        assert new[:5] == old[:5]
        assert torch.equal(new[5], old[5])
        assert torch.equal(new[6], old[6])
    assert snn._stream is stream
    assert torch.equal(snn.read("spiking", x), out)


def test_moments_are_chosen_on_other_images(build, digits) -> None:
    snn, x = build("max", 2), digits[0][:96]  # no more than are kept: the first 64 are tried on, the rest chooses
    found = rows_of(measure_noise(snn, x))["moments matched"]
    other = apply_correction(copy.deepcopy(snn), x[64:], "moments")
    with torch.no_grad():
        a, s = (other.read(reading, x[:64]).double() for reading in ("analog", "spiking"))
    assert found["sqnr_db"] == pytest.approx(float(10 * torch.log10((a**2).sum() / ((s - a) ** 2).sum())), abs=1e-4)
    few = measure_noise(snn, x[:70])
    assert "moments matched" not in rows_of(few)
    assert any("Possible, but not tried here: match the moments" in one.text for one in few.advice)


def test_more_steps_and_another_theta_are_tried() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.rand(60, 6)
    snn = to_spiking(net, x, timesteps=4, correct="none")
    doubled = measure_noise(snn, x)
    assert "T = 8, theta chosen again" in rows_of(doubled)
    assert rows_of(doubled)["T = 8, theta chosen again"]["sqnr_db"] > rows_of(doubled)[PRESENT]["sqnr_db"]
    assert "Take more steps, T = 8, with theta chosen again: " in " ".join(doubled.verdict)
    assert snn.timesteps == 4
    for neuron in snn.neurons.values():
        neuron.scale(0.6)
    raised = measure_noise(snn, x)
    name = next(iter(snn.neurons))
    assert rows_of(raised)[f"theta of {name} x 1.25"]["sqnr_db"] > rows_of(raised)[PRESENT]["sqnr_db"]
    events = measure_noise(snn, x.expand(4, 60, 6))
    assert f"theta of {name} x 1.25" in rows_of(events)


def test_a_tuned_network_is_compared_with_its_source(build, digits) -> None:
    source, x = build("max", 4), digits[0][:32]
    snn = copy.deepcopy(source)
    for layer in snn.layers.values():
        if getattr(layer, "bias", None) is not None:
            layer.bias.data += 0.02
    found = rows_of(measure_noise(snn, x, source))[PRESENT]
    with torch.no_grad():
        a, s = source.read("analog", x).double(), snn.read("spiking", x).double()
    assert found["sqnr_db"] == pytest.approx(float(10 * torch.log10((a**2).sum() / ((s - a) ** 2).sum())), abs=1e-4)


def test_nothing_is_tried_where_none_is_asked_for(build, digits) -> None:
    snn, x = build("max", 4), digits[0][:20]
    noise = measure_noise(snn, x, try_settings=0)
    assert noise.outputs["tried"] == []
    assert "Recommended" not in " ".join(noise.verdict)
    assert noise.verdict == NoiseSums(snn).add(x).report().verdict
    for wrong in (-1, 1.5, True):
        with pytest.raises(InputError, match="try_settings"):
            measure_noise(snn, x, try_settings=wrong)


def test_the_rows_stand_in_the_files(build, digits, tmp_path) -> None:
    noise = measure_noise(build("max", 4), digits[0][:20])
    folder = noise.save(tmp_path / "report")
    data = json.loads((folder / "noise.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert data["outputs"]["tried"] == json.loads(json.dumps(noise.outputs["tried"]))
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "Settings tried on 20 of the images" in text
        assert text.count("look-ahead 1, ternary spikes") >= 1
    silent = noise.outputs["tried"][0] | {"sqnr_db": math.nan, "agreement": None}
    noise.outputs["tried"][:] = [silent]  # type: ignore[index]
    assert {"outputs.tried[0].sqnr_db", "outputs.tried[0].agreement"} <= set(noise.to_json()["reasons"])
