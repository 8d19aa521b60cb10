"""`fit` trains a converted network's thresholds, and biases and weights if asked, until its noise is gone."""

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from speedysnn.errors import TrainingError
from speedysnn.finetune import checkpoint
from speedysnn.finetune.augment import as_dataset, augmentation, gather, hold_out
from speedysnn.finetune.checkpoint import Origin, RunState
from speedysnn.finetune.config import Config, Stage
from speedysnn.finetune.engine import Engine
from speedysnn.finetune.loop import Trainer
from speedysnn.finetune.objectives import Objective
from speedysnn.finetune.objectives import objective as named_objective
from speedysnn.finetune.optimization import Rounding, grouped
from speedysnn.finetune.penalties import Budget
from speedysnn.finetune.result import Log, Result, changes, record, result_of
from speedysnn.finetune.run import Report, Run, put_batch_norm
from speedysnn.finetune.step import Need, print_need
from speedysnn.network import SpikingNetwork, weights_tuned
from speedysnn.settings import repeatable
from speedysnn.torch_utils import evaluating

_TABLE_IMAGES = 64
_IMAGES_SHOWN, _FEWEST_EPOCHS, _MOST_EPOCHS = 50_000, 3, 20  # of the quantized stage
_PARAMETERS_AN_IMAGE = 1000  # above which a reconstruction comes first


class _Teacher(nn.Module):
    """A frozen copy of a network, read analog: the source network before tuning."""

    def __init__(self, snn: SpikingNetwork) -> None:
        super().__init__()
        self.snn = copy.deepcopy(snn).requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Any:
        with self.snn.reading("analog"):
            return self.snn(*inputs)


@repeatable
def fit(
    snn: SpikingNetwork,
    train: Any,
    validation: Any = None,
    teacher: nn.Module | None = None,
    config: Config | None = None,
    *,
    objective: Objective | None = None,
    fan_out: Mapping[str, float] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    log: str | Path | None = None,
    progress: bool = False,
    on_epoch: Report | None = None,
    on_memory: Callable[[str, Need], None] | None = None,
) -> Result:
    """Train a spiking network in place until its noise is gone, and leave it in the best state of the last stage.

    By default stage one trains the quantized reading and stage two, where it is another, the spiking reading through
    time (`fit.planned` says how long, and when a reconstruction comes first); `config.stages` names others. Each stage
    keeps the state with the lowest held-out loss, and its starting state counts too; a run of several stages also
    counts the network that it got, at the last stage's settings. Batch-norm is in place while a stage trains and is
    folded into the same weights at its end (`Config.batch_norm`). With `Config.weight_bits` every figure is that of
    rounded weights, and the network ends with those before rounding, which `to_integer` of as many bits rounds to just
    the weights that were judged. The same call gives the same bits again. Under
    `accelerate launch` every process takes its part of each batch, without batch-norm in place, and the result is that
    of one process with `batch_norm=False`.

    Args:
        snn: the network; its parameters change, its T, spikes and look-ahead do not.
        train: a dataset, a loader, tensors or batches; labels are used by the objective "labels" only.
        validation: held-out data; without it `config.holdout` of the training data is kept for that.
        teacher: maps the inputs to logits; a `SpikingNetwork` is read analog; by default the network's own analog
            reading before tuning, which a network whose weights were tuned before no longer has.
        config: the settings.
        objective: (outputs, target, temperature) -> mean loss over images, in place of the one named in `config`; the
            target is always a `finetune.Target`, with the teacher's outputs in `target.logits` (None where the named
            objective is "labels") and in `target.labels` the labels (probabilities of the classes where images are
            mixed; None where that objective and `label_weight` use none).
        fan_out: synapses that a spike of each layer reaches, by neuron name (`analysis.spike_fan_out`), for
            `budget_of="synops"`.
        folder: where the state is kept after every epoch.
        resume: go on from the state in `folder`; gives the result of an uninterrupted run.
        log: folder for `epochs.csv`, `steps.csv` and, where it is installed, TensorBoard events.
        progress: show progress, and before each stage the memory that its steps need.
        on_epoch: called with every new row of the history.
        on_memory: called with the reading and the memory that its steps need, before the first is done; without it
            they are printed where progress is shown.

    Raises:
        TrainingError: NaN, infinity or a loss that runs away (the best state is kept), nothing to resume, or a folder
            that cannot be written to.
        ArtifactError: another run is writing into `folder` or `log` now.
        DataError: no data.
        InputError, ConversionError: weights that cannot be rounded to `Config.weight_bits`, all of them.

    Returns:
        The run's history, its best epoch, and what changed in every layer.

    Example:
        >>> import torch
        >>> from speedysnn import convert, finetune
        >>> seed, images = torch.manual_seed(0), torch.rand(200, 8)
        >>> ann = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> _ = ann[2].weight.data.mul_(20)  # answers that differ from image to image
        >>> snn = convert.to_spiking(ann, images, timesteps=2)
        >>> config = finetune.Config(epochs_quantized=8, epochs_spiking=1, temperature=1.0)
        >>> result = finetune.fit(snn, images, config=config)  # no labels: towards the source's outputs
        >>> result.history.stage.value_counts().to_dict()
        {'quantized': 9, 'spiking': 2}
        >>> loss = result.history[result.history.stage == "quantized"].held_out_loss
        >>> bool(loss.min() < loss.iloc[0])
        True
    """
    config = config or Config()
    check_names(config)
    begin = time.monotonic()
    taken = len(snn.input_shapes)
    tune, held = (as_dataset(train, taken), as_dataset(validation, taken)) if validation is not None else hold_out(
        train, config.holdout, config.seed, taken
    )  # fmt: skip
    frozen, engine = teacher_of(snn, teacher, config), Engine(config.precision)
    config = planned(config, len(tune), _trained(snn, config, frozen, engine), snn.synchronous)  # type: ignore[arg-type]
    device = engine.device(next(snn.parameters()).device)
    if engine.world > 1:
        snn.to(device), frozen.to(device)
    with evaluating(frozen):
        shown = progress and engine.main
        told = on_memory or (print_need if shown else None)
        trainer = Trainer(snn, frozen, tune, held, config, shown, told, objective,
                          budget_of(config, fan_out), engine, rounding=_rounding(snn, config, tune))  # fmt: skip
        state, table = run_all(trainer, folder=folder, resume=resume, log=log, on_epoch=on_epoch)
    record(snn, config, state)
    return result_of(state, config, table, time.monotonic() - begin)


