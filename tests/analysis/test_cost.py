"""What an inference costs: hand-counted cases, loops over taps, and sums that do not depend on batches."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speedysnn import analysis, convert
from speedysnn.analysis.cost import COUNTS, CostTable, access, energies, with_memory
from speedysnn.encoders import EncodedImages
from speedysnn.errors import DataError, InputError
from speedysnn.graph import Graph, Node
from speedysnn.graph.fan_out import FanOut, Flow

T = 3


class Net(nn.Module):
    """Neurons that fire at every step where the image is 1, then the layers under test."""

    def __init__(self, channels, *layers, skip=False):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1, bias=False)
        self.first.weight.data = torch.eye(channels)[:, :, None, None]
        self.relu, self.rest, self.skip = nn.ReLU(), nn.Sequential(*layers), skip

    def forward(self, x):
        x = self.relu(self.first(x))
        return self.rest(x)


class Residual(nn.Module):
    """relu(b(a) + a), then a convolution that reads the sum a + that, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.c = nn.Conv2d(2, 5, 3, padding=1)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.a.weight.data = torch.eye(2)[:, :, None, None]
        self.b.weight.data.zero_()

    def forward(self, x):
        a = self.relu1(self.a(x))
        return self.c(a + self.relu2(self.b(a) + a))


def spiking(net, images, timesteps=T, **options):
    """Converted with theta = 1 everywhere, so that a drive of 1 fires at every step."""
    torch.manual_seed(0)
    snn = convert.to_spiking(net.eval(), images, timesteps=timesteps, **options)
    for neuron in snn.neurons.values():
        neuron.set_threshold(torch.ones_like(neuron.threshold))
    return snn


def cost(net, x, **options):
    return analysis.measure_cost(spiking(net, torch.ones_like(x), **options), x)


def lit(shape, *pixels):
    x = torch.zeros(1, *shape)
    for pixel in pixels:
        x[(0, *pixel)] = 1
    return x


