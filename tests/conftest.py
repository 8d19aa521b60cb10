"""Shared fixtures: one thread a worker, fixed seeds, and data that may be absent."""

import gc
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from speedysnn.analysis.report import style

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("suite")
torch.set_num_threads(1)
style.STYLE["savefig.dpi"] = 30  # what figures show does not depend on it, and drawing them takes longest


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


@pytest.fixture(scope="session")
def cifar() -> Path:
    """The folder with the CIFAR-10 subset and the ResNet-20 checkpoint; skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "cifar10-subset.npz").is_file():
        pytest.skip("no CIFAR-10 subset beside the project")
    return folder
