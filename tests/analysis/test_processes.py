"""Sums of several processes give the report of one."""

import os
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from speedysnn import analysis
from speedysnn.analysis import NoiseSums, measure_noise
from speedysnn.analysis.noise.passes import gathered, require_alike
from speedysnn.errors import InputError
from tests.material.networks import Small


def work(rank: int, folder: Path, snn, x: torch.Tensor, y: torch.Tensor) -> None:
    """One of two processes: its shard's sums, gathered, and the report of them."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    cut = 23
    shard = (x[:cut], y[:cut]) if rank == 0 else (x[cut:], y[cut:])
    for limit in (1024, 0.2):
        report = NoiseSums(snn, detail="full", memory_mib=limit).add(shard).gather().report()
        report.layers.to_pickle(f"{folder}/layers{limit}-{rank}.pkl")
        torch.save(numbers(report), f"{folder}/outputs{limit}-{rank}.pt")
    require_alike(["a", "b"])
    assert [state["x"].tolist() for state in gathered({"x": torch.arange(3) + rank})] == [[0, 1, 2], [1, 2, 3]]
    assert list(gathered({})) == [{}, {}]
    time.sleep(0.2)  # torch 2.6 waits forever for gloo's threads if they still hold Python objects
    dist.destroy_process_group()


def same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a, b, rtol=1e-6, atol=1e-9)


def numbers(report: analysis.NoiseReport) -> dict[str, float]:
    return {name: value for name, value in report.outputs.items() if isinstance(value, int | float)}


@pytest.mark.parametrize("cut", [1, 40, 99])
def test_sums_of_parts_are_those_of_the_whole(build, digits, cut) -> None:
    snn, (x, y) = build("max"), digits
    whole = measure_noise(snn, (x, y), detail="full", try_settings=0)  # sums of parts keep no images to try anything on
    first = NoiseSums(snn, detail="full").add((x[:cut], y[:cut]))
    first.add_state(NoiseSums(snn, detail="full").add((x[cut:], y[cut:])).state())
    report = first.report()
    same(report.layers, whole.layers)
    assert numbers(report) == pytest.approx(numbers(whole), rel=1e-6)
    assert report.verdict == whole.verdict
    for name, detail in whole.details.items():
        assert report.details[name].rounding.sum() == pytest.approx(detail.rounding.sum(), rel=1e-3)
        assert report.details[name].spikes_per_step == detail.spikes_per_step


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_give_the_result_of_one(build, digits, tmp_path) -> None:
    snn, (x, y) = build("avg"), (digits[0][:60], digits[1][:60])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        start_processes(work, (tmp_path, snn, x, y), nprocs=2, start_method="fork")  # raises what a process raises
    for limit in (1024, 0.2):
        whole = measure_noise(snn, (x, y), detail="full", memory_mib=limit)
        assert bool(whole.memory.sampled) == (limit < 1)
        for rank in range(2):
            same(pd.read_pickle(tmp_path / f"layers{limit}-{rank}.pkl"), whole.layers)
            outputs = torch.load(tmp_path / f"outputs{limit}-{rank}.pt", weights_only=True)
            assert outputs == pytest.approx(numbers(whole), rel=1e-6)


def test_what_does_not_fit_is_refused(build, digits) -> None:
    sums = NoiseSums(build("max")).add(digits[0][:8])
    with pytest.raises(InputError, match=r"torch\.distributed"):
        sums.gather()
    x = torch.rand(8, 3, 16, 16)
    other = NoiseSums(analysis_network(x)).add(x)
    with pytest.raises(InputError, match="same network"):
        sums.add_state(other.state())
    assert analysis.NoiseSums is NoiseSums


def analysis_network(x: torch.Tensor):
    from speedysnn.convert import to_spiking

    return to_spiking(Small().eval(), x, timesteps=2)
