"""Nothing is left changed, whatever happens; the sweep; what is refused."""

import pytest
import torch
from torch import nn

from speedysnn.analysis import evaluate, measure_noise, sweep
from speedysnn.analysis.evaluate import SWEEP
from speedysnn.errors import DataError, InputError

MEASURES = {
    "measure_noise": measure_noise,
    "evaluate": evaluate,
    "sweep": lambda snn, data: sweep(snn, data, [2, 6]),
}


class Boom(Exception):
    pass


def state(snn):
    return {
        "timesteps": snn.timesteps,
        "reading": snn.present_reading,
        "neurons": [(n.timesteps, n.delay, n.spikes, n.reading) for n in snn.neurons.values()],
        "pointers": {name: value.data_ptr() for name, value in snn.state_dict().items()},
        "values": {name: value.double().sum().item() for name, value in snn.state_dict().items()},
        "grad": [(p.requires_grad, p.grad is None) for p in snn.parameters()],
        "modes": [m.training for m in snn.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in snn.modules()],
        "enabled": torch.is_grad_enabled(),
    }


def broken(x):
    yield x[:20], None
    raise Boom("the third batch is gone")


@pytest.mark.parametrize("name", MEASURES)
def test_state_after_a_run(build, digits, name):
    snn = build("max", 4, 1)
    snn.train()
    before = state(snn)
    MEASURES[name](snn, digits)
    assert state(snn) == before


@pytest.mark.parametrize("name", MEASURES)
def test_state_after_the_data_raises(build, digits, name):
    snn = build("max", 4, 1)
    before = state(snn)
    with pytest.raises(DataError, match=r"Boom: the third batch is gone"):
        MEASURES[name](snn, broken(digits[0]))
    assert state(snn) == before


@pytest.mark.parametrize("name", MEASURES)
def test_state_after_a_reading_raises(build, digits, name, monkeypatch):
    """The second batch fails inside the network: in the observer, or between two readings."""
    snn = build("max", 4, 1)
    before, calls = state(snn), []

    def fail(*arguments):
        calls.append(1)
        if len(calls) > 3:
            raise Boom
        return 0 if len(arguments) == 1 else None  # events of one layer, or "take the plain way"

    for place in ("execution.observers.Tap.events", "analysis.noise.layer.supports"):
        monkeypatch.setattr(f"speedysnn.{place}", fail)
    with pytest.raises(Boom):
        MEASURES[name](snn, digits)
    assert state(snn) == before


def test_interrupts_leave_it_as_it_was(build, digits):
    snn = build()
    before = state(snn)

    def stopped():
        yield digits[0][:100]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(snn, stopped(), [1, 8])
    assert state(snn) == before


@pytest.mark.parametrize("fails", [False, True])
def test_a_source_module_keeps_modes_and_hooks(build, digits, fails):
    class Source(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.BatchNorm1d(64), nn.Linear(64, 10))

        def forward(self, x):
            if fails:
                raise Boom
            return self.body(x)

    source = Source().train()
    source.body[2].eval()
    source.body[3].register_forward_hook(lambda *_: None)
    modes, hooks = [m.training for m in source.modules()], [len(m._forward_hooks) for m in source.modules()]
    buffers = {name: value.clone() for name, value in source.state_dict().items()}
    snn = build()
    before = state(snn)
    if fails:
        with pytest.raises(Boom):
            measure_noise(snn, digits, source)
    else:
        measure_noise(snn, digits, source)
        evaluate(snn, digits, source=source)
    assert [m.training for m in source.modules()] == modes
    assert [len(m._forward_hooks) for m in source.modules()] == hooks
    assert all(torch.equal(value, buffers[name]) for name, value in source.state_dict().items())
    assert state(snn) == before


def test_sweep_rows_are_what_evaluate_finds(build, digits):
    snn = build("max", 4, 1)
    data = digits[0][:60], digits[1][:60]
    table = sweep(snn, data, [2, 4])
    assert list(table.columns) == list(SWEEP)
    assert list(zip(table["timesteps"], table["theta"], strict=True)) == [
        (2, "fixed"), (2, "recalibrated"), (4, "fixed"), (4, "recalibrated")
    ]  # fmt: skip
    for row in table.to_dict("records"):
        other = build("max", 4, 1)
        other.timesteps = row["timesteps"]
        if row["theta"] == "recalibrated":
            other.recalibrate()
        found = evaluate(other, data).to_json()
        for name in ("accuracy", "twin_accuracy", "agreement", "latency", "spikes_per_inference", "delay"):
            assert row[name] == found[name], name
        assert row["sqnr_db"] == pytest.approx(found["sqnr_db"], rel=1e-6)
    fixed, chosen = (table.iloc[0], table.iloc[1])
    assert chosen["twin_sqnr_db"] != fixed["twin_sqnr_db"]


KINDS = [(True, ["recalibrated"]), (False, ["fixed"]), ("both", ["fixed", "recalibrated"])]


@pytest.mark.parametrize(("choice", "kinds"), KINDS)
def test_sweep_kinds(build, digits, choice, kinds):
    assert list(sweep(build(), digits[0][:8], [3, 3], recalibrate=choice)["theta"]) == kinds


def test_limit(build, digits):
    snn = build()
    whole = measure_noise(snn, (digits[0][:37], digits[1][:37]))
    limited = measure_noise(snn, [(digits[0][:30], digits[1][:30]), (digits[0][30:], digits[1][30:])], limit=37)
    assert limited.outputs == whole.outputs


REFUSED = {
    "limit": (InputError, lambda snn, x: measure_noise(snn, x, limit=0), "limit"),
    "source": (InputError, lambda snn, x: measure_noise(snn, x, source="net"), "source"),
    "other outputs": (InputError, lambda snn, x: evaluate(snn, x, source=nn.Flatten()), "source"),
    "no steps": (InputError, lambda snn, x: sweep(snn, x, []), "timesteps"),
    "bad steps": (InputError, lambda snn, x: sweep(snn, x, [0]), "timesteps"),
    "bad choice": (InputError, lambda snn, x: sweep(snn, x, [2], recalibrate="yes"), "recalibrate"),
    "events": (InputError, lambda snn, x: sweep(snn, x.expand(4, *x.shape), [2]), "events"),
    "no data": (DataError, lambda snn, x: measure_noise(snn, []), "no batch"),
    "nan": (DataError, lambda snn, x: measure_noise(snn, x * float("nan")), "NaN"),
    "rank": (DataError, lambda snn, x: measure_noise(snn, x.flatten(1)), "expected batches"),
    "channels": (DataError, lambda snn, x: measure_noise(snn, x.repeat(1, 3, 1, 1)), "does not run"),
    "mixed labels": (DataError, lambda snn, x: measure_noise(snn, [(x, torch.zeros(8).long()), x]), "labels"),
    "mixed sizes": (DataError, lambda snn, x: measure_noise(snn, [x, x[..., :4]]), "shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_clear_error_and_nothing_changed(build, digits, case):
    error, call, words = REFUSED[case]
    snn = build()
    before = state(snn)
    with pytest.raises(error, match=words):
        call(snn, digits[0][:8])
    assert state(snn) == before


def test_no_histograms_means_no_recalibration(build, digits):
    snn = build()
    snn.calibration.histograms.clear()
    with pytest.raises(InputError, match="recalibrate=False"):
        sweep(snn, digits[0][:8], [2])
    assert len(sweep(snn, digits[0][:8], [2], recalibrate=False)) == 1