def planned(config: Config, images: int, parameters: int, synchronous: bool) -> Config:
    """Fill in what the settings leave open: how many epochs, and whether a reconstruction comes first.

    The weights are first fitted in closed form. The quantized stage shows the network about 50,000 images, in 3 to 20
    epochs, and one epoch through time follows, unless the spiking reading is the quantized one. Where more than 1,000
    parameters train for every image, too few answers are there to learn from: the closed form then becomes a
    reconstruction block by block, where every value that leaves a block is something to learn from, and the quantized
    stage has 4 epochs without batch-norm in place, whose statistics of a batch move a deep network away from its source
    before it has learned (EfficientNet-Lite0, 400 images, T = 4, one epoch: held-out divergence 0.66 to 1.74, without
    it to 0.71).

    Args:
        config: the settings.
        images: how many train.
        parameters: how many train; 0 where a reconstruction cannot be.
        synchronous: whether every layer waits for its whole input (`SpikingNetwork.synchronous`).

    Returns:
        Settings with numbers, the same where nothing was open.

    Example:
        >>> from speedysnn.finetune import Config
        >>> from speedysnn.finetune.fit import planned
        >>> [str(stage) for stage in planned(Config(), 5000, 300_000, synchronous=False).plan]
        ['reconstruct:0', 'quantized:10', 'spiking:1,rate=0.3']
        >>> [str(stage) for stage in planned(Config(), 500, 5_000_000, synchronous=True).plan]
        ['reconstruct:4', 'quantized:4']
    """
    quantized, spiking = config.epochs_quantized, config.epochs_spiking
    if config.stages or None not in (quantized, spiking):
        return config
    few, closed = parameters > _PARAMETERS_AN_IMAGE * images, quantized is None and parameters > 0
    if quantized is None:
        quantized = 4 if few else min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, round(_IMAGES_SHOWN / images)))
    if spiking is None:
        spiking = 0 if synchronous and quantized else 1
    normed = not few if config.batch_norm is None else config.batch_norm
    full = replace(config, epochs_quantized=quantized, epochs_spiking=spiking, batch_norm=normed)
    return replace(full, stages=(Stage("reconstruct", 4 if few else 0), *full.plan)) if closed else full


def _trained(snn: SpikingNetwork, config: Config, teacher: nn.Module, engine: Engine) -> int:
    """How many parameters train; 0 where no reconstruction can be: of another teacher's, or in several processes."""
    source = getattr(teacher, "snn", None)
    alike = isinstance(source, SpikingNetwork) and source.neurons.keys() == snn.neurons.keys()
    if config.objective == "labels" or not alike or engine.world > 1:
        return 0
    groups = grouped(snn)
    return sum(parameter.numel() for group in config.train for parameter in groups[group].values())


def _rounding(snn: SpikingNetwork, config: Config, data: Any) -> Rounding:
    """How weights are rounded while the network trains; refused where they cannot be."""
    if config.weight_bits is None:
        return Rounding()
    out = Rounding(config.weight_bits, gather(data, [0]).inputs[0].ndim > len(snn.input_shapes[0]) + 1)
    out.check(snn)
    return out


