"""What is written: strict JSON, the folder, the page, the figures; and the rules of the verdict on made-up tables."""

import json
import math
import re
import warnings

import pandas as pd
import pytest
import torch
from torch import nn

from speedysnn.analysis import COLUMNS, measure_noise, sweep
from speedysnn.analysis.report import figures
from speedysnn.analysis.report.verdict import verdict
from speedysnn.convert import to_spiking
from speedysnn.display import plain
from speedysnn.errors import InputError

OUTPUT = {
    "images": 100, "timesteps": 4, "delay": 0, "latency": 4, "depth": 5, "spikes": "binary", "spikes_per_neuron": 0.8,
    "accuracy": 0.8, "twin_accuracy": 0.9, "analog_accuracy": 0.98, "agreement": 0.8, "twin_agreement": 0.9,
    "sqnr_db": 6.0, "twin_sqnr_db": 6.5, "temporal_gap_db": 0.5,
}  # fmt: skip
PICTURES = {"sqnr.png", "causes.png", "gain.png", "rmse.png", "activity.png"}
FILES = {"layers.csv", "noise.json", "report.html", "report.md", *PICTURES}


def strictly(data):
    return json.loads(json.dumps(data, allow_nan=False))


def layer(name="relu1", reads="", sqnr=8.0, saturated=0.01, bias_share=0.1, silent=0.5, affine=0.0, **shares):
    row = dict.fromkeys(COLUMNS, 0.5)
    row.update(layer=name, reads=reads, kind="binary", delay=0, timesteps=4, n=1000)
    row.update(sqnr_db=sqnr, floor_db=sqnr + 9, gap_db=9.0, twin_sqnr_db=sqnr + 3)
    row.update(saturated=saturated, bias_share=bias_share, silent=silent, affine_share=affine, drive_gain=1.0)
    row.update({f"share_{part}": shares.get(part, 0.0) for part in ("clip", "round", "propagated", "temporal")})
    return row


def said(rows, **outputs):
    return " ".join(verdict(pd.DataFrame(rows, columns=list(COLUMNS)), {**OUTPUT, **outputs}))


def test_json_is_strict_and_every_null_has_its_reason(build, digits):
    noise = measure_noise(build(), digits[0][:20])
    data = strictly(noise.to_json())
    assert data["schema"] == "speedysnn-noise/1"
    assert len(data["layers"]) == len(noise.layers)
    assert data["outputs"]["accuracy"] is None
    assert "labels" in data["reasons"]["outputs.accuracy"]
    assert data["columns"]["sqnr_db"]["higher_is_better"] is True
    assert data["outputs"]["twin_sqnr_db"] == noise.outputs["twin_sqnr_db"]


def test_a_silent_source_gives_nan_with_a_reason_and_no_error_gives_infinity():
    net = nn.Sequential(nn.ReLU())
    x = torch.rand(8, 10)
    snn = to_spiking(net, x, timesteps=4, threshold="max", granularity="layer")
    silent = measure_noise(snn, -x)
    row = silent.layers.iloc[0]
    for name in ("sqnr_db", "gap_db", "gain", "cosine", "share_clip", "share_round", "bias_share"):
        assert math.isnan(row[name]), name
    assert (row["silent"], row["rate"], row["rmse_steps"], row["residual"]) == (1, 0, 0, 0)
    data = strictly(silent.to_json())
    nulls = {f"layers[0].{name}" for name, value in data["layers"][0].items() if value is None}
    nulls |= {f"outputs.{name}" for name, value in data["outputs"].items() if value is None}
    assert nulls == set(data["reasons"])
    assert "zero throughout" in data["reasons"]["layers[0].sqnr_db"]

    exact = measure_noise(snn, torch.full((8, 10), float(snn.neurons["0"].threshold.detach())))
    row = exact.layers.iloc[0]
    assert row["sqnr_db"] == math.inf
    assert math.isnan(row["share_round"])
    assert row["saturated"] == 1
    data = strictly(exact.to_json())
    assert data["layers"][0]["sqnr_db"] == "inf"
    assert data["layers"][0]["share_round"] is None
    assert "no error" in data["reasons"]["layers[0].share_round"]
    for noise in (silent, exact):
        assert noise.verdict
        assert noise._repr_html_()
        assert "nan" not in " ".join(noise.verdict)


