"""What a user may add from outside, one entry each, and where it is seen: in Python and on the command line."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import speedysnn
from speedysnn import analysis, convert, data
from speedysnn.calibration.rules import RULES, Request, ThresholdRule
from speedysnn.cli.main import run
from speedysnn.errors import ArtifactError, ConversionError, InputError
from speedysnn.export import EXPORTERS, Exporter, export
from speedysnn.graph.operators import OPERATORS, Operator
from speedysnn.network import SpikingNetwork

ROOT = Path(__file__).resolve().parents[1]
NET = "speedysnn.assets.digits:load_digits_net"


@pytest.fixture
def snn() -> SpikingNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    return convert.to_spiking(net, torch.rand(64, 4), timesteps=4)


def helps(command: str, capfd: pytest.CaptureFixture[str]) -> str:
    """The help of a command without the table's frame."""
    capfd.readouterr()
    assert run([command, "--help"]) == 0
    return " ".join(capfd.readouterr().out.replace("│", " ").split())


# an operator


class Bend(nn.Module):
    """A function that the package does not know, with a decision in it that no tracer follows."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x**2) if bool(x.isfinite().all()) else x


BEND = Operator(lambda x, attrs, tensors: x[0] / (1 + x[0] ** 2), "rate", hybrid=True, sign="keeps")


def emit_bend(call: convert.Call) -> convert.Ref:
    return call.emit("bend", (call.ref(),))


def bent() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Bend(), nn.Linear(8, 2))


def check_bent(snn: SpikingNetwork, net: nn.Module, x: Tensor, tmp_path: Path) -> None:
    """The operator is in the graph, the analog reading is the source, and it is saved by name."""
    assert "bend" in [node.op for node in snn.graph.nodes]
    with torch.no_grad():
        with snn.reading("analog"):
            torch.testing.assert_close(snn(x), net(x))
        assert torch.equal(speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn"))(x), snn(x))


def test_an_operator_as_a_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = bent(), torch.rand(16, 4)
    with pytest.raises(ConversionError):
        convert.to_spiking(net, x, allow_hybrid=True)
    monkeypatch.setitem(OPERATORS, "bend", BEND)
    snn = convert.to_spiking(net, x, timesteps=4, allow_hybrid=True, handlers={Bend: emit_bend})
    check_bent(snn, net, x, tmp_path)


def test_an_operator_by_its_rows_in_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the guide's named lines add: a row of OPERATORS and one of the handlers, and no argument of a call."""
    net, x = bent(), torch.rand(16, 4)
    monkeypatch.setitem(OPERATORS, "bend", BEND)
    monkeypatch.setitem(convert.HANDLERS, Bend, emit_bend)
    report = convert.inspect(net, x, allow_hybrid=True)
    assert [row.why for row in report.problems] == []
    check_bent(convert.to_spiking(net, x, timesteps=4, allow_hybrid=True), net, x, tmp_path)


def test_an_activation_is_neurons_by_one_entry() -> None:
    class Clamp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.clamp(x, 0, 1) if bool(x.isfinite().all()) else x

    net, x = nn.Sequential(nn.Linear(4, 8), Clamp(), nn.Linear(8, 2)), torch.rand(16, 4)
    snn = convert.to_spiking(net, x, timesteps=4, handlers={Clamp: convert.as_neuron(ceiling=1.0)})
    assert list(snn.neurons) == ["1"]


# a noise column


ERROR_PER_SPIKE = analysis.Column(
    "activation squared per event", "Squared error that one spike event leaves.", False, "0",
    value=lambda layer: layer.total["ee"] / max(1, layer.events), after="gain", summary=True,
)  # fmt: skip


@pytest.fixture
def columns() -> Iterator[None]:
    """Entries that a test makes are gone after it."""
    before = [(table, dict(table)) for table in (analysis.COLUMNS, analysis.SUMS)]
    yield
    for table, rows in before:
        table.clear()
        table.update(rows)


