"""Sums of several processes give the report of one."""

import subprocess
import sys
import textwrap

import pandas as pd
import pytest
import torch

from speedysnn import analysis
from speedysnn.analysis import NoiseSums, measure_noise
from speedysnn.errors import InputError
from tests.material.networks import Small

WORK = """
    import sys
    import torch, torch.distributed as dist
    from speedysnn import analysis, load

    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    snn, x, y = load(f"{folder}/net.snn"), *torch.load(f"{folder}/data.pt", weights_only=True)
    cut = 23
    shard = (x[:cut], y[:cut]) if rank == 0 else (x[cut:], y[cut:])
    for limit in (1024, 0.2):
        report = analysis.NoiseSums(snn, detail="full", memory_mib=limit).add(shard).gather().report()
        report.layers.to_pickle(f"{folder}/layers{limit}-{rank}.pkl")
        numbers = {k: v for k, v in report.outputs.items() if isinstance(v, (int, float))}
        torch.save(numbers, f"{folder}/outputs{limit}-{rank}.pt")
    dist.destroy_process_group()
"""


def same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a, b, rtol=1e-6, atol=1e-9)


def numbers(report: analysis.NoiseReport) -> dict[str, float]:
    return {name: value for name, value in report.outputs.items() if isinstance(value, int | float)}


@pytest.mark.parametrize("cut", [1, 40, 99])
def test_sums_of_parts_are_those_of_the_whole(build, digits, cut) -> None:
    snn, (x, y) = build("max"), digits
    whole = measure_noise(snn, (x, y), detail="full")
    first = NoiseSums(snn, detail="full").add((x[:cut], y[:cut]))
    first.add_state(NoiseSums(snn, detail="full").add((x[cut:], y[cut:])).state())
    report = first.report()
    same(report.layers, whole.layers)
    assert numbers(report) == pytest.approx(numbers(whole), rel=1e-6)
    assert report.verdict == whole.verdict
    for name, detail in whole.details.items():
        assert report.details[name].rounding.sum() == pytest.approx(detail.rounding.sum(), rel=1e-3)
        assert report.details[name].spikes_per_step == detail.spikes_per_step


def test_two_processes_give_the_result_of_one(build, digits, tmp_path) -> None:
    import speedysnn

    snn, (x, y) = build("avg"), (digits[0][:60], digits[1][:60])
    speedysnn.save(snn, tmp_path / "net.snn")
    torch.save((x, y), tmp_path / "data.pt")
    script = tmp_path / "work.py"
    script.write_text(textwrap.dedent(WORK))
    runs = [subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)]) for rank in range(2)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
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
