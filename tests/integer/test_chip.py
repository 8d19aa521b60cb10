"""to_integer: what it refuses, what its report says, profiles, and chips on disk."""

import numpy as np
import pytest
import torch
from torch import nn

import speedysnn
from speedysnn import convert, data, integer
from speedysnn.assets.digits import load_digits_net
from speedysnn.errors import ArtifactError, ConversionError, InputError
from speedysnn.integer.lower import state_range
from speedysnn.integer.program import Conv, Input, Neuron, Program, Readout, Total
from speedysnn.integer.rounding import one_after_another
from tests.integer.reference import logits
from tests.material.integer_networks import Maker, images


def digits(pool: str = "avg", **options: object) -> speedysnn.SpikingNetwork:
    return convert.to_spiking(load_digits_net(pool), data.load("digits", "train"), timesteps=4, **options)


def pixels(count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    test = data.load("digits", "test")
    chosen = range(len(test) if count is None else count)
    return torch.stack([(test[i][0] * 255).round().to(torch.uint8) for i in chosen]), torch.tensor(
        [test[i][1] for i in chosen]
    )


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_the_digits_networks_keep_their_accuracy_in_8_bits(pool) -> None:
    snn, (x, y) = digits(pool, delay=1), pixels()
    chip = speedysnn.to_integer(snn)
    with torch.no_grad():
        before = (snn(x / 255).argmax(1) == y).float().mean()
    after = ((chip(x) * chip.scale).argmax(1) == y).float().mean()
    assert after >= before - 0.0068  # four of 597 images, about one standard error


def test_hybrid_operators_are_refused_by_name_all_at_once() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8), nn.LayerNorm(8))
    snn = convert.to_spiking(net, torch.rand(32, 4), allow_hybrid=True)
    with pytest.raises(ConversionError) as caught:
        speedysnn.to_integer(snn)
    assert "2 of the network's operators" in str(caught.value)
    assert "silu" in str(caught.value)
    assert "layer_norm" in str(caught.value)


def test_padding_is_exact_under_a_normalisation() -> None:
    """A grey image that is the mean everywhere is a normalised zero: the border sees what the middle sees."""
    conv = nn.Conv2d(1, 2, 3, padding=1)
    snn = convert.to_spiking(
        nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)), torch.randn(16, 1, 6, 6), 4
    )
    grey = torch.full((1, 1, 6, 6), 128, dtype=torch.uint8)
    chip = speedysnn.to_integer(snn, mean=128 / 255, std=0.2)
    seen: dict[str, torch.Tensor] = {}
    integer.simulate.run(chip.program, grey, None, lambda op, value: seen.update({op.name: value}))
    neuron = chip.program.neurons[0]
    drive = seen[neuron.sources[0]][0].numpy() + neuron.bias
    expected = conv.bias.detach().numpy() / neuron.unit.reshape(-1)
    assert neuron.bias.shape[-2:] == (6, 6)  # a bias a border position
    assert np.abs(drive - expected[:, None, None]).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("bits", [8])
def test_a_state_too_narrow_saturates_and_is_counted(bits) -> None:
    snn, (x, _) = digits(delay=1), pixels(20)
    chip = speedysnn.to_integer(snn, state_bits=bits, images=x)
    report = chip.report
    assert (report.saturated > 0).any()
    narrow = report.bits_needed > bits
    assert (report.saturated[~narrow] == 0).all()
    assert (report.bound_low <= report.measured_low).all()
    assert (report.bound_high >= report.measured_high).all()
    assert np.array_equal(logits(chip.program, x.numpy()), chip(x).numpy())


def test_the_bound_of_a_membrane_is_reached_and_never_passed() -> None:
    """One neuron, every sequence of drives from a small set: the least and greatest membrane are the bound's."""
    kinds = ((False, False, 1), (False, True, 1), (True, False, 1), (False, False, -4), (True, False, -4))
    for signed, ternary, highest in kinds:
        drives = (-3, 0, 5) if highest == 1 else (-14, 1, 23)
        row = np.array([[1]])
        neuron = Neuron(name="n", sources=("c",), shape=(1, 1, 1), timing="steps", threshold=np.array([4]).reshape(1, 1, 1),
                        start=np.array([2]).reshape(1, 1, 1), bias=np.zeros((1, 1, 1), np.int64), highest=abs(highest),
                        signed=signed, ternary=ternary, powers=highest < 0, lookahead=0, unit=np.ones((1, 1, 1)))  # fmt: skip
        conv = Conv(name="c", sources=("x",), shape=(1, 1, 1), timing="steps", weight=row.reshape(1, 1, 1, 1).astype(np.int16),
                    stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)  # fmt: skip
        given = Input(name="x", sources=(), shape=(1, 1, 1), timing="steps", low=drives[0], high=drives[2])
        ends = (Total(name="t", sources=("n",), shape=(1, 1, 1), timing="total"),
                Readout(name="o", sources=("t",), shape=(1, 1, 1), timing="total", bias=np.zeros((1, 1, 1), np.int64)))  # fmt: skip
        program = Program((given, conv, neuron, *ends), 4, 8, 32, np.ones((1, 1, 1)))
        chip = integer.Chip(program)
        grid = np.stack(np.meshgrid(*[drives] * 4), -1).reshape(-1, 4).T
        chip.measure(torch.from_numpy(np.ascontiguousarray(grid)).reshape(4, -1, 1, 1, 1))
        low, high = state_range(program, neuron, chip.ranges["c"]).ends
        seen = chip.seen["n"]
        assert low <= seen.low <= seen.high <= high
        assert seen.high == high or highest < 0
        assert seen.low == low or ternary or signed or highest < 0