def check_column(snn: SpikingNetwork, name: str, folder: Path) -> None:
    """It stands in the table, in both forms of the report, and in the JSON with its unit."""
    noise = analysis.measure_noise(snn, torch.rand(32, 4))
    assert (noise.layers[name] > 0).any()
    saved = noise.save(folder)
    written = json.loads((saved / "noise.json").read_text(encoding="utf-8"))
    assert written["columns"][name] == analysis.COLUMNS[name].to_json()
    assert [layer[name] for layer in written["layers"]] == pytest.approx(noise.layers[name].tolist())
    assert pd.read_csv(saved / "layers.csv")[name].tolist() == pytest.approx(noise.layers[name].tolist())
    for page in ("report.html", "report.md"):
        assert name.replace("_", " ") in (saved / page).read_text(encoding="utf-8"), page


@pytest.mark.usefixtures("columns")
def test_a_column_as_a_plug_in(snn: SpikingNetwork, tmp_path: Path) -> None:
    analysis.COLUMNS["error_per_spike"] = ERROR_PER_SPIKE
    check_column(snn, "error_per_spike", tmp_path / "report")


@pytest.mark.usefixtures("columns")
def test_a_column_of_a_sum_of_its_own(snn: SpikingNetwork, tmp_path: Path) -> None:
    analysis.SUMS["absolute"] = analysis.Sum("total", "activation", "Absolute error.", lambda block: block.e.abs())
    analysis.COLUMNS["mean_absolute"] = analysis.Column(
        "activation", "Mean absolute error.", False, "0", value=lambda x: x.total["absolute"] / x.n, summary=True
    )
    check_column(snn, "mean_absolute", tmp_path / "report")