def test_plain():
    given = (math.inf, -math.inf, math.nan, 1.5, None, "x", 3)
    assert [plain(x) for x in given] == ["inf", "-inf", None, 1.5, None, "x", 3]
    assert type(plain(torch.tensor(2.0))) is float


def test_save_writes_a_folder_that_loads_nothing(build, digits, tmp_path):
    snn = build("max")
    noise, curve = measure_noise(snn, digits), sweep(snn, (digits[0][:30], digits[1][:30]), [1, 4])
    folder = noise.save(tmp_path / "a" / "report", sweep=curve)
    assert {p.name for p in folder.iterdir()} == FILES | {"sweep.csv", "sweep.png"}
    assert list(pd.read_csv(folder / "layers.csv").columns) == list(COLUMNS)
    assert len(pd.read_csv(folder / "sweep.csv")) == 4
    assert json.loads((folder / "noise.json").read_text(), parse_constant=pytest.fail)["verdict"] == list(noise.verdict)
    for picture in folder.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script[^>]|<link|@import|url\(", page)
    assert {source[:22] for source in re.findall(r'src="([^"]*)"', page)} == {"data:image/png;base64,"}
    assert page.count("<img") == 6
    body = page.partition("<body>")[2]
    assert body.index('class="verdict"') < body.index("Outputs") < body.index("All layers") < body.index("Figures")
    first = re.search(r'class="lead">([^<]*)<', body)
    assert first is not None
    assert first[1].startswith("On 130 images the spiking network")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    noise.save(folder, sweep=curve)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_save_refuses_a_file_in_the_way(build, digits, tmp_path):
    noise = measure_noise(build(), digits[0][:8])
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for target in (taken, taken / "below"):
        with pytest.raises(InputError, match="taken"):
            noise.save(target)
    assert taken.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [taken]


def test_layer_names_are_escaped_in_the_page(build, digits):
    noise = measure_noise(build(), digits[0][:8])
    noise.layers.loc[0, "layer"] = "<script>alert(1)</script>"
    assert "<script>" not in noise._repr_html_()


@pytest.mark.parametrize("count", [1, 5, 60])
def test_figures_of_any_number_of_layers(count):
    rows = [layer(f"features.stage{i // 10}.block{i}.a_rather_long_name.relu", sqnr=float(i % 7), clip=0.2, round=0.9,
                  temporal=-0.1) for i in range(count)]  # fmt: skip
    layers = pd.DataFrame(rows, columns=list(COLUMNS))
    layers.loc[0, ["sqnr_db", "floor_db", "share_clip", "share_round"]] = [math.nan, math.inf, math.nan, math.nan]
    table = pd.DataFrame([
        {"timesteps": t, "theta": kind, "delay": 0, "accuracy": None, "twin_accuracy": None, "analog_accuracy": None,
         "agreement": 0.5, "twin_agreement": 0.6, "sqnr_db": 3.0, "twin_sqnr_db": math.inf}
        for t in (1, 3, 32) for kind in ("fixed", "recalibrated")
    ])  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = figures.all_figures(layers, table)
        for figure in drawn.values():
            figure.savefig("/dev/null", format="png", dpi=40)
    assert set(drawn) == {"sqnr", "causes", "gain", "rmse", "activity", "sweep"}
    for name, figure in drawn.items():
        legends = [text.get_text() for text in (*figure.legends, *(a.get_legend() for a in figure.axes)) if text
                   for text in text.get_texts()]  # fmt: skip
        assert any("ideal" in text for text in legends), name


def test_verdict_opens_with_the_cost_and_the_result():
    text = said([layer(round=1.0)])
    cost = "T = 4, look-ahead 0, latency 4 steps, 0.80 spikes per neuron"
    assert text.startswith(f"On 100 images the spiking network ({cost})")
    assert "80.0 %" in text
    assert "98.0 %" in text


def test_verdict_without_labels_or_classes():
    nothing = dict.fromkeys(("accuracy", "twin_accuracy", "analog_accuracy", "agreement", "twin_agreement"))
    text = said([layer(round=1.0)], **nothing)
    assert "None" not in text
    assert "output SQNR of 6.0 dB" in text


def test_clip_dominant_says_raise_theta():
    text = said([layer(clip=0.8, round=0.2, saturated=0.2)])
    assert "relu1" in text
    assert "raise theta" in text
    assert "20.0 % of its elements" in text
    assert "lower theta" not in text


def test_round_dominant_and_nothing_saturated_says_lower_theta():
    text = said([layer(clip=0.0, round=1.0, saturated=0.0)])
    assert "lower theta" in text
    assert "raise theta" not in text


def test_round_dominant_and_some_saturated_says_more_steps():
    text = said([layer(clip=0.2, round=0.8, saturated=0.03)])
    assert "take more steps" in text
    assert "snn.timesteps = 8" in text
    assert "lower theta" not in text


@pytest.mark.parametrize(("delay", "cure"), [(0, "set_delay(1)"), (1, "set_delay(2)"), (3, 'set_delay("full")')])
def test_timing_is_named_before_any_layer_and_its_cure_fits_the_look_ahead(delay, cure):
    text = said([layer(temporal=0.9, round=0.1)], delay=delay, twin_sqnr_db=16.0, temporal_gap_db=10.0)
    assert "Spike timing costs 10.0 dB" in text
    assert cure in text
    assert text.index("Spike timing") < text.index("Worst layer")
    assert "a threshold does not help" in text
    assert "raise theta" not in text
    assert "lower theta" not in text


def test_a_timing_cure_is_named_even_where_its_cost_at_the_output_is_small():
    text = said([layer(temporal=0.9, round=0.1)], temporal_gap_db=0.2)
    assert "set_delay(1)" in text
    assert "above" not in text or text.index("set_delay(1)") < text.index("above")


def test_propagated_dominant_names_the_layer_where_it_starts():
    rows = [
        layer("first", sqnr=15.0, round=1.0),
        layer("second", "first", sqnr=9.0, clip=0.9, propagated=0.1, saturated=0.3),
        layer("aside", sqnr=2.5, clip=1.0),
        layer("third", "second", sqnr=2.0, propagated=0.9, round=0.1),
    ]
    text = said(rows)
    assert "Worst layer: third" in text
    assert "Of the layers before it, second adds most" in text
    assert "snn.neurons['second'].scale(1.25" in text
    assert "aside" not in text


def test_gain_lost_with_depth_is_named_with_what_removes_it():
    rows = [layer("first", sqnr=15.0, round=1.0), layer("deep", "first", sqnr=2.0, propagated=0.95, round=0.05, affine=0.6)]
    text = said(rows)
    assert "95.0 % of its squared error is propagated: it comes in from earlier layers, 60.0 % as gain" in text
    assert "lost with depth, 35.0 % as noise." in text
    assert 'Gain and offset lost with depth: 60.0 % of the error of deep' in text
    assert 'convert.apply_correction(snn, calibration, "moments")' in text
    assert "Of the layers before it, first adds most" in text
    rows[1].update(affine_share=0.05, drive_gain=0.7)
    assert "with the slope 0.70" in said(rows)
    rows[1].update(drive_gain=0.95)
    assert "moments" not in said(rows)


def test_constant_error_is_cured_by_biases():
    assert 'train=("biases", "v_init")' in said([layer(round=1.0, bias_share=0.8)])


def test_a_layer_that_never_fires():
    text = said([layer(round=1.0, silent=1.0, saturated=0.0, sqnr=0.0)])
    assert "never fires" in text
    assert "lower theta" in text


def test_good_enough_says_so_first():
    fine = {"agreement": 0.999, "twin_agreement": 1.0, "sqnr_db": 25.0, "twin_sqnr_db": 25.0, "temporal_gap_db": 0.0}
    text = said([layer(round=1.0)], **fine)
    assert "Nothing needs to be done" in text
    assert text.index("Nothing needs") < text.index("Worst layer")


def test_quantization_is_not_the_problem():
    text = said([layer(temporal=1.0)], twin_agreement=1.0, twin_sqnr_db=25.0, temporal_gap_db=19.0)
    assert "Quantization is not the problem" in text


def test_verdict_of_a_real_network_names_timing(build, digits):
    assert any("set_delay(1)" in sentence for sentence in measure_noise(build("max", 4), digits).verdict)