def test_events_are_counts() -> None:
    snn = Maker(3, timesteps=4).network()
    chip = speedysnn.to_integer(snn, events=True)
    x = torch.randint(0, 3, (4, 5, *snn.input_shapes[0]), dtype=torch.uint8)
    out = chip(x)
    assert torch.equal(chip(x, step_by_step=True), out)
    assert np.array_equal(logits(chip.program, x.numpy()), out.numpy())
    with pytest.raises(InputError, match="expected"):
        chip(x[0])


@pytest.mark.parametrize("seed", range(6))
def test_a_chip_comes_back_from_disk(seed, tmp_path) -> None:
    snn = Maker(seed).network()
    chip = speedysnn.to_integer(snn, 4, 16)
    again = integer.load(integer.save(chip, tmp_path / "net.chip"))
    x = images(snn, 3)
    assert torch.equal(again(x), chip(x))
    assert torch.equal(again.scale, chip.scale)
    with pytest.raises(ArtifactError, match="overwrite"):
        integer.save(chip, tmp_path / "net.chip")
    numbers = tmp_path / "net.chip" / "numbers.safetensors"
    numbers.write_bytes(numbers.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ArtifactError, match="damaged"):
        integer.load(tmp_path / "net.chip")


def test_other_things_are_no_chip(tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="no saved chip"):
        integer.save(speedysnn.to_integer(Maker(0).network()), tmp_path)
    with pytest.raises(ArtifactError, match="expected a folder"):
        integer.load(tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


def test_profiles_list_everything_that_does_not_fit() -> None:
    snn = digits("max", delay=1, spikes="ternary")
    with pytest.raises(ConversionError) as caught:
        speedysnn.to_integer(snn, profile="speck")
    text = str(caught.value)
    for part in ("states of 32 bits", "constant current", "look-ahead of 1", "negative spikes", "max-pooling"):
        assert part in text, part
    assert len(integer.misfits(speedysnn.to_integer(snn).program, "xylo")) > 10
    assert integer.misfits(speedysnn.to_integer(snn).program, "generic") == []
    with pytest.raises(InputError, match="expected one of generic"):
        speedysnn.to_integer(snn, profile="loihi")


def test_a_network_made_for_a_platform_fits() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    )
    snn = convert.to_spiking(net, torch.rand(16, 1, 8, 8), granularity="layer")
    for profile, bits in (("speck", 16), ("spinnaker2", 32)):
        chip = speedysnn.to_integer(snn, 8, bits, profile, events=True)
        assert integer.misfits(chip.program, profile) == []
    assert all(op.threshold.size == 1 for op in speedysnn.to_integer(snn, 8, 16, "speck", events=True).program.neurons)


@pytest.mark.parametrize(("options", "match"), [
    ({"weight_bits": 1}, "weight_bits: expected a whole number of 2 to 16"), ({"state_bits": 64}, "state_bits"),
    ({"granularity": "row"}, "granularity"), ({"mean": 0.5}, "both mean and std"), ({"mean": (0, 0), "std": 1.0}, "one a channel"),
    ({"mean": 0, "std": 0}, "above 0"), ({"events": True, "mean": 0, "std": 1}, "not normalised"),
])  # fmt: skip
def test_options_that_cannot_be(options, match) -> None:
    with pytest.raises(InputError, match=match):
        speedysnn.to_integer(digits(), **options)


@pytest.mark.parametrize(("x", "match"), [
    (torch.rand(2, 1, 8, 8), "before they are divided by 255"), (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "got \\(2, 3, 8, 8\\)"),
    (torch.full((1, 1, 8, 8), 300), "numbers of 0 to 255"),
])  # fmt: skip
def test_images_that_are_no_pixels(x, match) -> None:
    with pytest.raises(InputError, match=match):
        speedysnn.to_integer(digits())(x)


def test_no_images_give_no_logits() -> None:
    chip = speedysnn.to_integer(digits())
    assert chip(torch.zeros(0, 1, 8, 8, dtype=torch.uint8)).shape == (0, 10)


def test_more_weight_bits_come_closer() -> None:
    snn, (x, _) = digits(delay="full"), pixels(100)
    with torch.no_grad():
        wanted = snn(x / 255)
    chips = [speedysnn.to_integer(snn, bits) for bits in (3, 5, 8, 12)]
    errors = [float((chip(x) * chip.scale - wanted).norm() / wanted.norm()) for chip in chips]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.06


