"""Every classification network of torchvision; small ones on every run, all of them with `-m nightly`."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torchvision")
STUDY = Path(__file__).resolve().parents[2] / "reports" / "coverage" / "study.py"
SMALL = ("squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "resnet18")
HYBRID = ("regnet_y", "mobilenet_v3", "efficientnet", "convnext", "vit", "swin", "maxvit")


def _study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_study", STUDY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


study = _study()
NAMES = [pytest.param(name, marks=[] if name in SMALL else [pytest.mark.nightly]) for name in study.names()]


@pytest.mark.parametrize("name", NAMES)
def test_torchvision_network(name: str) -> None:
    row = study.measure(name, images=2)
    assert row["treatment"] == ("hybrid" if name.startswith(HYBRID) else "spiking")
    assert row["analog_error"] < 1e-5
    assert row["full_error"] < 1e-4
    assert row["quantized_512"] < 0.05


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "googlenet"])
def test_spiking_at_256_steps(name: str) -> None:
    assert study.spiking(name, images=2)["T256"] < 0.05


@pytest.mark.nightly
@pytest.mark.parametrize("name", study.MEMORY)
def test_conversion_adds_at_most_one_and_a_half_times_the_weights(name: str) -> None:
    assert study.memory(name)["added_over_weights"] < 1.5
