"""SpikingNetwork: time in the batch, streaming with delay lines, readings, changing T, several inputs and outputs."""

import copy
import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn import SpikingNetwork, convert
from speedysnn.errors import InputError
from speedysnn.execution import interpreter, runner, scheduling
from speedysnn.graph import ir


class Residual(nn.Module):
    """Two branches of different depth that meet in an addition and in a concatenation, with max-pooling between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(12 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        y = F.relu(self.c(F.relu(self.b(x))) + x)
        return self.head(torch.cat([x, y], 1).flatten(1))


def residual(**options: object) -> SpikingNetwork:
    return convert.to_spiking(Residual(), torch.randn(40, 2, 8, 8), **{"timesteps": 5, **options})


def stream(snn: SpikingNetwork, windows: list[Tensor]) -> list[Tensor]:
    """Outputs of step() for windows (T, B, ...) fed back to back, then flushed."""
    feed = [x for window in windows for x in window]
    out = []
    for tick in range(len(feed) + snn.latency):
        y = snn.step(feed[tick] if tick < len(feed) else None)
        if y is not None:
            assert tick >= snn.latency - snn.timesteps, "an output before the look-ahead was over"
            out.append(y)
    return out


DELAYS = [0, 1, 2, "full", {"relu": 2, "relu_1": 0, "relu_2": 1}, {"relu": 0, "relu_1": 3, "relu_2": 0}]


@pytest.mark.parametrize("spikes", ["binary", "ternary", "graded:2", "power2:3"])
@pytest.mark.parametrize("delay", DELAYS, ids=str)
def test_streaming_equals_time_batched(delay: object, spikes: str) -> None:
    snn = residual(spikes=spikes)
    snn.set_delay(delay)
    windows = [torch.randn(5, 3, 2, 8, 8), torch.randn(5, 3, 2, 8, 8)]
    with torch.no_grad():
        out = stream(snn, windows)
        assert len(out) == 10
        for i, window in enumerate(windows):
            own = torch.stack(out[5 * i : 5 * i + 5])
            steps = torch.arange(1, 6).view(-1, 1, 1)
            if delay != "full":  # there the counts come from one pass, in another order of summation
                torch.testing.assert_close(own.cumsum(0) / steps, snn(window, per_step=True), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(own.mean(0), snn(window), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("delay", "latency"), [(0, 5), (1, 8), (2, 11), ("full", 20), ({"relu": 2, "relu_2": 1}, 8)])
def test_latency_follows_the_longest_path(delay: object, latency: int) -> None:
    snn = residual()
    snn.set_delay(delay)
    assert (snn.latency, snn.depth) == (latency, 3)


@pytest.mark.parametrize("delay", [0, 1, "full"])
def test_running_means_end_at_the_mean(delay: object) -> None:
    snn, x = residual(delay=delay), torch.randn(4, 2, 8, 8)
    per_step = snn(x, per_step=True)
    assert per_step.shape == (5, 4, 5)
    torch.testing.assert_close(per_step[-1], snn(x), rtol=1e-5, atol=1e-6)


def test_full_look_ahead_equals_quantized_exactly() -> None:
    snn, x = residual(delay="full"), torch.randn(20, 2, 8, 8)
    with snn.reading("quantized"):
        twin = snn(x)
    assert torch.equal(snn(x), twin)


def test_the_static_prefix_runs_once_an_image() -> None:
    snn, seen = residual(), []
    for layer in snn.layers.values():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[0]))
    snn(torch.randn(3, 2, 8, 8))
    assert seen == [3, 15, 15]


def test_events_that_repeat_an_image_equal_the_image() -> None:
    snn, x = residual(delay=1), torch.randn(3, 2, 8, 8)
    events = x.expand(5, 3, 2, 8, 8)
    torch.testing.assert_close(snn(events), snn(x), rtol=1e-4, atol=1e-5)
    for reading in ("analog", "quantized"):
        with snn.reading(reading):
            torch.testing.assert_close(snn(events), snn(x), rtol=1e-4, atol=1e-5)


def test_pooled_spikes_stay_spikes() -> None:
    snn, taken = residual(), []
    with torch.no_grad():
        def observe(tap):
            taken.append(tap)

        snn(torch.randn(3, 2, 8, 8), observer=observe)
        theta = taken[0].neuron.per_channel(taken[0].neuron.threshold, 4)
        execution = interpreter.Execution(snn.graph, snn.neurons, snn.layer, 5)
        node = next(node for node in snn.graph.nodes if node.op == "max_pool2d")
        pooled = execution.timed_operator(node, [interpreter.Value(taken[0].output, True)]).tensor
    spikes = pooled / theta
    assert torch.equal(spikes, spikes.round())
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert torch.equal((pooled.view(5, 3, 6, 4, 4) / theta).sum(0),
                       F.max_pool2d((taken[0].output.view(5, 3, 6, 8, 8) / theta).sum(0), 2))  # fmt: skip


def test_reading_comes_back_after_an_error() -> None:
    snn = residual()
    with pytest.raises(RuntimeError, match="inside"), snn.reading("analog"):
        raise RuntimeError("inside")
    assert snn.present_reading == "spiking"
    with pytest.raises(InputError, match="reading"), snn.reading("rate"):
        pass


def test_recalibrated_equals_converted_at_that_t() -> None:
    torch.manual_seed(1)
    ann, x = Residual(), torch.randn(40, 2, 8, 8)
    snn = convert.to_spiking(ann, x, timesteps=2)
    snn.timesteps = 16
    fresh = convert.to_spiking(ann, x, timesteps=16)
    assert any(not torch.equal(a.threshold, b.threshold) for a, b in zip(snn.neurons.values(), fresh.neurons.values(), strict=True))
    snn.recalibrate()
    for a, b in zip(snn.neurons.values(), fresh.neurons.values(), strict=True):
        assert torch.equal(a.threshold, b.threshold)


def test_batches_of_any_size_without_reset_and_in_passes() -> None:
    snn, x = residual(), torch.randn(10, 2, 8, 8)
    with torch.no_grad():
        whole = snn(x)
        torch.testing.assert_close(torch.cat([snn(x[:7]), snn(x[7:])]), whole, rtol=1e-4, atol=1e-5)
        snn.images_per_pass = 3
        torch.testing.assert_close(snn(x), whole, rtol=1e-4, atol=1e-5)
        assert snn(x, per_step=True).shape == (5, 10, 5)


@pytest.mark.parametrize("delay", [0, 1, "full"])
def test_values_that_nothing_reads_again_are_written_over(delay: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    snn, x = residual(), torch.randn(6, 2, 8, 8)
    snn.set_delay(delay)
    given = x.clone()
    assert {node.op for node in snn.graph.nodes if node.name in ir.inplace_safe(snn.graph)} >= {"add", "conv2d"}
    with torch.no_grad():
        ours = snn(x, per_step=True)
        assert torch.equal(x, given)
        snn.graph_info = replace(snn.graph_info, inplace_safe=frozenset())
        assert torch.equal(snn(x, per_step=True), ours)


@pytest.mark.parametrize("events", ["never", "always"])
def test_sums_over_what_no_gradient_reads_change_no_gradient(events: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEEDYSNN_EVENTS", events)
    snn, x = residual(), torch.randn(6, 2, 8, 8)
    found, info = [], snn.graph_info
    assert info.sum_safe, "nothing is written over, so nothing is tested"
    for names in (info.sum_safe, frozenset()):
        snn.graph_info = replace(info, sum_safe=names)
        snn.zero_grad()
        snn(x).square().sum().backward()
        found.append([p.grad for p in snn.parameters() if p.grad is not None])
    assert len(found[0]) > 4
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_fits_one_pass_is_cut_where_it_is_work_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    snn, x = residual(), torch.randn(9, 2, 8, 8)
    found: list[int] = []
    one_pass = runner.one_pass
    monkeypatch.setattr(runner, "one_pass", lambda call, inputs: found.append(len(inputs[0])) or one_pass(call, inputs))
    monkeypatch.delenv(scheduling.VARIABLE, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            wanted = snn(x)
            needed = 9 * snn.timesteps * snn.multiplications / len(snn.graph.nodes) / 2
            monkeypatch.setattr(scheduling, "WORTH", 1.01 * needed)
            snn(x)
            monkeypatch.setattr(scheduling, "WORTH", needed)
            torch.testing.assert_close(snn(x), wanted)
            monkeypatch.setenv(scheduling.VARIABLE, "9")
            snn(x)
            monkeypatch.delenv(scheduling.VARIABLE)
            snn.images_per_pass = 9
            snn(x)
    finally:
        torch.set_num_threads(before)
    assert [found[0], found[1], *sorted(found[2:4]), *found[4:]] == [9, 9, 4, 5, 9, 9]


def test_passes_run_beside_one_another_under_the_callers_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    snn, x = residual(), torch.randn(12, 2, 8, 8)
    snn.images_per_pass = 2
    seen: list[tuple[int, int, bool, bool]] = []
    one_pass = runner.one_pass

    def look(*args: object) -> object:
        modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        seen.append((threading.get_ident(), torch.get_num_threads(), *modes))
        return one_pass(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "one_pass", look)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            out = snn(x)
            with torch.autocast("cpu", torch.bfloat16):
                rough = snn(x)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 12
    assert all(threads == 1 and inference for _, threads, inference, _ in seen)
    assert [mixed for *_, mixed in seen] == [False] * 6 + [True] * 6
    assert len({ident for ident, *_ in seen} - {threading.get_ident()}) <= 1  # one beside this thread, no more
    torch.testing.assert_close(rough.float(), out, rtol=0.2, atol=0.2)
    with torch.no_grad():
        snn.images_per_pass = 12
        torch.testing.assert_close(out, snn(x), rtol=1e-4, atol=1e-5)


def test_copies_and_states() -> None:
    snn, x = residual(), torch.randn(3, 2, 8, 8)
    other = copy.deepcopy(snn)
    for parameter in other.parameters():
        parameter.data.add_(0.05)
    assert not torch.equal(other(x), snn(x))
    other.load_state_dict(snn.state_dict())
    assert torch.equal(other(x), snn(x))
    assert other.to(torch.float64)(x.double()).dtype == torch.float64


class Several(nn.Module):
    """Two inputs, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 6)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        joined = torch.relu(self.a(x) + self.b(y))
        return {"sum": joined.sum(1), "parts": joined * 2}


