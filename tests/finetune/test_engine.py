"""The engine: two processes give one process's result, a killed run resumes to the same bits, logs, early stopping."""

import csv
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from speedysnn import finetune
from speedysnn.errors import InputError, TrainingError
from speedysnn.finetune.config import MONITORS
from speedysnn.finetune.run import score
from tests.finetune.test_fit import _config, _data, _network
from tests.finetune.test_train import _config as _train_config
from tests.finetune.test_train import _data as _train_data
from tests.finetune.test_train import _net
from tests.material import tune_job

JOB = Path(__file__).parents[1] / "material" / "tune_job.py"
# Processes are forked from a clean one: where gradients were taken on several threads, torch refuses them after a fork.
FORK = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
if hasattr(os, "fork"):
    FORK.set_forkserver_preload(["tests.finetune.test_engine"])
FORKS = pytest.mark.skipif(
    not hasattr(os, "fork") or torch.cuda.is_available(), reason="needs fork, which gradients refuse beside a GPU"
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(JOB.parents[2])}


def _run(*arguments: str, launch: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *launch, str(JOB), *arguments], env=ENVIRONMENT, capture_output=True,
                          text=True, timeout=300, check=False)  # fmt: skip


def _one_of_two(out: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # what the forking process had set up for itself
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or accelerate warns that it sets it
    tune_job.main([out])


@FORKS
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    """Batches of 31 images over two processes: parts of unlike size, in every kind of stage."""
    tune_job.main([str(tmp_path / "one.safetensors")])
    process, said = _started(_two, (str(tmp_path / "two.safetensors"),))
    with said:
        spoken = said.read()
    process.join(120)
    assert process.exitcode == 0
    _same(tmp_path)
    assert spoken.count("spiking 2") == 1, "every process spoke"


def _two(out: str, stdout: Connection) -> None:
    os.dup2(stdout.fileno(), 1)
    stdout.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        accelerate.debug_launcher(_one_of_two, (out,), num_processes=2)


def _started(target: Callable[..., None], args: tuple[Any, ...]) -> tuple[Any, TextIO]:
    """A process that was begun, and what it says."""
    reader, writer = FORK.Pipe(duplex=False)
    process = FORK.Process(target=target, args=(*args, writer))
    process.start()
    writer.close()
    said = os.fdopen(os.dup(reader.fileno()))
    reader.close()
    return process, said


def _same(folder: Path) -> None:
    one, both = load_file(folder / "one.safetensors"), load_file(folder / "two.safetensors")
    for name, value in one.items():
        torch.testing.assert_close(both[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.nightly
def test_two_launched_processes_give_the_result_of_one(tmp_path: Path) -> None:
    """As above, started by `accelerate launch`."""
    two = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
           "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")  # fmt: skip
    single, shared = _run(str(tmp_path / "one.safetensors")), _run(str(tmp_path / "two.safetensors"), launch=two)
    assert single.returncode == 0, single.stderr
    assert shared.returncode == 0, shared.stderr
    _same(tmp_path)
    assert shared.stdout.count("spiking 2") == 1, "every process spoke"


def _job(words: list[str], stdout: Connection) -> None:
    with os.fdopen(os.dup(stdout.fileno()), "w") as sys.stdout:
        stdout.close()
        tune_job.main(words)


@FORKS
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer Pythons warn of forks beside threads
@pytest.mark.parametrize(
    ("seed", "most"), [(0, 1), *(pytest.param(seed, 5, marks=pytest.mark.nightly) for seed in range(1, 11))]
)
def test_a_killed_run_resumes_to_the_same_bits(seed: int, most: int, tmp_path: Path) -> None:
    """SIGKILL at random moments until the run is through."""
    tune_job.main([str(tmp_path / "whole.safetensors")])
    out, folder, chance, kills = tmp_path / "killed.safetensors", tmp_path / "run", random.Random(seed), 0
    for _ in range(12):
        resume = ["--resume"] if (folder / "run.safetensors").is_file() else []
        process, said = _started(_job, ([str(out), str(folder), "--slow", *resume],))
        with said:
            said.readline()  # the run has begun
            time.sleep(chance.uniform(0, 0.9))
            if process.is_alive() and kills < most:
                process.kill()
                kills += 1
            process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert kills >= 1
    resumed, uninterrupted = load_file(out), load_file(tmp_path / "whole.safetensors")
    for name, value in uninterrupted.items():
        assert torch.equal(value, resumed[name]), name


def test_training_from_scratch_resumes_to_the_same_weights(tmp_path: Path) -> None:
    ann, config = _net(), _train_config(epochs_spiking=3, augment="flip-crop", mixup=0.2, average=0.9)
    whole, _ = finetune.train(ann, _train_data(), 2, config=config)
    seen = []

    def interrupt(row) -> None:
        seen.append(row)
        if len(seen) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune.train(ann, _train_data(), 2, config=config, folder=tmp_path, on_epoch=interrupt)
    resumed, result = finetune.train(ann, _train_data(), 2, config=config, folder=tmp_path, resume=True)
    assert len(result.history) == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_run_of_another_version_says_that_it_cannot_be_resumed(tmp_path: Path) -> None:
    finetune.fit(_network(), _data()[0], config=_config(epochs_quantized=1, epochs_spiking=0), folder=tmp_path)
    path = tmp_path / "run.safetensors"
    with safe_open(path, framework="pt") as file:
        run = json.loads(file.metadata()["run"])
    save_file(load_file(path), path, {"run": json.dumps({**run, "schema": "speedysnn-run/4"})})
    with pytest.raises(TrainingError, match="'speedysnn-run/4': another version of speedysnn .* cannot be resumed"):
        finetune.fit(_network(), _data()[0], config=_config(epochs_quantized=1, epochs_spiking=0), folder=tmp_path,
                     resume=True)  # fmt: skip


def test_logs_hold_every_epoch_and_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    result = finetune.fit(_network(), _data()[0], config=_config(), log=tmp_path)
    with (tmp_path / "epochs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["held_out_loss"]) for row in rows] == pytest.approx(result.history.held_out_loss.tolist())
    with (tmp_path / "steps.csv").open(newline="") as file:
        steps = list(csv.DictReader(file))
    assert [int(row["run_epoch"]) for row in steps] == [1] * 3 + [2] * 3 + [4] * 3 + [5] * 3
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_a_resumed_run_goes_on_in_the_same_log(tmp_path: Path) -> None:
    seen = []

    def interrupt(row) -> None:
        seen.append(row)
        if len(seen) > 2:
            raise KeyboardInterrupt

    places = {"folder": tmp_path / "run", "log": tmp_path / "log"}
    with pytest.raises(KeyboardInterrupt):
        finetune.fit(_network(), _data()[0], config=_config(), on_epoch=interrupt, **places)
    finetune.fit(_network(), _data()[0], config=_config(), resume=True, **places)
    with (tmp_path / "log" / "steps.csv").open(newline="") as file:
        assert [int(row["run_epoch"]) for row in csv.DictReader(file)] == [1] * 3 + [2] * 3 + [4] * 3 + [5] * 3


def test_patience_ends_a_stage() -> None:
    config = _config(epochs_quantized=30, epochs_spiking=0, learning_rates={"weights": 1e-9, "biases": 1e-9,
                     "thresholds": 1e-9, "v_init": 1e-9}, patience=2)  # fmt: skip
    result = finetune.fit(_network(), _data()[0], config=config)
    assert len(result.history) < 20


@pytest.mark.parametrize("keep", MONITORS)
def test_the_state_that_is_asked_for_is_kept(keep) -> None:
    config = _config(epochs_quantized=4, epochs_spiking=0, learning_rates={"weights": 0.05}, monitor=keep)
    x, snn = _data()[0], _network()
    y = snn.read("analog", x).argmax(1).detach()
    result = finetune.fit(snn, (x, y), (x[:40], y[:40]), config=config)
    rows = result.history
    column = {"loss": -rows.held_out_loss, "agreement": rows.held_out_agreement, "accuracy": rows.held_out_accuracy,
              "last": rows.epoch}[keep]  # fmt: skip
    kept = rows[rows.epoch == result.best_epoch].index[-1]  # two rows of epoch 0 where other statistics were better
    assert column[kept] == column.max()
    with torch.no_grad():
        agreement = (snn.read("quantized", x[:40]).argmax(1) == y[:40]).double().mean().item()
    assert agreement == pytest.approx(rows.held_out_agreement[kept])


def test_a_figure_that_is_not_there_keeps_no_state() -> None:
    with pytest.raises(InputError, match="held-out images have no labels"):
        finetune.fit(_network(), _data()[0], config=_config(monitor="accuracy"))
    with pytest.raises(InputError, match="monitor: expected one of loss, agreement, accuracy, last, got 'best'"):
        _config(monitor="best")
    scores = {"held_out_loss": 0.5, "held_out_agreement": 0.75, "held_out_accuracy": 0.5}
    assert score("agreement", scores, 3, 0.0) > score("agreement", {**scores, "held_out_loss": 0.6}, 3, 0.0)
    assert score("last", scores, 3, 0.1) < score("last", scores, 1, 0.0)


def test_a_loss_that_runs_away_stops_with_the_best_state() -> None:
    snn, calls = _network(), []

    def growing(ours, target, temperature):
        calls.append(1)
        return (ours - target.logits).square().mean() * 1.3 ** len(calls)

    with pytest.raises(TrainingError, match=r"loss runs away.*largest gradient is that of (layers|_neurons)"):
        finetune.fit(snn, _data()[0], config=_config(epochs_quantized=20), objective=growing)
    assert all(bool(p.isfinite().all()) for p in snn.parameters())


def test_bfloat16_trains() -> None:
    x = _data()[0]
    result = finetune.fit(_network(), x, validation=x, config=_config(epochs_quantized=6, precision="bfloat16"))
    held = result.history[result.history.stage == "quantized"].held_out_loss
    assert held.min() < held.iloc[0]


def test_the_result_names_what_changed_in_every_layer() -> None:
    snn = _network()
    before = {name: float(n.log_threshold.detach().mean()) for name, n in snn.neurons.items()}
    layers = finetune.fit(snn, _data()[0], config=_config(epochs_quantized=6)).layers.set_index("layer")
    assert list(layers.index) == list(snn.neurons)
    for name, neuron in snn.neurons.items():
        ratio = torch.tensor(float(neuron.log_threshold.detach().mean()) - before[name]).exp()
        assert layers.theta_ratio[name] == pytest.approx(float(ratio), rel=1e-5)
    assert (layers.spikes_per_neuron_before > 0).all()


def test_any_callable_serves_as_objective() -> None:
    calls = []

    def own(ours, target, temperature):
        calls.append(ours.shape)
        assert target.logits.shape == ours.shape
        assert target.labels is None or target.labels.shape in (ours.shape[:1], ours.shape)  # classes, or mixtures
        return (ours - target.logits).abs().mean()

    finetune.fit(_network(), _data()[0], config=_config(), objective=own)
    assert calls
    finetune.fit(_network(), _data(), config=_config(label_weight=0.5), objective=own)
