"""The report of a sensitivity measurement: what it leaves as it is, its files, figures, words and refusals."""

import json
import math

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from speedysnn import analysis, convert
from speedysnn.analysis import measure_sensitivity, read_mixed
from speedysnn.analysis.report import neurons
from speedysnn.analysis.sensitivity.result import MODES
from speedysnn.data import load
from speedysnn.errors import DataError, InputError


def test_batches_change_nothing(build, digits):
    snn, (x, y) = build("max", 4), (digits[0][:70], digits[1][:70])
    whole = measure_sensitivity(snn, (x, y), modes=MODES).to_dict()
    for batch in (1, 7, 64):
        split = list(zip(x.split(batch), y.split(batch), strict=True))
        assert measure_sensitivity(snn, split, modes=MODES).to_dict() == whole


def test_limit_takes_the_first_images(build, digits):
    snn, (x, y) = build("avg", 4), digits
    found = measure_sensitivity(snn, (x, y), limit=30, gains=False)
    assert found.outputs["images"] == 30
    assert found.to_dict() == measure_sensitivity(snn, (x[:30], y[:30]), gains=False).to_dict()


def state(snn):
    return {
        "timesteps": snn.timesteps,
        "reading": snn.present_reading,
        "neurons": [(id(n), n.timesteps, n.delay, n.spikes, n.reading, n.offset) for n in snn.neurons.values()],
        "pointers": {name: (v.data_ptr(), v._version, v.double().sum().item()) for name, v in snn.state_dict().items()},
        "grad": [(p.requires_grad, p.grad is None) for p in snn.parameters()],
        "modes": [m.training for m in snn.modules()],
        "provenance": json.dumps(snn.provenance, sort_keys=True),
        "enabled": torch.is_grad_enabled(),
    }


