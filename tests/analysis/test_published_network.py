"""The split of the error on a published ResNet-20, whatever the batch size; skipped where its data is absent."""

from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from speedysnn import analysis, convert, data
from speedysnn.sources import load_model

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
IMAGES, WEIGHTS = SHARED / "cifar10-subset.npz", SHARED / "resnet20-12fca82f.th"

pytestmark = pytest.mark.skipif(not (IMAGES.is_file() and WEIGHTS.is_file()), reason="the published data is not here")


@pytest.mark.parametrize("delay", [0, 1])
def test_the_split_adds_up_for_every_batch_size(delay: int) -> None:
    network = f"{ROOT / 'reports' / 'cifar10_resnet20' / 'resnet20.py'}:make"
    source = load_model(network, checkpoint=WEIGHTS).model
    train = data.load(f"npz:{IMAGES}", "train", normalize="imagenet", limit=32)
    test = data.load(f"npz:{IMAGES}", "test", normalize="imagenet", limit=10)
    snn = convert.to_spiking(source, train, timesteps=4, delay=delay)
    frames = [analysis.measure_noise(snn, list(DataLoader(test, batch_size=size))).layers for size in (1, 4, 64)]
    for frame in frames:
        assert frame.residual.max() < 1e-6
        shares = frame[[f"share_{part}" for part in ("clip", "round", "propagated", "temporal")]]
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    for other in frames[1:]:
        numbers = other.select_dtypes("number").columns
        np.testing.assert_allclose(other[numbers], frames[0][numbers], rtol=1e-6, atol=1e-9, equal_nan=True)
