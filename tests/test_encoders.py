"""Encoders against numpy, and events in every room: one image, many readings, the same answer."""

import copy
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from speedysnn import SpikingNetwork, analysis, convert
from speedysnn.data import Batch, iter_batches, load, steps_of
from speedysnn.encoders import ENCODERS, EncodedImages, encode, latency, poisson
from speedysnn.errors import DataError, InputError

T = 4


def images(count: int = 6, seed: int = 0) -> Tensor:
    """Normalised images with negative pixels, (B, 2, 6, 6); the last one is all zeros."""
    x = torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    x[-1] = 0
    return x


# --- the encoders themselves ----------------------------------------------------------------------------------------


def test_constant_is_the_image_at_every_step() -> None:
    x = images()
    assert torch.equal(encode(x, 3), torch.stack([x, x, x]))


def test_poisson_has_the_mean_and_the_variance_it_says() -> None:
    """Of R trains of the same pixels: mean x, variance of the mean over T abs(x) (A - abs(x)) / T; 5 standard errors."""
    x, repeats = images(2)[0], 20_000
    means = encode(x.expand(repeats, 2, 6, 6), T, "poisson", seed=3).mean(0).double().numpy()
    pixel = x.double().numpy()
    amplitude = np.abs(pixel).max()
    p = np.abs(pixel) / amplitude
    variance = amplitude**2 * p * (1 - p) / T
    fourth = amplitude**4 * (p * (1 - p) * (1 - 6 * p * (1 - p)) / T**3 + 3 * (p * (1 - p) / T) ** 2)
    assert (np.abs(means.mean(0) - pixel) <= 5 * np.sqrt(variance / repeats) + 1e-6).all()
    assert (np.abs(means.var(0) - variance) <= 5 * np.sqrt((fourth - variance**2) / repeats) + 1e-6).all()


def test_poisson_spikes_are_signed_and_of_one_size() -> None:
    x = images()
    events = encode(x, 7, "poisson", seed=1)
    size = x.abs().amax((1, 2, 3), keepdim=True)
    assert torch.equal(events.abs(), torch.where(events == 0, torch.zeros_like(events), size.expand_as(events)))
    assert ((events == 0) | (events.sign() == x.sign())).all()
    largest = x[0].abs().argmax()
    assert (events[:, 0].flatten(1)[:, largest] != 0).all(), "the largest pixel fires in every step"
    assert not events[:, -1].any()