@pytest.mark.usefixtures("columns")
def test_a_column_by_its_row_in_the_library(
    snn: SpikingNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row stands at its place in the table instead of `after`, and the command line shows it too."""
    row = dataclasses.replace(ERROR_PER_SPIKE, after="")
    for name in list(analysis.COLUMNS):
        analysis.COLUMNS[name] = analysis.COLUMNS.pop(name)
        if name == "cosine":
            analysis.COLUMNS["error_per_spike"] = row
    check_column(snn, "error_per_spike", tmp_path / "report")
    speedysnn.save(snn, tmp_path / "net.snn")
    images = tmp_path / "images.py"
    images.write_text("import torch\n\ndef some(split):\n    return torch.rand(16, 4)\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run(["analyze", "net.snn", "-d", "images.py:some", "-o", "shell"]) == 0
    assert "error_per_spike" in pd.read_csv("shell/layers.csv")


# an export target


def write_thetas(snn: SpikingNetwork, path: Path, *, overwrite: bool) -> None:
    thetas = {name: neuron.threshold.tolist() for name, neuron in snn.neurons.items()}
    path.write_text(json.dumps({"timesteps": snn.timesteps, "thetas": thetas}), encoding="utf-8")


def verify_thetas(snn: SpikingNetwork, path: Path) -> None:
    if json.loads(path.read_text(encoding="utf-8"))["timesteps"] != snn.timesteps:
        raise ArtifactError(f"{path}: another T than the network's {snn.timesteps}")


THETAS = Exporter(write_thetas, "thresholds as JSON", verify={"json": verify_thetas}, read_hint="json.load(open({!r}))")


def test_an_export_target_in_python(snn: SpikingNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPORTERS, "thetas", THETAS)
    file = export(snn, tmp_path / "net.json", to="thetas", verify="json")
    assert json.loads(file.read_text())["thetas"]["1"] == snn.neurons["1"].threshold.tolist()
    with pytest.raises(InputError, match=r"net\.json: something is there already"):
        export(snn, file, to="thetas")
    snn.timesteps = 2
    export(snn, file, to="thetas", overwrite=True)
    assert json.loads(file.read_text())["timesteps"] == 2
    with pytest.raises(InputError, match="verify='norse' is not known for the format 'thetas'; expected one of json"):
        export(snn, file, to="thetas", overwrite=True, verify="norse")
    with pytest.raises(InputError, match="expected one of the formats pt2, nir, c, chip, thetas, got 'theta'"):
        export(snn, file, to="theta")


def test_what_a_reader_finds_different_is_said(
    snn: SpikingNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_wrong(snn: SpikingNetwork, path: Path, *, overwrite: bool) -> None:
        path.write_text('{"timesteps": 99}', encoding="utf-8")

    monkeypatch.setitem(EXPORTERS, "wrong", Exporter(write_wrong, verify={"json": verify_thetas}))
    with pytest.raises(ArtifactError, match="another T than the network's 4"):
        export(snn, tmp_path / "net.json", to="wrong", verify="json")


def test_an_export_target_wins_over_a_built_in_one(
    snn: SpikingNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPORTERS, "pt2", THETAS)
    assert "thetas" in export(snn, tmp_path / "net.pt2").read_text()


def test_an_export_target_on_the_command_line(
    snn: SpikingNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    speedysnn.save(snn, tmp_path / "net.snn")
    monkeypatch.chdir(tmp_path)
    assert run(["export", "net.snn", "--to", "thetas", "-o", "net.json"]) == 2
    assert "--to: expected one of pt2, nir, c, chip, got 'thetas'" in capfd.readouterr().err
    monkeypatch.setitem(EXPORTERS, "thetas", THETAS)
    assert "thetas (thresholds as JSON)" in helps("export", capfd)
    assert run(["export", "net.snn", "--to", "thetas", "-T", "3", "-o", "net.json", "--verify", "json"]) == 0
    assert "json.load(open('net.json'))" in capfd.readouterr().out
    assert json.loads(Path("net.json").read_text())["timesteps"] == 3


# a data kind


def noise(size: str, split: str) -> data.Loaded:
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)
    images = torch.rand(int(size), 1, 8, 8, generator=generator)
    return data.Loaded(data.ArrayStore(images, torch.arange(int(size)) % 10), f"noise:{size}", classes=10)


NOISE = data.DataKind(noise, "noise:SIZE", "images of even noise")


@pytest.mark.parametrize("entry", [NOISE, noise])
def test_a_data_kind_in_python(entry: data.DataKind, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown data 'noise:12'"):
        data.load("noise:12")
    monkeypatch.setitem(data.HANDLERS, "noise", entry)
    found = data.load("noise:12", "train", limit=5)
    assert (len(found), found.image_shape, found.classes) == (5, (1, 8, 8), 10)
    form = "noise:SIZE" if entry is NOISE else r"noise\[:...\]"
    with pytest.raises(InputError, match=f"did you mean 'noise'.*expected 'digits'.* or '{form}'"):
        data.load("nois:12")


def test_a_data_kind_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["convert", NET, "-d", "noise:64", "-T", "2", "-o", "net.snn"]) == 2
    monkeypatch.setitem(data.HANDLERS, "noise", NOISE)
    assert "noise:SIZE (images of even noise)" in helps("convert", capfd)
    assert run(["convert", NET, "-d", "noise:64", "-T", "2", "-o", "net.snn"]) == 0
    capfd.readouterr()
    assert run(["evaluate", "net.snn", "-d", "nose:64"]) == 2
    assert "did you mean 'noise'" in capfd.readouterr().err
    assert run(["evaluate", "net.snn", "-d", "noise:20"]) == 0


# a threshold rule


def two_deviations(request: Request) -> Tensor:
    """Full scale at twice the root of the mean square."""
    edges = request.magnitudes.edges()
    squares = ((edges[:, 1:] + edges[:, :-1]) / 2).square() * request.magnitudes.counts
    return 2 * (squares.sum(1) / request.magnitudes.total).sqrt() / request.max_spikes


def mean_by_gradient(request: Request) -> Tensor:
    """The mean of the activations, each weighed by its squared gradient at the output; the channels' own mean, if 0."""
    weighted = request.gradient_histogram()
    centres = (weighted.edges()[:, 1:] + weighted.edges()[:, :-1]) / 2
    return (centres * weighted.counts).sum(1) / weighted.counts.sum(1).clamp_min(1e-30)


def thetas(snn: SpikingNetwork) -> list[Tensor]:
    return [neuron.threshold.detach().clone() for neuron in snn.neurons.values()]


def test_a_threshold_rule_in_python(snn: SpikingNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(256, 4)
    mine = convert.to_spiking(net, images, threshold=two_deviations)
    values = net[:2](images).detach()
    torch.testing.assert_close(
        mine.neurons["1"].threshold.detach()[0], 2 * values[:, 0].square().mean().sqrt(), rtol=0.03, atol=0
    )
    assert mine.calibration.rules == {"1": "two_deviations"}
    before = thetas(mine)
    assert torch.equal(thetas(mine.recalibrate())[0], before[0])
    loaded = speedysnn.load(speedysnn.save(mine, tmp_path / "net.snn"))
    with pytest.raises(InputError, match="'two_deviations' is not known here"):
        loaded.recalibrate()
    monkeypatch.setitem(RULES, "two_deviations", two_deviations)
    assert torch.equal(thetas(loaded.recalibrate())[0], before[0])
    named = convert.to_spiking(net, images, threshold={"1": "two_deviations"})
    assert torch.equal(thetas(named)[0], before[0])


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_a_threshold_rule_that_needs_gradients(
    granularity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), torch.rand(256, 4)
    rule = ThresholdRule(mean_by_gradient, needs=("gradients",))
    monkeypatch.setitem(RULES, "mean-by-gradient", rule)
    snn = convert.to_spiking(net, images, threshold="mean-by-gradient", granularity=granularity)
    values, slopes = net[:2](images).detach(), net[2].weight.detach()[0].square()  # one output: the signs do not matter
    if granularity == "channel":
        alive = values.amax(0) > 0
        expected = values.sum(0)[alive] / (values > 0).sum(0)[alive]
        found = snn.neurons["1"].threshold.detach()[alive]
    else:
        expected = (values * slopes).sum() / ((values > 0) * slopes).sum()
        found = snn.neurons["1"].threshold.detach()
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0)
    again = speedysnn.load(speedysnn.save(snn, tmp_path / "net.snn")).recalibrate()
    assert torch.equal(thetas(again)[0], thetas(snn)[0])


def test_a_threshold_rule_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["convert", NET, "-d", "digits", "--limit", "64", "-T", "2", "--correct", "none", "-o", "net.snn"]
    command.append("--threshold")
    assert run([*command, "scaled:2"]) == 2
    rule = ThresholdRule(lambda r: r.magnitudes.maximum * r.argument, parse=float, form='"scaled:FACTOR"')
    monkeypatch.setitem(RULES, "scaled", rule)
    assert "scaled:FACTOR" in helps("convert", capfd)
    assert run([*command, "scaled:two"]) == 2
    assert "\"scaled:FACTOR\", got 'scaled:two'" in capfd.readouterr().err
    assert run([*command, "scaled:0.5"]) == 0
    snn = speedysnn.load("net.snn")
    histograms = snn.calibration.histograms
    for name, neuron in snn.neurons.items():
        alive = histograms[name].maximum > 0
        torch.testing.assert_close(neuron.threshold.detach()[alive], histograms[name].maximum[alive] / 2)


# the guide


def sections() -> dict[str, str]:
    """The five walk-throughs of the guide: heading -> text."""
    page = (ROOT / "docs" / "howto" / "extend.md").read_text(encoding="utf-8")
    parts = re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    return {title: text for title, text in parts if "**For the library itself:**" in text}


def test_five_things_are_walked_through() -> None:
    expected = ["An operator", "A noise column", "A threshold rule", "An export target", "A data kind"]
    assert list(sections()) == expected


@pytest.mark.parametrize("title", sorted(sections()))
def test_the_library_takes_at_most_four_files_that_are_there(title: str) -> None:
    outside, _, inside = sections()[title].partition("**For the library itself:**")
    assert outside.count("```python") >= 1
    files = re.findall(r"`([\w/]+\.(?:py|md))`", inside)
    assert 2 <= len(files) <= 4
    assert len(set(files)) == len(files)
    assert [name for name in files if not (ROOT / name).is_file()] == []
