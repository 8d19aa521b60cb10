"""Networks beside one another: the tables, what was removed, the fronts, and the files."""

import json
import math

import pandas as pd
import pytest
import torch

from speedysnn.analysis import Comparison, compare, measure_noise
from speedysnn.analysis.noise.schema import COLUMNS
from speedysnn.analysis.report.comparisons import all_figures, front
from speedysnn.errors import InputError

CAUSES = ("clip", "round", "propagated", "temporal")


@pytest.fixture(scope="module")
def reports(build_once, images):
    return {"two": measure_noise(build_once("avg", 2), images), "eight": measure_noise(build_once("avg", 8), images)}


@pytest.fixture(scope="module")
def build_once(request):
    return request.getfixturevalue("build")


@pytest.fixture(scope="module")
def images(request):
    torch.manual_seed(0)
    return torch.rand(40, 1, 8, 8), torch.randint(10, (40,))


def test_tables_are_those_of_the_reports(reports):
    found = compare(reports)
    assert isinstance(found, Comparison)
    assert list(found.outputs["network"]) == ["two", "eight"]
    for name, report in reports.items():
        own = found.layers[found.layers["network"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(own[list(COLUMNS)], report.layers, check_dtype=False)
        row = found.outputs.set_index("network").loc[name]
        assert all(row[field] == value for field, value in report.outputs.items() if field != "tried")
        assert "tried" not in row  # what one network may do better is its own report's


def test_networks_and_their_reports_compare_alike(build, reports, images):
    networks = {"two": build("avg", 2), "eight": build("avg", 8)}
    before = {name: (snn.timesteps, snn.present_reading) for name, snn in networks.items()}
    batches = iter([(images[0][:7], images[1][:7]), (images[0][7:], images[1][7:])])  # read once, used twice
    assert json.dumps(compare(networks, batches).to_json()) == json.dumps(compare(reports).to_json())
    assert {name: (snn.timesteps, snn.present_reading) for name, snn in networks.items()} == before


def test_removed_by_hand(reports):
    found = compare(reports)
    for name, report in reports.items():
        own = found.layers[found.layers["network"] == name]
        for (_, row), old, new in zip(own.iterrows(), reports["two"].layers.to_dict("records"),
                                      report.layers.to_dict("records"), strict=True):  # fmt: skip
            ratio = 10 ** ((old["sqnr_db"] - new["sqnr_db"]) / 10)
            assert row["removed"] == pytest.approx(1 - ratio)
            assert sum(row[f"removed_{cause}"] for cause in CAUSES) == pytest.approx(row["removed"], abs=1e-6)
            assert row["removed_affine"] == pytest.approx(old["affine_share"] - ratio * new["affine_share"])
            assert row["removed_round"] == pytest.approx(old["share_round"] - ratio * new["share_round"])
    first, second = found.outputs["removed"]
    assert first == 0
    assert 0 < second < 1


def test_other_layers_have_nothing_to_hold_against(reports):
    table = reports["eight"].layers.copy()
    table.loc[0, "layer"] = "new"
    changed = type(reports["eight"])(table, reports["eight"].outputs, ())
    found = compare({"two": reports["two"], "changed": changed}).layers
    rows = found[found["network"] == "changed"].set_index("layer")
    assert math.isnan(rows.loc["new", "removed"])
    assert rows["removed"].notna().sum() == len(rows) - 1


@pytest.mark.parametrize(("first", "expected"), [(math.inf, math.nan), (20.0, 1.0)])
def test_a_layer_without_noise(reports, first, expected):
    kind, base = type(reports["two"]), reports["two"]

    def silenced(sqnr_db):
        table = base.layers.copy()
        table.loc[0, "sqnr_db"] = sqnr_db
        if math.isinf(sqnr_db):
            table.loc[0, [f"share_{cause}" for cause in CAUSES]] = math.nan
        return kind(table, base.outputs, ())

    found = compare({"a": silenced(first), "b": silenced(math.inf)})
    row = found.layers[found.layers["network"] == "b"].iloc[0]
    assert row["removed"] == pytest.approx(expected, nan_ok=True)
    assert set(all_figures(found.layers, found.outputs)) == {"sqnr", "causes", "removed", "pareto"}
    json.dumps(found.to_json(), allow_nan=False)


def test_front():
    assert front([(4, 0.9), (2, 0.5), (8, 0.9), (2, 0.6), (6, 0.8), (9, 0.95), (9, 0.95)]) == [
        (2, 0.6), (4, 0.9), (9, 0.95)]  # fmt: skip


def test_figures_draw_every_network_and_the_ideals(reports):
    drawn = compare(reports).figures()
    labels = {name: [text.get_text() for text in figure.legends[0].get_texts()] for name, figure in drawn.items()}
    assert {"two", "eight"} <= set(labels["sqnr"]) & set(labels["pareto"])
    assert all(any(label.startswith("ideal") or "(ideal" in label for label in found) for found in labels.values())
    for figure in drawn.values():
        assert all(axes.get_ylabel() or not axes.get_subplotspec().is_first_col() for axes in figure.axes)
    assert [axes.get_xlabel() for axes in drawn["pareto"].axes] == ["latency (steps)", "spikes (events per image)"]
    assert set(compare({"two": reports["two"]}).figures()) == {"sqnr", "causes", "pareto"}


def test_save_writes_whole_files_and_refuses_to_overwrite(reports, tmp_path):
    found = compare(reports)
    folder = found.save(tmp_path / "deep" / "out")
    names = {"layers.csv", "outputs.csv", "comparison.json", "sqnr.png", "causes.png", "removed.png", "pareto.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "comparison.json").read_text()) == found.to_json()
    assert list(pd.read_csv(folder / "outputs.csv")["network"]) == ["two", "eight"]
    (folder / "layers.csv").write_text("mine")
    with pytest.raises(InputError, match="layers.csv.*overwrite=True"):
        found.save(folder)
    assert (folder / "layers.csv").read_text() == "mine"
    found.save(folder, overwrite=True)
    assert len(pd.read_csv(folder / "layers.csv")) == len(found.layers)
    assert {path.name for path in folder.iterdir()} == names
    with pytest.raises(InputError, match="a file is there"):
        found.save(folder / "layers.csv", overwrite=True)


def test_bad_input(build, reports, images):
    for networks, said in (
        ({}, "expected a dict"),
        ([reports["two"]], "expected a dict"),
        ({1: reports["two"]}, "expected names"),
        ({"a": 3}, r"networks\['a'\]: expected a NoiseReport or a SpikingNetwork, got int"),
        ({"a": build("avg", 2)}, "pass data="),
    ):
        with pytest.raises(InputError, match=said):
            compare(networks)
    fewer = measure_noise(build("avg", 2), images, limit=5)
    with pytest.raises(InputError, match="the same images, got 'two' 40, 'fewer' 5"):
        compare({"two": reports["two"], "fewer": fewer})
