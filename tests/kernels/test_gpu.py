"""What runs on a GPU gives what the CPU gives; skipped where there is none."""

import copy
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import speedysnn
from speedysnn import analysis, convert, data, finetune
from speedysnn.analysis.noise import triton_backend
from speedysnn.assets.digits import avg_net, load_digits_net
from speedysnn.bench import cases, scaling
from speedysnn.bench.cases import inference
from speedysnn.bench.scaling import make
from speedysnn.calibration.histogram import HistogramCollector
from speedysnn.cli.main import run
from speedysnn.convert.read import full_precision
from speedysnn.errors import DataError
from speedysnn.export import to_nir, to_pt2
from speedysnn.finetune import Config, Stage, TrainConfig
from speedysnn.kernels import Rule, histogram, multistep
from speedysnn.kernels.quantizer import quantize
from speedysnn.network import SpikingNetwork

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _exact() -> Any:
    """Float32 products to the last bit, so that the GPU's figures can be compared with the CPU's."""
    with full_precision(GPU):
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[SpikingNetwork, TensorDataset]:
    """A converted network on the GPU, and 400 images."""
    train = data.load("digits", "train")
    images = TensorDataset(torch.stack([train[i][0] for i in range(400)]), torch.tensor([train[i][1] for i in range(400)]))
    return convert.to_spiking(load_digits_net("avg").to(GPU), images.tensors[0], timesteps=4), images


MATERIAL = {
    "triton_check": ("all", "cuda"), "triton_counting_check": ("cuda",), "triton_quantizer_check": ("cuda",),
    "triton_sums_check": ("cuda",),
}  # fmt: skip


@pytest.mark.parametrize("name", MATERIAL)
def test_triton_gives_what_plain_torch_does_on_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "material"))
    importlib.import_module(name).main(*MATERIAL[name])


def test_counts_and_sums_take_what_lies_there() -> None:
    assert histogram.supports(torch.rand(2, 3, device=GPU), 3)
    assert triton_backend.supports(torch.rand(2, 3, device=GPU))
    layer, bad = HistogramCollector(), torch.rand(32, 1, 8, 8, device=GPU)
    bad[3, 0, 1, 1] = float("nan")
    layer.add(bad, 1)
    with pytest.raises(DataError, match="activations hold NaN"):
        layer.histogram()


@pytest.mark.parametrize("delay", [0, 1, 8])
def test_a_large_layer_to_the_last_bit(delay: int) -> None:
    drive = torch.randn(8 * 4, 64, 56, 56) + 0.2
    theta, half = torch.rand(1, 64, 1, 1) + 0.3, torch.tensor(0.5)
    ours = multistep(drive.to(GPU), theta.to(GPU), half.to(GPU), Rule(8, delay), backend="cuda")
    assert torch.equal(ours.cpu(), multistep(drive, theta, half, Rule(8, delay), backend="reference"))