def test_reconstruction_keeps_drives_that_the_nearest_numbers_do_not() -> None:
    snn, (x, _) = digits(delay="full"), pixels(200)
    train = data.load("digits", "train")
    given = torch.stack([(train[i][0] * 255).round().to(torch.uint8) for i in range(200)])
    with torch.no_grad():
        wanted = snn(x / 255)
    near, made = (speedysnn.to_integer(snn, 3, rounding=kind, images=given) for kind in ("nearest", "reconstruct"))
    errors = [float((chip(x) * chip.scale - wanted).norm() / wanted.norm()) for chip in (near, made)]
    assert errors[1] < 0.9 * errors[0]
    with pytest.raises(InputError, match="together with images"):
        speedysnn.to_integer(snn, rounding="reconstruct")


def test_rounding_without_correlated_inputs_is_to_the_nearest() -> None:
    weights = np.array([[1.4, -2.6, 0.2], [3.7, 9.0, -0.5]])
    assert np.array_equal(one_after_another(weights, np.eye(3), 4), np.clip(np.round(weights), -4, 4))
    alike = one_after_another(np.full((1, 8), 0.4), np.ones((8, 8)) + 1e-3 * np.eye(8), 4)
    assert alike.sum() == round(8 * 0.4)  # inputs that are always the same: their weights' sum is kept


def test_rounding_beside_all_others_is_no_worse_than_the_nearest_whole_numbers() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, weights = generator.normal(size=(40, 6)) @ generator.normal(size=(6, 6)), 2 * generator.normal(size=(3, 6))
        h = x.T @ x / 40

        def error(whole: np.ndarray, weights: np.ndarray = weights, h: np.ndarray = h) -> float:
            return float(np.trace((whole - weights) @ h @ (whole - weights).T))

        found = one_after_another(weights, h, 7)
        assert np.array_equal(found, np.round(found))
        assert error(found) < error(np.clip(np.round(weights), -7, 7))


@pytest.mark.parametrize("seed", range(12))
def test_reconstruction_of_networks_of_every_kind(seed: int) -> None:
    """Sums, pools, groups, concatenations: it runs, is exact in C's order too, and at 12 bits stays beside the nearest."""
    snn = Maker(seed).network()
    x = images(snn, 40)
    near, made = (speedysnn.to_integer(snn, 12, rounding=kind, images=x) for kind in ("nearest", "reconstruct"))
    assert np.array_equal(logits(made.program, x.numpy()), made(x).numpy())
    with torch.no_grad():
        wanted = snn(x / 255)
    errors = [float((chip(x) * chip.scale - wanted).norm()) for chip in (near, made)]
    assert errors[1] < errors[0] + 0.25 * float((wanted - wanted.mean(0)).norm())


def test_states_of_16_bits_hold_the_sums_of_pixels() -> None:
    snn, (x, y) = digits(delay=1), pixels(300)
    wide, narrow = (speedysnn.to_integer(snn, 8, bits, images=x) for bits in (32, 16))
    right = [float(((chip(x) * chip.scale).argmax(1) == y).float().mean()) for chip in (wide, narrow)]
    assert right[1] >= right[0] - 0.01
    assert narrow.report.saturated_share.max() < 1e-3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounded_weights_are_those_of_the_chip(bits: int) -> None:
    """W' = integer theta 2^shift / (A TH), layer by layer, from the chip's own tables."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
    snn = convert.to_spiking(net, torch.rand(64, 6), timesteps=4)
    program = speedysnn.to_integer(snn, bits, mean=0.0, std=1.0).program
    layers = [op for op in program.operations if isinstance(op, integer.program.Linear)]
    neurons, found = [op for op in program.operations if isinstance(op, Neuron)], integer.rounded_weights(snn, bits)
    amplitude = np.full(6, 1 / 255)
    for layer, neuron in zip(layers, [*neurons, None], strict=True):
        if neuron is None:
            rows = program.scale * snn.timesteps
        else:
            theta = snn.neurons[neuron.name].threshold.detach().double().numpy()
            rows = theta / neuron.threshold * 2.0**layer.shift
        expected = layer.weight * rows[:, None] / amplitude
        np.testing.assert_allclose(found[layer.name].numpy(), expected, rtol=1e-12)
        amplitude = theta


@pytest.mark.parametrize("seed", range(6))
def test_rounded_weights_have_the_zeros_of_the_chip(seed: int) -> None:
    """Whatever stands between the layers: sums, pools, groups, concatenations."""
    snn = Maker(seed).network()
    program, found = speedysnn.to_integer(snn, 3).program, integer.rounded_weights(snn, 3)
    layers = [op for op in program.operations if isinstance(op, Conv | integer.program.Linear)]
    assert found.keys() == {op.name for op in layers}
    for op in layers:
        assert (np.abs(np.sign(found[op.name].numpy())) == np.abs(np.sign(op.weight))).all()