def run_all(
    trainer: Trainer,
    *,
    folder: str | Path | None,
    resume: bool,
    log: str | Path | None,
    on_epoch: Report | None,
    **options: Any,
) -> tuple[RunState, pd.DataFrame]:
    """Begin a run, or resume the one in `folder`, and finish it.

    Args:
        trainer: the network, its teacher, the data and the settings.
        folder: where the state is kept after every epoch, or None.
        resume: whether to go on from the state in `folder`.
        log: folder of the log files, or None.
        on_epoch: called with every new row of the history.
        **options: further attributes of `Run`.

    Returns:
        The run's state, and a table of what changed in every layer.

    Raises:
        TrainingError: there is nothing to resume, or the run goes wrong.
        ArtifactError: another run is writing into `folder` or `log` now.
    """
    if resume and folder is None:
        raise TrainingError("resume: expected the folder of the run to go on with")
    snn, engine = trainer.snn, trainer.engine
    place, logs = (None if path is None else Path(path) for path in (folder, log))
    origin, original = Origin.of(snn, trainer.config), checkpoint.snapshot(snn)
    with checkpoint.reserved_folders(place, logs) if engine.main else nullcontext():
        fresh = {} if resume else layer_table(trainer)
        state = _read(trainer, place, origin) if resume and place is not None else RunState(layers=fresh)
        save_state = None if place is None else (lambda: checkpoint.write(place, trainer.snn, state, origin))
        if logs is not None and engine.main:
            trainer.log = Log(logs, len(state.history))
        try:
            Run(trainer, state, original, save_state, on_epoch, **options).go()
        finally:
            if trainer.log is not None:
                trainer.log.close()
            engine.wait()
    return state, changes(state.layers, layer_table(trainer))


def _read(trainer: Trainer, folder: Path, origin: Origin) -> RunState:
    """Load a run's state into the trainer's network, with batch-norm in place where the run stands within a stage."""

    def unfold() -> SpikingNetwork:
        put_batch_norm(trainer, Stage("quantized", 1))
        return trainer.snn

    return checkpoint.read(folder, trainer.snn, origin, unfold)


def layer_table(trainer: Trainer) -> dict[str, dict[str, float]]:
    """Describe every layer, with its spikes counted on up to 64 held-out images.

    Args:
        trainer: the network and the held-out images.

    Returns:
        By layer: log_theta, log_amplitude, v_init and spikes_per_neuron.
    """
    count = min(_TABLE_IMAGES, len(trainer.held_out))  # type: ignore[arg-type]
    rates: dict[str, float] = {}

    def count_spikes(tap: Any) -> None:
        fired = tap.neuron.counts(tap.drive) if tap.static_output else tap.counts()
        steps = 1 if tap.static_output else tap.neuron.timesteps
        rates[tap.name] = float(fired.abs().sum()) * steps / max(1, fired.numel())

    with torch.no_grad(), trainer.snn.reading("spiking"), trainer.rounding.seen(trainer.snn):
        batch = trainer.batch(range(count), None)
        if batch[2]:
            trainer.snn(*batch[1], observer=count_spikes)
    return {
        name: {"log_theta": float(neuron.log_threshold.detach().mean()),
               "log_amplitude": float(neuron.amplitude.detach().log().mean()),
               "v_init": float(neuron.v_init.detach().mean()), "spikes_per_neuron": rates.get(name, float("nan"))}
        for name, neuron in trainer.snn.neurons.items()
    }  # fmt: skip


def check_names(config: Config) -> None:
    """Refuse names that no registry holds.

    Args:
        config: the settings.

    Raises:
        InputError: unknown objective or augmentation.
    """
    named_objective(config.objective)
    augmentation(config.augment)


def budget_of(config: Config, fan_out: Mapping[str, float] | None) -> Budget | None:
    """Make the limit on the spikes that the settings ask for.

    Args:
        config: the settings.
        fan_out: synapses that a spike of each layer reaches, by neuron name, for `budget_of="synops"`.

    Returns:
        The limit, or None where there is none.

    Raises:
        TrainingError: it counts synaptic operations and no fan-outs were given.
    """
    if config.budget is None:
        return None
    if config.budget_of == "synops" and not fan_out:
        raise TrainingError(
            "budget_of='synops': expected fan_out, each layer's synapses a spike, as analysis.spike_fan_out gives them"
        )
    return Budget(config.budget, config.budget_weight, dict(fan_out or {}) if config.budget_of == "synops" else {})


def teacher_of(snn: SpikingNetwork, teacher: nn.Module | None, config: Config) -> nn.Module:
    """Choose the module whose outputs a run trains towards.

    Args:
        snn: the network that is to be trained.
        teacher: the teacher given; a `SpikingNetwork` is read analog, and None stands for `snn` itself before tuning.
        config: the settings.

    Returns:
        A frozen module.

    Raises:
        TrainingError: none is given and the network's own weights were tuned before.
    """
    if teacher is not None:
        return _Teacher(teacher) if isinstance(teacher, SpikingNetwork) else teacher
    layers = config.layer_match_weight or any(stage.kind == "blockwise" for stage in config.plan)
    if weights_tuned(snn) and (config.objective != "labels" or layers):
        raise TrainingError(
            "the network's weights were tuned before, so its analog reading is not the source network any more; give "
            "the teacher: the network before tuning (teacher=, or --source on the command line)"
        )
    return _Teacher(snn)
