"""Defects of tools that came before, each as a test here: what they got wrong must stay right."""

import weakref

import pandas as pd
import pytest
import torch
from torch import nn

from speedysnn import analysis
from speedysnn.convert import to_spiking


class TwoHeads(nn.Module):
    """A tuple of outputs, and average pooling between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU())
        self.one, self.two = nn.Linear(24, 3), nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.body(x).flatten(1)
        return self.one(y), self.two(y)


@pytest.fixture
def network():
    torch.manual_seed(3)
    x = torch.rand(65, 1, 8, 8)
    ann = TwoHeads().eval()
    return ann, to_spiking(ann, x, timesteps=4), x


def by_batches(x: torch.Tensor, size: int):
    return [(x[i : i + size],) for i in range(0, len(x), size)]


def test_nothing_depends_on_the_size_of_the_batches(network):
    """Sums of batch means over a count of samples: the same noise, a hundred times smaller."""
    _, snn, x = network
    whole = analysis.measure_noise(snn, by_batches(x, 65))
    for size in (1, 7, 64):
        parts = analysis.measure_noise(snn, by_batches(x, size))
        numbers = whole.layers.select_dtypes("number").columns
        pd.testing.assert_frame_equal(parts.layers[numbers], whole.layers[numbers], rtol=1e-6, atol=1e-9)
        for name in ("sqnr_db", "twin_sqnr_db", "spikes_per_neuron", "images"):
            assert parts.outputs[name] == pytest.approx(whole.outputs[name], rel=1e-6)


def test_the_total_is_the_sum_of_the_layers(network):
    """A pooling factor applied a layer, and forgotten in the total."""
    _, snn, x = network
    cost = analysis.measure_cost(snn, x)
    for name, value in cost.total.items():
        assert value == pytest.approx(cost.layers[name].sum())
    assert cost.total["spikes"] > 0


def test_every_sample_and_every_output_counts(network):
    """A hook that took output[0], and so the first sample alone."""
    _, snn, x = network
    noise = analysis.measure_noise(snn, x)
    assert noise.outputs["images"] == len(x)
    n = {"body.1": 4 * 8 * 8, "body.4": 6 * 2 * 2}
    for row in noise.layers.itertuples():
        assert row.n == len(x) * n[row.layer]
    with torch.no_grad():
        ours, source = snn.read("spiking", x), snn.read("analog", x)
    signal = sum(float(a.double().square().sum()) for a in source)
    error = sum(float((a - b).double().square().sum()) for a, b in zip(ours, source, strict=True))
    expected = 10 * torch.log10(torch.tensor(signal / error, dtype=torch.float64))
    assert noise.outputs["sqnr_db"] == pytest.approx(float(expected), abs=1e-4)


def test_the_worst_is_not_the_best(network, tmp_path):
    """The eight best tensors, reported as the worst."""
    _, snn, x = network
    noise = analysis.measure_noise(snn, x)
    assert analysis.COLUMNS["sqnr_db"].higher_is_better is True
    assert analysis.COLUMNS["rmse_steps"].higher_is_better is False
    page = (noise.save(tmp_path / "report") / "report.html").read_text()
    worst = page[page.index("Worst layers") : page.index("All layers")]
    names = noise.layers.sort_values("sqnr_db")["layer"].tolist()
    assert [worst.index(f">{name}<") for name in names] == sorted(worst.index(f">{name}<") for name in names)


@pytest.mark.parametrize(
    "measure", [analysis.measure_noise, analysis.measure_cost, analysis.evaluate, analysis.sweep,
                analysis.measure_sensitivity],
)  # fmt: skip
def test_an_exception_leaves_the_network_as_it_was(network, measure):
    """Context managers without finally: a failing evaluation left the model changed."""
    _, snn, x = network

    def fails():
        yield (x[:8],)
        raise KeyError("the disk went away")

    before = {name: value.clone() for name, value in snn.state_dict().items()}
    settings = snn.timesteps, snn.present_reading, snn.training
    with pytest.raises(Exception, match="the disk went away"):
        measure(snn, fails())
    assert (snn.timesteps, snn.present_reading, snn.training) == settings
    after = snn.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in snn.modules())


def test_one_pass_whatever_the_number_of_layers(network):
    """Both models run again for every layer and batch."""
    ann, snn, x = network
    seen = []

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ann

        def forward(self, inputs: torch.Tensor):
            seen.append(len(inputs))
            return self.inner(inputs)

    analysis.measure_noise(snn, x, Counted(), try_settings=0)
    assert sum(seen) == len(x)
    seen.clear()
    tried = analysis.measure_noise(snn, x, Counted()).outputs["tried"]
    assert sum(seen) == len(x) + tried[0]["images"]  # once more for the images that settings are tried on, not for each


def test_decibels_say_so_in_their_name():
    """A linear ratio named sqnr, and its inverse named SNR."""
    for name, column in {**analysis.COLUMNS, **analysis.OUTPUTS}.items():
        assert name.endswith("_db") == (column.unit == "dB"), name
        if name.endswith("sqnr_db"):
            assert column.higher_is_better is True


def test_batches_are_let_go(network):
    """Every activation kept for the whole run."""
    _, snn, x = network
    alive: list[weakref.ref] = []
    most = 0

    def stream():
        nonlocal most
        for start in range(0, 64, 4):
            batch = x[start : start + 4].clone()
            alive.append(weakref.ref(batch))
            yield (batch,)
            del batch
            most = max(most, sum(ref() is not None for ref in alive))

    snn.images_per_pass = 4
    analysis.measure_noise(snn, stream())
    assert len(alive) == 16
    assert most <= 8


def test_results_are_returned_and_not_printed(network, capsys):
    _, snn, x = network
    assert len(analysis.measure_noise(snn, x).layers) == 2
    assert len(analysis.sweep(snn, x, (2, 4))) == 4
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
