"""A sensitivity measurement below a limit: the same figures while it does not bind, then a sample of images."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speedysnn.analysis import measure_noise, measure_sensitivity
from speedysnn.analysis.memory import MIB
from speedysnn.analysis.sensitivity.memory import MIN_IMAGES, kept_images
from speedysnn.errors import DataError, InputError

FEW = ("prefix",)


def least(snn, data):
    """The smallest limit that is accepted, in MiB, to a hundredth."""
    low, high = 0.001, 64.0
    while high - low > 0.01:
        middle = (low + high) / 2
        try:
            kept_images(snn, data, FEW, (), middle, 0, None)
            high = middle
        except InputError:
            low = middle
    return high


def test_a_limit_that_does_not_bind_changes_no_figure(build, digits):
    snn = build("max", 4)
    whole = measure_sensitivity(snn, digits)
    assert not whole.memory.sampled
    assert (whole.memory.kept, whole.memory.there) == (130, 130)
    enough = whole.memory.predicted_mib * 2 + 1  # half of it is for passes
    bound = measure_sensitivity(snn, digits, memory_mib=enough, seed=3)
    assert bound.memory.predicted_mib <= enough
    a, b = whole.to_dict(), bound.to_dict()
    assert a.pop("memory") != b.pop("memory")
    assert a == b
    assert "All images were measured." in whole.memory.sentence()


def test_smaller_passes_change_no_figure(build, digits):
    snn, x = build("avg", 4), digits[0][:24]
    whole = measure_sensitivity(snn, x, modes=FEW, gains=("bit",))
    image = whole.memory.image_bytes + whole.memory.score_bytes
    fewer = measure_sensitivity(
        snn, x, modes=FEW, gains=("bit",), memory_mib=2 * (3 * whole.memory.pass_bytes + 24 * image) / MIB
    )
    assert fewer.memory.pass_images < whole.memory.pass_images
    assert not fewer.memory.sampled
    assert fewer.memory.tight
    assert not whole.memory.tight
    for name in ("table", "gains"):
        for column in ("sqnr_db", "agreement"):
            ours, theirs = getattr(fewer, name)[column], getattr(whole, name)[column]
            assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-5)


def test_a_sample_is_seeded_stated_and_measured_as_if_it_were_all(build, digits, tmp_path):
    snn, (x, y) = build("avg", 4), digits
    limit = least(snn, digits) + 0.02
    found = measure_sensitivity(snn, digits, modes=FEW, gains=False, memory_mib=limit, seed=1)
    memory = found.memory
    assert MIN_IMAGES <= memory.kept < memory.there == 130
    assert memory.predicted_mib <= limit
    assert found.outputs["images"] == memory.kept
    _, pieces = kept_images(snn, digits, FEW, (), limit, 1, None)
    images, labels = torch.cat([p.inputs[0] for p in pieces]), torch.cat([p.labels for p in pieces])
    same = measure_sensitivity(snn, (images, labels), modes=FEW, gains=False)
    assert same.table["sqnr_db"].tolist() == pytest.approx(found.table["sqnr_db"].tolist(), rel=1e-6)
    places = [int((x == image).flatten(1).all(1).nonzero()[0]) for image in images]
    assert len(set(places)) == memory.kept
    assert labels.tolist() == y[places].tolist()
    words = f"The images are a sample (seed 1): {memory.kept} of 130."
    assert words in memory.sentence()
    folder = measure_noise(snn, x[:9]).save(tmp_path / "report", sensitivity=found)
    assert words in (folder / "report.html").read_text()
    assert words in (folder / "report.md").read_text()
    data = json.loads((folder / "noise.json").read_text())["sensitivity"]["memory"]
    assert data["images"] == {"measured": memory.kept, "there": 130}


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_any_batching_draws_the_same_sample(build, digits, batch):
    snn, (x, y) = build("avg", 4), digits
    limit = least(snn, digits) + 0.02
    (memory, whole), (again, split) = (
        kept_images(snn, data, FEW, (), limit, 2, None)
        for data in (digits, list(zip(x.split(batch), y.split(batch), strict=True)))
    )
    assert memory == again
    for one, other in zip(whole, split, strict=True):
        assert torch.equal(one.inputs[0], other.inputs[0])
        assert torch.equal(one.labels, other.labels)
    _, other = kept_images(snn, digits, FEW, (), limit, 3, None)
    assert not all(torch.equal(a.inputs[0], b.inputs[0]) for a, b in zip(whole, other, strict=True))


def test_every_image_is_as_likely(build, digits):
    snn, x = build("avg", 4), digits[0][:40]
    limit, count = least(snn, x), torch.zeros(40)
    marked = x.clone()
    marked[:, 0, 0, 0] = torch.arange(40.0)
    for seed in range(150):
        memory, pieces = kept_images(snn, marked, FEW, (), limit, seed, None)
        count[torch.cat([p.inputs[0][:, 0, 0, 0] for p in pieces]).long()] += 1
    share = memory.kept / 40
    assert 0 < share < 1
    z = (count / 150 - share) / (share * (1 - share) / 150) ** 0.5
    assert z.square().mean() < 2
    assert z.abs().max() < 4.5


def test_confirming_images_are_sampled_too(build, digits):
    snn, (x, _) = build("avg", 4), digits
    limit = least(snn, x) + 0.03
    found = measure_sensitivity(snn, x[:20], modes=(), gains=("bit",), confirm=x[20:], finalists=2, memory_mib=limit)
    kept, there = found.memory.again
    assert MIN_IMAGES <= kept < there == 110
    assert found.gains["images"].tolist()[:2] == [kept] * 2
    assert f"then {kept} of 110 others" in found.memory.sentence()


@settings(max_examples=20, deadline=None)
@given(limit=st.floats(0.01, 20), cumulative=st.booleans(), images=st.integers(1, 60))
def test_any_plan_stays_below_its_limit(build, digits, limit, cumulative, images):
    snn, x = build("avg", 4), digits[0][:images]
    modes = ("cumulative",) if cumulative else FEW
    try:
        memory, pieces = kept_images(snn, x, modes, ("threshold",), limit, 0, None)
    except InputError as err:
        limit = float(str(err).split("at least ")[1].split()[0])
        memory, pieces = kept_images(snn, x, modes, ("threshold",), limit, 0, None)
    assert memory.predicted_mib <= limit
    assert sum(len(p.inputs[0]) for p in pieces) == memory.kept == min(images, memory.room)
    assert all(len(p.inputs[0]) <= memory.pass_images for p in pieces)


def test_what_is_refused(build, digits):
    snn, x = build("avg", 4), digits[0][:10]
    with pytest.raises(InputError, match="memory_mib: expected at least 1 MiB for passes of one image"):
        measure_sensitivity(snn, x, memory_mib=0.01)
    for wrong in (0, -1, float("nan"), True):
        with pytest.raises(InputError, match="memory_mib"):
            measure_sensitivity(snn, x, memory_mib=wrong)
    with pytest.raises(InputError, match="seed"):
        measure_sensitivity(snn, x, seed=-1)
    with pytest.raises(DataError, match="different shapes"):
        measure_sensitivity(snn, [torch.rand(2, 1, 8, 8), torch.rand(2, 1, 9, 9)])