def test_the_quantizer_and_its_gradients() -> None:
    z, theta, start = torch.randn(16, 8, 5, 5), torch.rand(1, 8, 1, 1) + 0.3, torch.full((1, 8, 1, 1), 0.5)
    found = []
    for place in ("cpu", "cuda"):
        leaves = [x.to(place, copy=True).requires_grad_() for x in (z, theta, start)]
        out = quantize(*leaves, 4)
        grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
        found.append([x.detach().cpu() for x in (out, *grads)])
    assert torch.equal(found[0][0], found[1][0])
    for ours, theirs in zip(*(part[1:] for part in found), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reading", ["analog", "quantized", "spiking"])
@pytest.mark.parametrize("delay", [0, 1, "full"])
def test_a_network_answers_as_on_the_cpu(reading: Any, delay: Any) -> None:
    snn, x = make("resnet20", 4, 32)
    snn.set_delay(delay)
    there = copy.deepcopy(snn).to(GPU)
    with torch.no_grad(), snn.reading(reading), there.reading(reading):
        here, got = snn(x), there(x.to(GPU)).cpu()
    agree = float((here.argmax(1) == got.argmax(1)).float().mean())
    close = float((here - got).norm() / here.norm())
    assert agree >= 0.9  # a membrane that meets its threshold to the last bit may fire in one sum and not in the other
    assert close < (1e-5 if reading == "analog" else 0.1)


def test_conversion_on_the_gpu_is_that_of_the_cpu(digits: tuple[SpikingNetwork, TensorDataset]) -> None:
    snn, images = digits
    assert next(snn.parameters()).device.type == "cuda"
    here = convert.to_spiking(load_digits_net("avg"), images.tensors[0], timesteps=4)
    for name, neuron in here.neurons.items():
        assert torch.allclose(snn.neurons[name].threshold.cpu(), neuron.threshold, rtol=0.02)
    corrected = convert.to_spiking(
        load_digits_net("avg").to(GPU), images.tensors[0][:64], timesteps=4, correct="bias+potential"
    )
    with torch.no_grad():
        assert bool(corrected(images.tensors[0][:8].to(GPU)).isfinite().all())


def test_conversion_is_proven_in_full_precision_whatever_the_setting(digits: Any) -> None:
    torch.backends.cudnn.allow_tf32 = True
    convert.to_spiking(load_digits_net("max").to(GPU), digits[1].tensors[0][:64], timesteps=4)
    assert torch.backends.cudnn.allow_tf32


def test_measures_are_those_of_the_cpu(digits: tuple[SpikingNetwork, TensorDataset]) -> None:
    snn, images = digits
    here = copy.deepcopy(snn).cpu()
    ours, theirs = (analysis.evaluate(net, images) for net in (snn, here))
    assert ours.accuracy == pytest.approx(theirs.accuracy, abs=0.01)
    assert ours.spikes_per_neuron == pytest.approx(theirs.spikes_per_neuron, rel=1e-3)
    noise = [analysis.measure_noise(net, images, detail="full").layers for net in (snn, here)]
    assert list(noise[0].layer) == list(noise[1].layer)
    for column in ("sqnr_db", "gain", "rate", "share_clip", "share_round", "share_propagated", "share_temporal"):
        assert noise[0][column].to_numpy() == pytest.approx(noise[1][column].to_numpy(), rel=0.02, abs=0.02), column
    steps = [analysis.sweep(net, images, [2, 4]) for net in (snn, here)]
    assert steps[0].accuracy.to_numpy() == pytest.approx(steps[1].accuracy.to_numpy(), abs=0.01)
    analysis.measure_sensitivity(snn, images, limit=64)
    analysis.measure_cost(snn, images)
    analysis.delayed_readout(snn, images, (0, 1))
    analysis.early_exit(snn, images, (0.9,))
    assert analysis.evaluate(snn, images, precision="bfloat16").accuracy > theirs.accuracy - 0.1


@pytest.mark.parametrize("stages", ["quantized:2", "spiking:1", "blockwise:1", "quantized:1,T=8 spiking:1,spikes=ternary"])
def test_tuning_runs_there_and_resumes_to_the_same_bits(
    stages: str, digits: tuple[SpikingNetwork, TensorDataset], tmp_path: Path
) -> None:
    snn, images = digits
    plan = tuple(map(Stage.parse, stages.split()))
    config = Config(stages=plan, budget=0.6, augment="flip-crop", mixup=0.2, average=0.9, batch_size=64)
    one, two = copy.deepcopy(snn), copy.deepcopy(snn)
    result = finetune.fit(one, images, config=config)
    assert next(one.parameters()).device.type == "cuda"
    assert result.history.held_out_loss.notna().all()

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune.fit(two, images, config=config, folder=tmp_path, on_epoch=stop)
    again = copy.deepcopy(snn)
    finetune.fit(again, images, config=config, folder=tmp_path, resume=True)
    for (name, value), other in zip(one.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.allclose(value, other, rtol=1e-4, atol=1e-5), name  # sums of a GPU's threads come in any order
    speedysnn.save(one, tmp_path / "one.snn")
    back = speedysnn.load(tmp_path / "one.snn")
    for value, other in zip(one.state_dict().values(), back.state_dict().values(), strict=True):
        assert torch.equal(value.cpu(), other)


def test_tuning_in_bfloat16(digits: tuple[SpikingNetwork, TensorDataset]) -> None:
    snn = copy.deepcopy(digits[0])
    config = Config(stages=(Stage.parse("quantized:1"), Stage.parse("spiking:1")), precision="bfloat16", layer_match_weight=0.0)
    finetune.fit(snn, digits[1], config=config)
    assert all(bool(value.isfinite().all()) for value in snn.state_dict().values())


@pytest.mark.parametrize("taught", [False, True])
def test_training_from_scratch(taught: bool, digits: tuple[SpikingNetwork, TensorDataset]) -> None:
    config = TrainConfig(stages=(Stage.parse("quantized:2"), Stage.parse("spiking:1")), batch_size=64, budget=0.6,
                         objective="kl" if taught else "labels", average=0.9)  # fmt: skip
    teacher = load_digits_net("avg").to(GPU) if taught else None
    snn, result = finetune.train(avg_net().to(GPU), digits[1], 4, config=config, teacher=teacher)
    assert next(snn.parameters()).device.type == "cuda"
    assert result.history.held_out_loss.iloc[-1] < result.history.held_out_loss.iloc[0]


def test_torch_compile_gives_the_same_answers() -> None:
    snn, x = make("resnet20", 4, 8, device=GPU)
    with torch.no_grad():
        assert torch.allclose(torch.compile(snn)(x), snn(x), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::speedysnn.export.nir.NIRWarning")
def test_exports_read_a_network_that_lies_there(digits: tuple[SpikingNetwork, TensorDataset], tmp_path: Path) -> None:
    to_pt2(digits[0], tmp_path / "net.pt2")
    pytest.importorskip("nir")
    to_nir(digits[0], tmp_path / "net.nir")


def test_benchmarks_run_there() -> None:
    snn, x = make("digits", 2, 16, device=GPU)
    case = cases.training(snn, x, 1)
    assert all(row["peak_bytes"] > 0 for row in case.rows)
    assert any("bfloat16" in row["name"] for row in inference(snn, x, 1).rows)
    assert cases.neuron(1000, 4, 1, GPU).rows
    assert scaling.scaling(snn, x, 1, (8, 16)).rows
    assert cases.measuring(snn, x, 1).rows


def test_commands_compute_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, tuned, own = (str(tmp_path / name) for name in ("net.snn", "tuned.snn", "own.snn"))
    there = ["--device", "cuda"]
    model = "speedysnn.assets.digits:load_digits_net"
    runs = [
        ["convert", model, "-d", "digits", "-o", net],
        ["finetune", net, "-d", "digits", "--limit", "200", "--stage", "quantized:1", "--stage", "spiking:1", "-o", tuned],
        ["train", model, "-d", "digits", "--limit", "200", "--epochs", "1", "-o", own, "--label-weight", "0.5"],
        ["evaluate", tuned, "-d", "digits", "--source", net, "-T", "2,4", "--json", str(tmp_path / "table.json")],
        ["analyze", tuned, "-d", "digits", "--source", net, "-o", str(tmp_path / "report"), "--limit", "100"],
        ["bench", "inference", "--network", "digits", "-T", "2", "--batch", "8", "--rounds", "1"],
    ]
    for words in runs:
        assert run(words + there) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert all(row["accuracy"] > 0.8 for row in rows)


def _sum(x: Tensor) -> float:
    return float(x.double().sum())


def test_a_model_on_the_gpu_stays_as_it_is(digits: tuple[SpikingNetwork, TensorDataset]) -> None:
    model: nn.Module = load_digits_net("avg").to(GPU)
    before = {name: _sum(value) for name, value in model.state_dict().items()}
    convert.to_spiking(model, digits[1].tensors[0][:32], timesteps=2)
    assert before == {name: _sum(value) for name, value in model.state_dict().items()}
    assert "triton" in sys.modules