@given(steps=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_latency_is_the_image_rounded_to_t_levels(steps: int, seed: int) -> None:
    """One spike at most, n/T of the amplitude on average, the brighter the earlier: numpy, pixel by pixel."""
    x = images(3, seed)
    events = encode(x, steps, "latency").double().numpy()
    for image, train in zip(x.double().numpy(), np.moveaxis(events, 1, 0), strict=True):
        size = np.abs(image).max() or 1.0
        n = np.clip(np.floor(steps * np.abs(image) / size + 0.5), 0, steps)
        clear = np.abs(steps * np.abs(image) / size + 0.5 - np.rint(steps * np.abs(image) / size + 0.5)) > 1e-5
        np.testing.assert_allclose(train.mean(0)[clear], (np.sign(image) * size * n / steps)[clear], atol=1e-5)
        assert (np.abs(train.mean(0) - image) <= size / (2 * steps) * (1 + 1e-5)).all()
        assert ((train != 0).sum(0) <= 1).all()
        fired = (train != 0).any(0) & clear
        assert (np.argmax(train != 0, 0)[fired] == (steps - n)[fired]).all()


@pytest.mark.parametrize("encoder", [poisson, latency])
def test_a_given_scale_sets_the_amplitude(encoder) -> None:
    x = images().clamp(-1, 1)
    assert encoder(x, 8, None, scale=1.0).abs().max() <= 8
    for scale, message in ((0.5, "expected at least the largest magnitude"), (0.0, "positive"), (math.nan, "positive")):
        with pytest.raises(InputError, match=message):
            encoder(x, 8, None, scale=scale)


def test_random_numbers_come_from_the_seed_or_the_generator() -> None:
    x = images()
    first = encode(x, T, "poisson", seed=5)
    assert torch.equal(first, encode(x, T, "poisson", seed=torch.Generator().manual_seed(5)))
    assert not torch.equal(first, encode(x, T, "poisson", seed=6))
    torch.manual_seed(5)
    loose = encode(x, T, "poisson")
    torch.manual_seed(5)
    assert torch.equal(loose, encode(x, T, "poisson"))


def test_an_image_is_encoded_alike_in_any_batch() -> None:
    x = images()
    assert torch.equal(encode(x, T, "latency")[:, 2:3], encode(x[2:3], T, "latency"))


def test_user_entries_win(monkeypatch) -> None:
    monkeypatch.setitem(ENCODERS, "poisson", lambda x, steps, generator: x.expand(steps, *x.shape) * 2)
    assert torch.equal(encode(images(), 2, "poisson")[1], images() * 2)
    assert torch.equal(encode(images(), 2, lambda x, steps, _: x.expand(steps, *x.shape))[0], images())


MISTAKES = {
    "name": (lambda: encode(images(), T, "rate"), "unknown encoder 'rate': expected one of constant, latency, poisson"),
    "steps": (lambda: encode(images(), 0), "steps of at least 1, got 0"),
    "bool": (lambda: encode(images(), True), "steps of at least 1, got True"),
    "whole numbers": (lambda: encode(torch.ones(2, 3, dtype=torch.uint8), T), r"floats, got torch.uint8, \(2, 3\)"),
    "no tensor": (lambda: encode([1.0], T), "got list"),
    "scalar": (lambda: encode(torch.tensor(1.0), T), r"images \(B, \.\.\.\)"),
    "shape": (lambda: encode(images(), T, lambda x, steps, _: x), r"expected events of shape \(4, 6, 2, 6, 6\) from <la"),
    "no length": (lambda: EncodedImages(iter([1]), T, "poisson"), "a dataset with a length"),
    "twice": (lambda: EncodedImages(EncodedImages(load("digits"), T, "poisson"), T, "poisson"), "events already"),
    "data set steps": (lambda: EncodedImages(load("digits"), 0, "poisson"), "steps of at least 1, got 0"),
    "data set name": (lambda: EncodedImages(load("digits"), T, "rate"), "unknown encoder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message):
        make()


def test_nan_is_named() -> None:
    with pytest.raises(DataError, match="1 of 2 values are NaN"):
        encode(torch.tensor([1.0, math.nan]), T, "poisson")
    with pytest.raises(DataError, match="expected tensors as images, got a str"):
        EncodedImages(["a"], T, "poisson")[0]


# --- encoded datasets -----------------------------------------------------------------------------------------------


def test_an_encoded_image_depends_on_seed_and_place_alone() -> None:
    digits = load("digits", "test", limit=40)
    encoded = EncodedImages(digits, T, "poisson", seed=2)
    assert (len(encoded), encoded.timesteps, encoded.classes, steps_of(encoded)) == (40, T, 10, T)
    together = torch.cat([batch.inputs[0] for batch in iter_batches(encoded, batch_size=7, events="steps")], 1)
    for i in (39, 3):
        events, label = encoded[i]
        assert torch.equal(events, together[:, i])
        assert label == digits[i][1]
    assert torch.equal(encoded[-1][0], encoded[39][0])
    assert not torch.equal(encoded[3][0], EncodedImages(digits, T, "poisson", seed=3)[3][0])


def test_every_image_draws_its_own_numbers() -> None:
    flat = torch.full((300, 1, 6, 6), 0.5)
    flat[:, 0, 0, 0] = 1
    trains = [tuple(events.flatten().tolist()) for events in (EncodedImages(_Samples(flat), T, "poisson", seed=s)[i]
                                                              for s in (0, 1) for i in range(300))]  # fmt: skip
    assert len(set(trains)) == 600


class _Samples(Dataset):
    def __init__(self, x: Tensor, timesteps: int = 0) -> None:
        self.x, self.timesteps = x, timesteps

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index]


def test_batches_put_time_first_or_take_the_mean() -> None:
    x = torch.randn(10, T, 2, 3)
    data, loader = _Samples(x, T), DataLoader(_Samples(x, T), batch_size=4)
    for data_form in (data, loader, Subset(data, range(10)), DataLoader(Subset(data, range(10)), batch_size=4)):
        steps = [batch.inputs[0] for batch in iter_batches(data_form, batch_size=4, events="steps")]
        assert [tuple(b.shape) for b in steps] == [(T, 4, 2, 3), (T, 4, 2, 3), (T, 2, 2, 3)]
        assert torch.equal(torch.cat(steps, 1), x.transpose(0, 1))
        means = torch.cat([batch.inputs[0] for batch in iter_batches(data_form, batch_size=4)])
        torch.testing.assert_close(means, x.mean(1))
    with pytest.raises(DataError, match=r"says timesteps=5; expected a batch \(B, 5, \.\.\.\), got \(10, 4, 2, 3\)"):
        next(iter_batches(_Samples(x, 5)))
    with pytest.raises(InputError, match='expected "mean" or "steps"'):
        next(iter_batches(data, events="all"))


def test_whole_tensors_of_events_are_cut_along_the_images() -> None:
    x, y = torch.randn(T, 10, 2, 3), torch.arange(10)
    for data_form, ranks in (((x, y), None), ((x, y), [3]), (x, [3]), (Batch((x,), y), [3])):
        batches = list(iter_batches(data_form, batch_size=4, events="steps", ranks=ranks))
        assert torch.equal(torch.cat([batch.inputs[0] for batch in batches], 1), x)
        assert [batch.inputs[0].shape[1] for batch in batches] == [4, 4, 2]
    square = torch.randn(10, 10, 2, 3)  # as many steps as images: only the rank can tell
    assert torch.equal(next(iter_batches((square, y), ranks=[3])).inputs[0], square.mean(0))
    both = list(iter_batches((x, torch.randn(10, 5), y), batch_size=4, events="steps", ranks=[3, 2]))
    assert [tuple(v.shape for v in batch.inputs) for batch in both] == [((T, n, 2, 3), (n, 5)) for n in (4, 4, 2)]


# --- events through a network -----------------------------------------------------------------------------------------


class Several(nn.Module):
    """Two inputs and two layers of neurons, with max-pooling between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(3, 4), nn.Linear(36, 5)
        self.c = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = torch.relu(self.a(x) + self.b(y)[:, :, None, None])
        return self.head(torch.relu(self.c(nn.functional.max_pool2d(x, 2))).flatten(1))


def several(**options: object) -> SpikingNetwork:
    torch.manual_seed(2)
    calibration = [(torch.randn(30, 2, 6, 6), torch.randn(30, 3))]
    return convert.to_spiking(Several(), calibration, T, **options)


@pytest.mark.parametrize("encoder", ["constant", "poisson", "latency"])
@pytest.mark.parametrize(("delay", "spikes"), [(0, "binary"), (1, "ternary"), (1, "graded:2"), ("full", "binary")])
def test_events_beside_a_static_input(encoder: str, delay: object, spikes: str) -> None:
    snn, y = several(delay=delay, spikes=spikes), torch.randn(6, 3)
    events = encode(images(), T, encoder, seed=0)
    with torch.no_grad():
        whole, per_step = snn(events, y), snn(events, y, per_step=True)
        torch.testing.assert_close(per_step[-1], whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(snn(events, y.expand(T, 6, 3)), whole, rtol=1e-4, atol=1e-5)
        out = [snn.step(events[t] if t < T else None, y if t < T else None) for t in range(snn.latency)]
        torch.testing.assert_close(torch.stack([o for o in out if o is not None]).mean(0), whole, rtol=1e-4, atol=1e-5)
        snn.images_per_pass = 2
        torch.testing.assert_close(snn(events, y), whole, rtol=1e-4, atol=1e-5)
        assert snn(events, y, per_step=True).shape == per_step.shape
        for reading in ("analog", "quantized"):
            with snn.reading(reading):
                torch.testing.assert_close(snn(events, y), snn(events.mean(0), y), rtol=1e-5, atol=1e-6)
        if encoder == "constant":
            torch.testing.assert_close(snn(images(), y), whole, rtol=1e-4, atol=1e-5)
        if delay == "full":
            with snn.reading("quantized"):
                torch.testing.assert_close(snn(events, y), whole)


def test_poisson_converges_to_the_image() -> None:
    """The quantized reading of T = 4096 steps of noise is close to that of the image; the error falls as 1/sqrt(T)."""
    x, errors = images(), []
    for steps in (64, 4096):
        errors.append((encode(x, steps, "poisson", seed=0).mean(0) - x).square().mean().sqrt())
    assert 6 < errors[0] / errors[1] < 10.7


# --- a sensor's data through the rooms --------------------------------------------------------------------------------


class Sensor(nn.Module):
    """Two polarities of 6 x 6 pixels into three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU(),
                                  nn.Flatten(), nn.Linear(6, 3))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.fixture(scope="module")
def sensor(tmp_path_factory):
    """An npz file of counts (N, 8, 2, 6, 6), and a network."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("events") / "dvs.npz"
    counts = {f"x_{split}": rng.poisson(0.7, (90, 8, 2, 6, 6)).astype(np.uint8) for split in ("train", "test")}
    np.savez(path, **counts, y_train=rng.integers(0, 3, 90), y_test=rng.integers(0, 3, 90))
    torch.manual_seed(0)
    return f"npz:{path}", Sensor(), counts["x_test"]


def test_event_files_are_calibrated_evaluated_and_analysed(sensor) -> None:
    spec, ann, counts = sensor
    train, test = load(spec, "train"), load(spec, "test")
    assert (test.timesteps, test.image_shape, test.classes) == (8, (2, 6, 6), 3)
    assert torch.equal(test[3][0], torch.from_numpy(counts[3]).float())
    assert "of 8 steps" in repr(test)
    snn = convert.to_spiking(ann, train, timesteps=8)
    assert snn.input_shapes == ((2, 6, 6),)
    means = torch.stack([x.mean(0) for x, _ in train])
    same = convert.to_spiking(ann, means, timesteps=8)
    for a, b in zip(snn.neurons.values(), same.neurons.values(), strict=True):
        assert torch.equal(a.threshold, b.threshold)
    events, labels = torch.stack([x for x, _ in test], 1), torch.tensor([y for _, y in test])
    with torch.no_grad():
        expected = (snn(events).argmax(1) == labels).double().mean().item()
        source = (ann(events.mean(0)).argmax(1) == labels).double().mean().item()
    result = analysis.evaluate(snn, test)
    assert result.accuracy == pytest.approx(expected)
    assert result.analog_accuracy == pytest.approx(source)
    for data_form in ((events, labels), [(events, labels)], DataLoader(test, batch_size=13), test.subset(range(90))):
        assert analysis.evaluate(snn, data_form) == result
    noise = analysis.measure_noise(snn, test)
    shares = noise.layers[["share_clip", "share_round", "share_propagated", "share_temporal"]].sum(axis=1)
    np.testing.assert_allclose(shares, 1, atol=1e-5)
    assert noise.outputs["accuracy"] == result.accuracy


def test_events_in_fewer_steps_keep_their_mean(sensor) -> None:
    spec, ann, counts = sensor
    test = load(spec, "test").in_steps(4)
    assert (test.timesteps, tuple(test[0][0].shape), test.subset([1]).timesteps) == (4, (4, 2, 6, 6), 4)
    pairs = counts[5].reshape(4, 2, 2, 6, 6).mean(1)
    np.testing.assert_allclose(test[5][0].numpy(), pairs, rtol=1e-6)
    assert analysis.evaluate(convert.to_spiking(ann, load(spec, "train"), timesteps=4), test).images == 90
    for wrong in (3, 0, 16):
        with pytest.raises(InputError, match=f"cannot be put into {wrong}"):
            test.in_steps(wrong)
    with pytest.raises(InputError, match="without a time axis"):
        load("digits").in_steps(2)
    with pytest.raises(InputError, match=r"expected \(B, 2, 6, 6\), or \(8, B, 2, 6, 6\)"):
        analysis.evaluate(convert.to_spiking(ann, load(spec, "train"), timesteps=8), test)


@pytest.mark.parametrize(("array", "message"), [
    (np.full((2, 3, 1, 2, 2), np.nan), "2 of 2 samples hold NaN"),
    (np.zeros((2, 0, 1, 2, 2)), "none of them 0|N at least 1"),
    (np.full((2, 3, 1, 2, 2), "a"), "events are <U1"),
])  # fmt: skip
def test_event_file_mistakes(tmp_path, array, message) -> None:
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(DataError, match=message):
        load(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float16, np.float64, np.bool_])
def test_event_values_stay_as_they_are(tmp_path, dtype) -> None:
    events = np.array([0, 1, 1, 0]).astype(dtype).reshape(1, 2, 1, 1, 2)
    events = events * np.array(200, dtype) if dtype != np.bool_ else events
    events = -events if dtype == np.int16 else events
    np.savez(tmp_path / "a.npz", x=events)
    data = load(f"npz:{tmp_path / 'a.npz'}", normalize="0/2" if dtype == np.float64 else None)
    sample = data[0] * (2 if dtype == np.float64 else 1)
    assert sample.dtype == torch.float32
    assert torch.equal(sample, torch.from_numpy(events[0].astype(np.float32)))


USER = """
import torch
from torch.utils.data import Dataset

class Sensor(Dataset):
    timesteps, classes = 8, 3

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.full((8, 2, 6, 6), float(index)), index % 3

def make(split):
    return Sensor()
"""


def test_a_users_dataset_says_its_samples_are_events(sensor, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "mine.py").write_text(USER)
    data = load(f"{tmp_path / 'mine.py'}:make")
    assert (data.timesteps, data.image_shape, data.classes) == (8, (2, 6, 6), 3)
    assert data.in_steps(2)[4][0].shape == (2, 2, 6, 6)
    batch = next(iter_batches(data.subset([1, 3]), events="steps"))
    assert (tuple(batch.inputs[0].shape), batch.labels.tolist()) == ((8, 2, 2, 6, 6), [1, 0])
    assert analysis.evaluate(convert.to_spiking(sensor[1], load(sensor[0], "train"), timesteps=8), data).images == 5


def test_events_leave_the_network_as_it_is(sensor) -> None:
    spec, ann, _ = sensor
    snn = convert.to_spiking(ann, load(spec, "train"), timesteps=8)
    before = copy.deepcopy(snn.state_dict())
    analysis.evaluate(snn, load(spec, "test"))
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())
