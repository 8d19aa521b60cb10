"""Shared fixtures: one thread a worker, fixed seeds, data that may be absent, and the correction of a conversion."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from speedysnn.analysis.report import style
from speedysnn.convert import to_spiking

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("suite")
torch.set_num_threads(1)
style.STYLE["savefig.dpi"] = 30  # what figures show does not depend on it, and drawing them takes longest

UNCORRECTED = {  # folders and modules about something else, whose expected figures are those of theta alone
    "analysis", "execution", "finetune", "kernels", "neurons", "sources", "test_amplitude", "test_changed_layers",
    "test_conversion", "test_encoders", "test_hybrid", "test_modules", "test_network", "test_numerics",
    "test_operators", "test_plugin", "test_thresholds", "test_tracing", "test_trains",
}  # fmt: skip


def pytest_collectstart() -> None:
    """Seed before each module is imported, so that what it draws then does not follow from the modules before it."""
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Keep a million objects of imports and collected tests from every later search for garbage: they stay anyway."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _uncorrected(request: pytest.FixtureRequest) -> Iterator[None]:
    """Convert without a correction by default where `UNCORRECTED` says so; everywhere else the default is a user's."""
    defaults = to_spiking.__wrapped__.__kwdefaults__  # type: ignore[attr-defined]
    own = defaults["correct"]
    if UNCORRECTED & {request.path.stem, request.path.parent.name}:
        defaults["correct"] = "none"
    yield
    defaults["correct"] = own


@pytest.fixture(scope="session")
def cifar() -> Path:
    """The folder with the CIFAR-10 subset and the ResNet-20 checkpoint; skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "cifar10-subset.npz").is_file():
        pytest.skip("no CIFAR-10 subset beside the project")
    return folder