# name -> layers, image with the lit pixels, events at the layer's inputs a step, weights they meet a step
CASES = {
    "corner of a padded 3x3": ([nn.Conv2d(1, 5, 3, padding=1)], lit((1, 4, 4), (0, 0, 0)), 1, 4 * 5),
    "edge": ([nn.Conv2d(1, 5, 3, padding=1)], lit((1, 4, 4), (0, 0, 1)), 1, 6 * 5),
    "middle": ([nn.Conv2d(1, 5, 3, padding=1)], lit((1, 4, 4), (0, 1, 1)), 1, 9 * 5),
    "no padding, corner": ([nn.Conv2d(1, 5, 3)], lit((1, 4, 4), (0, 0, 0)), 1, 1 * 5),
    "stride 2, in two windows each way": ([nn.Conv2d(1, 5, 3, 2, 1)], lit((1, 4, 4), (0, 1, 1)), 1, 4 * 5),
    "stride 2, in one window": ([nn.Conv2d(1, 5, 3, 2, 1)], lit((1, 4, 4), (0, 2, 2)), 1, 1 * 5),
    "stride 3 leaves it out": ([nn.Conv2d(1, 5, 2, 3)], lit((1, 5, 5), (0, 2, 2)), 1, 0),
    "dilation 2, on a tap": ([nn.Conv2d(1, 5, 3, dilation=2)], lit((1, 5, 5), (0, 2, 2)), 1, 1 * 5),
    "dilation 2, between taps": ([nn.Conv2d(1, 5, 3, dilation=2)], lit((1, 5, 5), (0, 1, 1)), 1, 0),
    "two groups": ([nn.Conv2d(2, 6, 3, padding=1, groups=2)], lit((2, 4, 4), (1, 1, 1)), 1, 9 * 3),
    "depthwise": ([nn.Conv2d(2, 2, 3, padding=1, groups=2)], lit((2, 4, 4), (1, 1, 1)), 1, 9),
    "transposed": ([nn.ConvTranspose2d(1, 5, 2, 2)], lit((1, 4, 4), (0, 1, 1)), 1, 4 * 5),
    "linear": ([nn.Flatten(), nn.Linear(16, 7)], lit((1, 4, 4), (0, 0, 0), (0, 3, 3)), 2, 2 * 7),
    "average 2x2, both in one window": (
        [nn.AvgPool2d(2), nn.Conv2d(1, 5, 1)], lit((1, 4, 4), (0, 0, 0), (0, 1, 1)), 2, 2 * 5,
    ),
    "average 2x2, then 3x3": ([nn.AvgPool2d(2), nn.Conv2d(1, 5, 3, padding=1)], lit((1, 4, 4), (0, 0, 0)), 1, 4 * 5),
    "overlapping windows": ([nn.AvgPool2d(3, 1, 1), nn.Conv2d(1, 5, 1)], lit((1, 4, 4), (0, 1, 1)), 9, 9 * 5),
    "overlapping windows, corner": ([nn.AvgPool2d(3, 1, 1), nn.Conv2d(1, 5, 1)], lit((1, 4, 4), (0, 0, 0)), 4, 4 * 5),
    "windows that leave it out": ([nn.AvgPool2d(2, 3), nn.Conv2d(1, 5, 1)], lit((1, 5, 5), (0, 2, 2)), 0, 0),
    "adaptive windows that overlap": (
        [nn.AdaptiveAvgPool2d(2), nn.Conv2d(1, 5, 1)], lit((1, 3, 3), (0, 1, 1)), 4, 4 * 5,
    ),
    "global average": (
        [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 7)], lit((2, 4, 4), (0, 0, 0), (1, 2, 2)), 2, 2 * 7,
    ),
    "max 2x2, all four of one window": (
        [nn.MaxPool2d(2), nn.Conv2d(1, 5, 1)], lit((1, 4, 4), (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)), 1, 5,
    ),
    "max 2x2, two windows": ([nn.MaxPool2d(2), nn.Conv2d(1, 5, 1)], lit((1, 4, 4), (0, 0, 0), (0, 3, 3)), 2, 2 * 5),
    "max after average": (
        [nn.AvgPool2d(2), nn.MaxPool2d(2), nn.Conv2d(1, 5, 1)], lit((1, 4, 4), (0, 0, 0), (0, 3, 3)), 1, 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("delay", [0, 1, "full"])
@pytest.mark.parametrize("case", CASES)
def test_hand_counted(case, delay):
    layers, image, events, synops = CASES[case]
    report = cost(Net(image.shape[1], *layers), image, delay=delay)
    last = report.layers.iloc[-1]
    assert (last.receives, last.events, last.synops, last.macs) == ("events", T * events, T * synops, 0)
    first = report.layers.iloc[0]
    assert (first.receives, first.synops, first.macs) == ("constant", 0, image.numel() * image.shape[1])
    assert report.total["spikes"] == T * image.sum()
    assert report.total["updates"] == T * image.numel()
    assert report.total["state_bytes"] == image.numel() * (4 if delay == 0 else 8)


def test_all_positions_of_a_strided_convolution():
    x = torch.ones(1, 3, 16, 16)
    row = cost(Net(3, nn.Conv2d(3, 8, 3, 2, 1)), x).layers.iloc[-1]
    assert row.analog_macs == 23 * 23 * 3 * 8  # 8 windows of 3 each way, the first one loses a tap to the border
    assert row.synops == T * row.analog_macs
    assert row.rival_macs == row.analog_macs


def test_shortcuts_reach_the_neuron_and_the_next_layer():
    x = lit((2, 4, 4), (0, 0, 0), (1, 1, 1))
    layers = cost(Residual(), x).layers.set_index("layer")
    assert layers.synops["b"] == T * 2 * (4 + 9)
    assert layers.synops["relu2"] == T * 2  # the shortcut: one accumulation an event
    assert layers.analog_adds["relu2"] == 2 * 16
    assert layers.events["c"] == T * 2 * 2  # both branches
    assert layers.synops["c"] == T * 2 * 5 * (4 + 9)
    assert layers.analog_macs["c"] == 10 * 10 * 2 * 5
    assert layers.rival_macs["c"] == 5 * (4 + 9)  # the quantized network adds the branches first


def taps(size, kernel, stride, padding, dilation):
    """Windows that meet each position of a line."""
    found = [0] * size
    for window in range((size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1):
        for tap in range(kernel):
            place = window * stride - padding + tap * dilation
            if 0 <= place < size:
                found[place] += 1
    return torch.tensor(found, dtype=torch.float64)


@given(size=st.tuples(st.integers(7, 11), st.integers(7, 11)), kernel=st.integers(1, 3), stride=st.integers(1, 4),
       padding=st.integers(0, 2), dilation=st.integers(1, 3), groups=st.sampled_from([1, 2, 4]))  # fmt: skip
def test_fan_out_against_loops_over_taps(size, kernel, stride, padding, dilation, groups):
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    graph = Graph((Node("x", "input"), Node("conv", "conv2d", ("x",), attrs)), "conv")
    weight = torch.randn(8, 4 // groups, kernel, kernel)
    fan_out = FanOut(graph, Flow.of(graph, ["x"], []), {"x": (1, 4, *size)}, lambda _: {"weight": weight})
    lines = [taps(n, kernel, stride, padding, dilation) for n in size]
    expected = (torch.outer(*lines) * (8 // groups)).expand(1, 4, *size)
    assert torch.equal(fan_out.own(graph.nodes[1]), expected)
    assert torch.equal(fan_out.of(graph.nodes[1])["x"], expected)


@pytest.mark.parametrize(("delay", "spikes"), [(0, "binary"), (1, "ternary"), ("full", "graded:2")])
@pytest.mark.parametrize("pool", ["avg", "max"])
def test_a_trained_network_against_convolutions_of_its_events(build, digits, pool, delay, spikes):
    snn, x = build(pool, 4, delay, spikes), digits[0]
    trains = {}
    with torch.no_grad():
        snn(x, per_step=True, observer=lambda tap: trains.update({tap.name: (tap.output != 0).double()}))
        snn_sums = {}
        snn(x, per_step=True, observer=lambda tap: snn_sums.update({tap.name: tap.output}))
    report = analysis.measure_cost(snn, digits)
    layers = report.layers.set_index("layer")

    def met(layer, events):
        return float(F.conv2d(events, torch.ones_like(snn.tensors(layer)["weight"], dtype=torch.double), padding=1).sum())

    assert layers.synops["conv2"] == pytest.approx(met("conv2", trains["relu1"]) / len(x), rel=1e-12)
    assert layers.synops["fc2"] == pytest.approx(10 * float(trains["relu5"].sum()) / len(x), rel=1e-12)
    if pool == "avg":
        pooled = 4 * F.avg_pool2d(trains["relu2"], 2)
    else:
        theta = snn.neurons["relu2"].per_channel(snn.neurons["relu2"].threshold.detach(), 4)
        steps = torch.round(snn_sums["relu2"] / theta).view(4, len(x), *snn_sums["relu2"].shape[1:]).cumsum(0)
        highest = F.max_pool2d(steps.flatten(0, 1), 2).view(4, len(x), -1)
        pooled = torch.cat([highest[:1], highest.diff(dim=0)]).ne(0).double().view(4 * len(x), -1, 4, 4)
    assert layers.synops["conv3"] == pytest.approx(met("conv3", pooled) / len(x), rel=1e-12)
    fired = sum(float(train.sum()) for train in trains.values()) / len(x)
    assert report.total["spikes"] == pytest.approx(fired)
    assert report.total["graded_synops"] == (report.total["synops"] if spikes == "graded:2" else 0)


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_batches_do_not_matter_and_totals_are_sums(build, digits, pool):
    snn, (x, y) = build(pool, 4, 1), digits
    whole = analysis.measure_cost(snn, (x, y))
    for size in (1, 7):
        parts = analysis.measure_cost(snn, [x[i : i + size] for i in range(0, len(x), size)])
        assert whole.layers.equals(parts.layers)
    assert whole.images == 130
    assert analysis.measure_cost(snn, x, limit=13).images == 13
    for name in COUNTS:
        assert whole.total[name] == pytest.approx(math.fsum(whole.layers[name]), rel=1e-12)
    assert whole.total["spikes"] == pytest.approx(analysis.evaluate(snn, digits).spikes_per_inference)
    alone = [analysis.measure_cost(snn, x[i : i + 1]).total["synops"] for i in range(3)]
    assert analysis.measure_cost(snn, x[:3]).total["synops"] == pytest.approx(sum(alone) / 3)


def test_the_network_is_left_as_it_is(build, digits):
    snn, x = build("max", 4, 0), digits[0]
    with snn.reading("analog"), torch.no_grad():
        before = snn(x)
        report = analysis.measure_cost(snn, x)
        assert torch.equal(snn(x), before)
    assert report.total["spikes"] > 0
    assert report.layers.equals(analysis.measure_cost(snn, x).layers)


def test_the_rival_skips_its_own_zeros():
    x = lit((1, 4, 4), (0, 0, 0), (0, 1, 1))
    row = cost(Net(1, nn.Conv2d(1, 5, 3, padding=1)), x).layers.iloc[-1]
    assert row.rival_macs == 5 * (4 + 9)  # once, however many steps
    assert row.analog_macs == 10 * 10 * 5


@pytest.mark.parametrize(("timesteps", "spikes", "bits"), [(1, "binary", 1), (3, "binary", 2), (4, "binary", 3),
                                                           (7, "binary", 3), (4, "graded:2", 4)])  # fmt: skip
def test_bits_of_the_rival(timesteps, spikes, bits):
    net = Net(1, nn.Conv2d(1, 5, 3))
    assert cost(net, torch.ones(1, 1, 4, 4), timesteps=timesteps, spikes=spikes).bits == bits


def test_constant_current_costs_once_and_kept_analog_layers_every_step():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))
            self.relu, self.mid, self.more = nn.ReLU(), nn.Linear(5, 3), nn.Linear(3, 2)
            self.relu2, self.end, self.last = nn.ReLU(), nn.Linear(2, 3), nn.Linear(3, 7)

        def forward(self, x):
            return self.last(self.end(self.relu2(self.more(self.mid(self.relu(self.stem(x)))))))

    x, net = torch.rand(9, 4), Kept()
    for parameter in net.parameters():
        parameter.data.abs_()  # nothing is silent
    snn = convert.to_spiking(net, x, timesteps=T, keep_analog=["more", "last"])
    layers = analysis.measure_cost(snn, x).layers.set_index("layer")
    assert list(layers.macs[["stem.0", "stem.1", "mid", "more"]]) == [24, 30, 0, T * 6]
    assert layers.macs["last"] == 21  # behind the last neuron the mean is enough
    assert list(layers.macs_every_step[["stem.0", "more", "last"]]) == [T * 24, T * 6, T * 21]
    assert list(layers.receives[["stem.1", "mid", "more"]]) == ["constant", "events", "analog"]
    assert layers.rival_macs["more"] == layers.analog_macs["more"] == 6


def test_event_inputs_are_counted_at_the_first_layer(build):
    from speedysnn.data import load

    snn, data = build(), EncodedImages(load("digits", "test", limit=20), 4, "poisson")
    events = torch.stack([x for x, _ in data], 1)
    row = analysis.measure_cost(snn, data).layers.iloc[0]
    weight = torch.ones_like(snn.tensors("conv1")["weight"])
    met = float(F.conv2d((events != 0).float().flatten(0, 1), weight, padding=1).sum()) / 20
    assert (row.receives, row.macs) == ("events", 0)
    assert row.synops == pytest.approx(met, rel=1e-12)
    assert row.graded_synops == row.synops  # nothing says that an input's events have no size


def test_analog_units_are_named():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.silu = nn.Linear(4, 6), nn.Linear(6, 3), nn.SiLU()

        def forward(self, x):
            return self.b(self.silu(self.a(x)))

    x = torch.randn(9, 4)
    report = analysis.measure_cost(convert.to_spiking(Gated(), x, allow_hybrid=True), x)
    assert report.uncounted == ("silu (silu)",)
    assert report.layers.set_index("layer").receives["b"] == "events"
    json.dumps(report.to_json(), allow_nan=False)


def test_energy_by_hand():
    total = dict.fromkeys(COUNTS, 0.0) | {
        "synops": 1000, "graded_synops": 100, "macs": 10, "updates": 50, "analog_macs": 400, "analog_adds": 7,
        "rival_macs": 200,
    }  # fmt: skip
    table = energies(total, {"made up": CostTable(3.0, 0.5)}).set_index("table")
    assert table.loc["made up"].to_dict() == pytest.approx({
        "analog_nj": (3 * 400 + 0.5 * 7) / 1000, "rival_nj": (3 * 200 + 0.5 * 7) / 1000,
        "spiking_nj": (3 * 110 + 0.5 * 900) / 1000, "spiking_with_updates_nj": (3 * 110 + 0.5 * 950) / 1000,
    })  # fmt: skip
    fp32 = energies(total).set_index("table").loc["FP32, 45 nm"]
    assert fp32.analog_nj == pytest.approx((4.6 * 400 + 0.9 * 7) / 1000)


def test_mistakes_are_named(build, digits):
    with pytest.raises(InputError, match="limit: expected a whole number of at least 1, got 0"):
        analysis.measure_cost(build(), digits[0], limit=0)
    with pytest.raises(DataError, match="does not run on a batch"):
        analysis.measure_cost(build(), torch.rand(2, 3, 8, 8))
    with pytest.raises(DataError, match="expected batches of"):
        analysis.measure_cost(build(), torch.rand(2, 8))


def test_energy_with_memory_by_hand():
    """One linear layer of 3 inputs and 4 outputs: every buffer is below 8 kB, so an access costs 10 pJ."""
    small = access(0)
    assert small == 10
    assert access(2048) == pytest.approx(10)
    assert access(8192) == pytest.approx(20)
    assert access(256 * 1024) == pytest.approx(100)
    assert access(512 * 1024) > 180
    row = {"op": "linear", "inputs": 3, "outputs": 4, "weights": 12, "biases": 4, "events": 5.0, "synops": 20.0,
           "graded_synops": 0.0, "macs": 0.0, "analog_macs": 12.0, "rival_macs": 6.0, "analog_adds": 0.0}  # fmt: skip
    neuron = {"op": "neuron", "outputs": 4, "spikes": 2.0, "updates": 16.0, "synops": 0.0, "analog_adds": 0.0}
    got = with_memory([row, neuron])
    synaptic = 20 * (2 * 0.1 + small + 2 * small) + 5 * (small + 2 * 3.2) + 2 * small
    assert got["spiking_nj"] == pytest.approx(synaptic / 1000)
    assert got["spiking_with_updates_nj"] == pytest.approx((synaptic + 16 * (0.1 + 2 * small)) / 1000)
    outputs = 4 * (0.1 + small + small) + 0.1 * (3 + 4)
    assert got["analog_nj"] == pytest.approx((12 * (3.2 + 2 * small) + outputs) / 1000)
    assert got["rival_nj"] == pytest.approx((6 * (3.2 + 2 * small) + outputs) / 1000)


def test_the_report_has_a_row_with_memory_and_the_buffers_sizes(build, digits):
    cost = analysis.measure_cost(build("avg"), digits[0][:8])
    assert cost.energy["table"].iloc[-1] == "INT32, 45 nm, with memory"
    rows = cost.layers.set_index("layer")
    assert rows.loc["fc2", ["inputs", "outputs", "weights", "biases"]].tolist() == [64, 10, 640, 10]
    bare = cost.energy.set_index("table").loc["INT32, 45 nm"]
    assert (cost.energy.iloc[-1][["analog_nj", "rival_nj", "spiking_nj"]] > bare[["analog_nj", "rival_nj", "spiking_nj"]]).all()
