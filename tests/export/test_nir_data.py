"""Spike trains as NIRData: what is written is read again, by this package and by nir itself."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speedysnn.errors import DataError, InputError
from speedysnn.export import load_nir_data, save_nir_data
from speedysnn.spike_trains import SpikeTrain

nir = pytest.importorskip("nir")
pytestmark = pytest.mark.skipif(not hasattr(nir, "write_data"), reason="nir without NIRData")


def trains(high: int) -> dict[str, SpikeTrain]:
    generator = torch.Generator().manual_seed(0)
    return {"block.relu": SpikeTrain.of(torch.randint(0, high, (4, 3, 2, 5, 5), generator=generator)),
            "fc": SpikeTrain.of(torch.randint(0, high, (4, 3, 7), generator=generator))}  # fmt: skip


@pytest.mark.parametrize("high", [2, 5])
def test_what_is_written_is_read(tmp_path, high) -> None:
    given = trains(high)
    again = load_nir_data(save_nir_data(given, tmp_path / "trains.h5", dt=0.001))
    assert list(again) == ["block_relu", "fc"]
    for name, train in given.items():
        np.testing.assert_array_equal(again[name.replace(".", "_")].counts, train.counts.flatten(2))
    grid = nir.read_data(str(tmp_path / "trains.h5")).nodes["fc"].observables["spikes"]
    assert (grid.n_samples, grid.n_time_steps, grid.n_neurons, grid.dt) == (3, 4, 7, 0.001)
    assert (grid.data.dtype == bool) is (high == 2)
    np.testing.assert_array_equal(grid.data[1, 2], given["fc"].counts[2, 1])


def test_errors(tmp_path, monkeypatch) -> None:
    (tmp_path / "other.h5").write_bytes(b"none")
    for name in ("other.h5", "missing.h5"):
        with pytest.raises(DataError, match=name):
            load_nir_data(tmp_path / name)
    events = nir.EventData(idx=np.array([[0]]), time=np.array([[0.5]]), n_neurons=1, t_max=2.0)
    nir.write_data(str(tmp_path / "events.h5"), nir.NIRGraphData({"a": nir.NIRNodeData({"spikes": events})}))
    with pytest.raises(DataError, match="to_time_gridded"):
        load_nir_data(tmp_path / "events.h5")
    with pytest.raises(DataError, match="cannot be written"):
        save_nir_data(trains(2), tmp_path / "no" / "trains.h5")
    monkeypatch.setitem(sys.modules, "nir", SimpleNamespace())
    with pytest.raises(InputError, match="no NIRData"):
        save_nir_data(trains(2), tmp_path / "trains.h5")
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(InputError, match=r"speedysnn\[nir\]"):
        load_nir_data(tmp_path / "trains.h5")
