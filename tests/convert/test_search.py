"""Search: limits hold, the best is the best of its table, the same call gives the same result, and what cannot be is said."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from speedysnn import artifact, convert, data
from speedysnn.assets.digits import load_digits_net
from speedysnn.convert.candidates import Candidate, Limits, Trials, fit_batches, fronts
from speedysnn.errors import DataError, InputError


@pytest.fixture(scope="module")
def images():
    return data.load("digits", "train", limit=64)


@pytest.fixture(scope="module")
def found(images):
    return convert.search(load_digits_net(), images, timesteps=(2, 4), spikes="binary", corrections=("none", "bias"))


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def _tiny(**options):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(48, 6, generator=generator)
    return convert.search(_net(), images, timesteps=(2, 4), delays=(0, 1), **options)


def test_the_best_is_the_best_of_the_rows_scored_on_all_images(found) -> None:
    whole = found.table[found.table["images"] == found.scored_on]
    best = found.table[found.table["best"]]
    assert len(best) == 1
    assert best["agreement"].iloc[0] == whole["agreement"].max()
    alike = whole[whole["agreement"] == whole["agreement"].max()]
    assert best["kl"].iloc[0] == alike["kl"].min()


def test_the_frontier_is_what_no_other_row_beats(found) -> None:
    """The definition again in numpy: worse or equal in all three, and not alike."""
    whole = found.table[found.table["images"] == found.scored_on]
    quality = [(-a, kl) for a, kl in zip(whole["agreement"], whole["kl"], strict=True)]
    order = {value: place for place, value in enumerate(sorted(set(quality)))}
    points = np.array([[order[q] for q in quality], whole["latency"], whole["bits_per_image"]], dtype=float).T
    beaten = [bool(((points <= p).all(1) & (points < p).any(1)).any()) for p in points]
    assert whole["frontier"].tolist() == [not x for x in beaten]
    assert not found.table[found.table["images"] < found.scored_on]["frontier"].any()


def test_the_best_network_gives_the_figures_of_its_row(found, images, tmp_path) -> None:
    artifact.save(found.best, tmp_path / "best.snn")
    snn, row = artifact.load(tmp_path / "best.snn"), found.table[found.table["best"]].iloc[0]
    held = torch.cat([batch.inputs[0] for batch in data.batches.iter_batches(images)])[1::2]
    with torch.no_grad():
        same = snn(held).argmax(1) == snn.read("analog", held).argmax(1)
    assert float(same.double().mean()) == row["agreement"]
    assert snn.latency == row["latency"]
    assert snn.timesteps == row["timesteps"]
    assert snn.provenance["search"]["agreement"] == row["agreement"]


def test_single_layers_get_levels_of_their_own() -> None:
    table = _tiny(corrections="none", levels="graded:4").table
    given = table[table["layers"] != ""]
    assert len(given) > 0
    plain = table[(table["layers"] == "") & (table["spikes"] == "binary")]
    assert np.allclose(plain["bits_per_image"], plain["spikes_per_image"])
    assert (given["bits_per_image"] > given["spikes_per_image"]).all()
    assert set(given["layers"].str.extractall("=(graded:4)")[0]) == {"graded:4"}
    assert not (_tiny(corrections="none", levels=()).table["layers"] != "").any()


def test_the_same_call_gives_the_same_result() -> None:
    first, second = _tiny(), _tiny()
    assert first.table.equals(second.table)
    states = first.best.state_dict(), second.best.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_limit_on_latency_holds() -> None:
    table = _tiny(max_latency=4).table
    assert table["latency"].max() <= 4
    assert (table["latency"] == 4).any()


@pytest.mark.parametrize(
    ("limit", "column"), [("max_spikes_per_image", "spikes_per_image"), ("max_synops", "synops_per_image")]
)
def test_a_limit_on_events_holds(limit: str, column: str) -> None:
    free = _tiny(levels=()).table
    whole = free[free["images"] == free["images"].max()][column]
    most = float(whole.min() + whole.max()) / 2
    found = _tiny(levels=(), **{limit: most})
    assert found.constraints == {limit: most}
    assert found.table[found.table["best"]][column].iloc[0] <= most
    assert (found.table[found.table["frontier"]][column] <= most).all()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_latency": 1}, "the least is 2 .*raise max_latency"),
        ({"max_spikes_per_image": 0.01}, "least for max_spikes_per_image"),
        ({"max_synops": 0.01}, "least for max_synops"),
        ({"max_latency": 0}, "max_latency: expected a number above 0"),
        ({"spikes": "purple"}, "spikes"),
        ({"corrections": "magic"}, "correct"),
        ({"spikes": ()}, "spikes: expected at least one"),
        ({"images": 4}, "images: expected"),
    ],
)
def test_what_cannot_be_is_said(limits, said: str) -> None:
    with pytest.raises(InputError, match=said):
        _tiny(**limits)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="at least 8 images"):
        convert.search(_net(), torch.rand(6, 6))


def test_a_spiking_network_is_left_as_it_is() -> None:
    images = torch.rand(48, 6, generator=torch.Generator().manual_seed(1))
    snn = convert.to_spiking(_net(), images, timesteps=4, threshold="max")
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    found = convert.search(snn, images, timesteps=2, delays=0, levels=())
    assert snn.timesteps == 4
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())
    assert set(found.best.calibration.rules.values()) == {"max"}


def test_a_network_without_histograms_is_refused() -> None:
    snn = convert.to_spiking(_net(), torch.rand(48, 6))
    snn.calibration.histograms.clear()
    with pytest.raises(InputError, match="holds no histograms"):
        convert.search(snn, torch.rand(48, 6))


def test_without_classes_the_squared_error_decides() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    table = convert.search(net, torch.rand(48, 6), timesteps=(2, 8), spikes="binary", delays=0, levels=()).table
    assert table["agreement"].isna().all()
    assert table[table["best"]]["error"].iloc[0] == table["error"].min()


def test_spikes_and_operations_are_counted_as_measured_by_hand() -> None:
    images = torch.rand(32, 6, generator=torch.Generator().manual_seed(1))
    trials = Trials(convert.to_spiking(_net(), fit_batches([images]), timesteps=4), [images])
    row, fired = trials.score(Candidate(4, 0, "binary")), {}
    with torch.no_grad():
        trials.snn(images[1::2], observer=lambda tap: fired.update({tap.name: int((tap.output != 0).sum())}))
    assert row["spikes_per_image"] == sum(fired.values()) / 16
    assert row["synops_per_image"] == pytest.approx((16 * fired["1"] + 3 * fired["3"]) / 16)
    assert row["spikes_per_neuron"] == pytest.approx(sum(fired.values()) / (16 * 32))


def test_fronts_by_hand() -> None:
    made = [Candidate(t, 0, "binary") for t in (1, 2, 3)]
    figures = [(0.9, 1, 10.0), (0.9, 2, 12.0), (0.95, 3, 20.0)]
    rows = {x: {"agreement": a, "kl": 0.1, "error": 0.1, "latency": t, "bits_per_image": s}
            for x, (a, t, s) in zip(made, figures, strict=True)}  # fmt: skip
    assert fronts(made, rows) == [[made[0], made[2]], [made[1]]]


def test_limits_by_hand() -> None:
    row = {"latency": 4, "spikes_per_image": 105.0, "synops_per_image": 10.0}
    assert not Limits(max_spikes_per_image=100).kept_by(row)
    assert Limits(max_spikes_per_image=100).kept_by(row, slack=1.1)
    assert not Limits(max_latency=3).kept_by(row, slack=2.0)


def test_it_prints_and_is_json(found) -> None:
    text = str(found)
    assert "* best" in text
    assert text.count("\n*+ ") == 1
    assert "layers" in found._repr_html_()
    rows = json.loads(json.dumps(found.to_json(), allow_nan=False))["table"]
    assert [row["timesteps"] for row in rows] == found.table["timesteps"].tolist()