def test_several_inputs_and_outputs() -> None:
    ann, x, y = Several(), torch.randn(30, 4), torch.randn(30, 3)
    snn = convert.to_spiking(ann, [((x, y), torch.zeros(30, dtype=torch.long))], timesteps=64)
    out = snn(x, y)
    assert set(out) == {"sum", "parts"}
    torch.testing.assert_close(out["parts"], ann(x, y)["parts"], rtol=0.1, atol=0.1)
    with pytest.raises(InputError, match="expected 2 inputs"):
        snn(x)


@pytest.mark.parametrize("shape", [(2, 8, 8), (4, 3, 2, 8, 8), (1, 1, 1, 2, 8, 8)])
def test_wrong_rank_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \(B, 2, 8, 8\)"):
        residual()(torch.zeros(shape))


def test_bad_settings_are_named() -> None:
    snn = residual()
    for value in (0, -1, 2.5, True):
        with pytest.raises(InputError, match="timesteps"):
            snn.timesteps = value
    with pytest.raises(InputError, match="no neuron is called"):
        snn.set_delay({"relu9": 1})
    snn.calibration.histograms.clear()
    with pytest.raises(InputError, match="no histograms"):
        snn.recalibrate()


def test_summary_has_a_row_a_layer() -> None:
    frame = residual().summary()
    assert frame.layer.tolist() == ["relu", "relu_1", "relu_2"]
    assert frame.neurons.tolist() == [6 * 64, 6 * 16, 6 * 16]
    assert frame.predicted_rate.between(0, 1).all()