def test_the_network_is_left_as_it_is(build, digits, monkeypatch):
    snn = build("max", 4, 1)
    snn.train()
    before = state(snn)
    measure_sensitivity(snn, digits, modes=MODES)
    assert state(snn) == before

    def broken():
        yield digits[0][:20]
        raise OSError("gone")

    with pytest.raises(DataError, match="gone"):
        measure_sensitivity(snn, broken())
    assert state(snn) == before
    for place in ("changes.channel_sums", "branches.flat", "MixedRun.outputs"):
        with monkeypatch.context() as patch:
            patch.setattr(f"speedysnn.analysis.sensitivity.{place}", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                measure_sensitivity(snn, digits)
        assert state(snn) == before


def test_labels_are_optional_and_figures_are_json(build, digits):
    snn = build("avg", 4)
    found = measure_sensitivity(snn, digits[0][:30])
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["schema"] == "speedysnn-sensitivity/1"
    assert document["temporal_gap_db"] == found.temporal_gap_db
    assert {row["accuracy"] for row in document["table"]} == {None}
    assert all(0 <= row["agreement"] <= 1 for row in document["table"])
    assert set(document["modes"]) == set(found.table["mode"])
    first = document["gains"][0]
    assert first["call"] == f"sensitivity.apply(snn, {first['layer']!r}, {first['change']!r})"
    assert set(first["settings"]) == {"theta", "amplitude", "spikes", "delay", "offset"}


def test_save_writes_whole_files(build, digits, tmp_path):
    found = measure_sensitivity(build("avg", 4), digits[0][:20], modes=MODES)
    folder = found.save(tmp_path / "out")
    expected = ["gains.csv", "gains.png", "sensitivity.csv", "sensitivity.json", "sensitivity.png",
                "sensitivity_layers.png"]  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == expected
    assert json.loads((folder / "sensitivity.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    found.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="a file is there"):
        found.save(tmp_path / "file")


def test_figures_draw_what_the_tables_hold(build, digits):
    found = measure_sensitivity(build("max", 4), digits[0][:20])
    drawn = neurons.all_figures(found)
    assert set(drawn) == {"sensitivity", "gains"}
    axes = drawn["sensitivity"].axes[0]
    lines = {line.get_label().partition(":")[0]: line for line in axes.lines}
    for mode in ("isolated", "prefix"):
        expected = found.table.loc[found.table["mode"] == mode, "sqnr_db"].tolist()
        assert list(lines[mode].get_ydata()) == expected
    assert list(lines["quantized reading of all layers (twin)"].get_ydata()) == [found.outputs["twin_sqnr_db"]] * 2
    assert f"{found.temporal_gap_db:.1f} dB" in axes.get_title("left")
    bars = sorted((bar.get_y(), bar.get_width()) for bar in drawn["gains"].axes[0].patches)
    assert [width for _, width in bars] == found.gains["gain_db"].head(len(bars)).tolist()


class Deep(nn.Module):
    """Twenty layers under long names."""

    def __init__(self):
        super().__init__()
        names = [f"a_stage_with_a_long_name_{i}" for i in range(20)]
        self.stages = nn.ModuleDict({name: nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for name in names})
        self.head = nn.Linear(8, 3)
        for stage in self.stages.values():
            nn.init.uniform_(stage[0].weight, 0.05, 0.2)

    def forward(self, x):
        for stage in self.stages.values():
            x = stage(x)
        return self.head(x)


def test_twenty_layers_overlap_nowhere():
    x = torch.rand(12, 8)
    snn = convert.to_spiking(Deep().eval(), x, timesteps=2)
    assert len(snn.neurons) == 20
    for name, figure in neurons.all_figures(measure_sensitivity(snn, x, modes=MODES)).items():
        FigureCanvasAgg(figure).draw()
        axes, legend = figure.axes[0], figure.legends[0].get_window_extent()
        ticks = axes.get_yticklabels() if name == "gains" else axes.get_xticklabels()
        boxes = [label.get_window_extent() for label in ticks]
        assert len(boxes) == 20
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]), name
        page = figure.bbox
        parts = [*boxes, legend, axes.xaxis.label.get_window_extent(), axes.title.get_window_extent()]
        assert all(page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 for box in parts), name
        assert not any(legend.overlaps(box) for box in [*boxes, axes.bbox]), name


def test_the_verdict_puts_timing_first(build):
    data = load("digits", "train", limit=200)
    found = measure_sensitivity(build("max", 4, 0), data)
    gap, timing, train, spared, alone, best, everywhere = found.verdict
    assert f"a temporal gap of {found.temporal_gap_db:.1f} dB" in gap
    assert "look-ahead 0, latency 4 steps" in gap
    assert timing.startswith("Spike timing comes before any layer")
    assert "--stage spiking" in train
    table = found.table.set_index(["mode", "layer"])["sqnr_db"]
    assert f"Left analog alone, {table['leave_one_out'].idxmax()} would give" in spared
    assert f"Spiking alone, {table['isolated'].idxmin()} costs most" in alone
    assert found.gains["call"].iloc[0] in best
    assert "In the shell: speedysnn " in everywhere
    assert "chance" not in best
    calm = measure_sensitivity(build("max", 4, 1), data, modes=(), gains=("look-ahead",)).verdict
    assert calm[1:] == ("No change of a single layer that was measured would gain 0.1 dB at the output.",)


def test_a_network_without_noise_is_infinitely_good():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    nn.init.constant_(net[1].weight, 0.25)
    nn.init.zeros_(net[1].bias)
    x = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    snn = convert.to_spiking(net, x, timesteps=2, threshold="max")
    found = measure_sensitivity(snn, x)
    assert found.outputs["sqnr_db"] == math.inf
    assert found.temporal_gap_db == 0
    assert found.gains.set_index("change")["gain_db"]["bit"] == 0
    assert "undefined" not in " ".join(found.verdict)
    assert found.to_dict()["table"][0]["sqnr_db"] == "inf"
    assert set(neurons.all_figures(found)) == {"sensitivity", "gains"}


def test_what_is_refused(build, digits):
    snn, x = build("avg", 4), digits[0][:10]
    with pytest.raises(InputError, match="modes: expected some of local, .* got 'prefx'"):
        measure_sensitivity(snn, x, modes=("prefx",))
    with pytest.raises(InputError, match="gains: expected some of bit, .* got 'bits'"):
        measure_sensitivity(snn, x, gains=("bits",))
    with pytest.raises(InputError, match="got neither"):
        measure_sensitivity(snn, x, modes=(), gains=False)
    with pytest.raises(InputError, match="T = 4 steps in front"):
        measure_sensitivity(snn, torch.rand(3, 10, 1, 8, 8))
    with pytest.raises(DataError, match="does not run on a batch"):
        measure_sensitivity(snn, torch.rand(10, 3, 8, 8))
    with pytest.raises(InputError, match="no neuron layer is called 'relu9'"):
        read_mixed(snn, {"relu9": "analog"}, x)
    with pytest.raises(InputError, match="got 'spikes'"):
        read_mixed(snn, {"relu1": "spikes"}, x)
    found = measure_sensitivity(snn, x, gains=("bit",))
    for arguments in (("relu1", "bias"), ("relu9", "bit"), ("relu9",)):
        with pytest.raises(InputError, match="apply:"):
            found.apply(snn, *arguments)
    with pytest.raises(InputError, match="measure with gains=True"):
        measure_sensitivity(snn, x, gains=False).apply(snn)
    other = convert.to_spiking(nn.Sequential(nn.Flatten(), nn.ReLU()), x, timesteps=2)
    with pytest.raises(InputError, match="has no neuron layer 'relu"):
        found.apply(other)
    snn.neurons["relu1"].set_threshold(1.0)
    with pytest.raises(InputError, match="relu1.* has 1 thresholds, the one that was measured"):
        found.apply(snn, "relu1", "bit")


def test_progress_goes_to_stderr(build, digits, capfd):
    measure_sensitivity(build("avg", 4), digits[0][:10], gains=False, progress=True)
    assert capfd.readouterr().out == ""


def test_it_is_part_of_the_room():
    assert {"measure_sensitivity", "Sensitivity", "read_mixed"} <= set(vars(analysis))
