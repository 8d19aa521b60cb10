"""`speedysnn finetune` and `speedysnn train`: noise is trained away, or a network is trained as a spiking one."""

from pathlib import Path
from typing import Annotated, Any

import typer
from torch.utils.data import ConcatDataset

from speedysnn import artifact
from speedysnn.analysis.cost.measure import spike_fan_out
from speedysnn.analysis.output_metrics import settings
from speedysnn.cli.options import (
    Checkpoint,
    Classes,
    Data,
    DelayText,
    Device,
    JsonFile,
    Limit,
    Model,
    Monitor,
    Network,
    Normalize,
    NormalizeNet,
    Overwrite,
    Seed,
    Spikes,
    check_fits,
    configure,
    data_of,
    delay_of,
    device_of,
    model_of,
    named,
    network_of,
    normalize_of,
    provenance,
    seeded,
)
from speedysnn.cli.output import (
    cell,
    check_json,
    check_network,
    check_run,
    note,
    percent,
    say,
    table,
    typed,
    write_json,
)
from speedysnn.data.images import ImageData
from speedysnn.errors import InputError
from speedysnn.finetune import Config, Result, Stage, fit
from speedysnn.finetune.augment import AUGMENTATIONS, Unlabelled, hold_out
from speedysnn.finetune.config import GROUPS
from speedysnn.finetune.engine import Engine
from speedysnn.finetune.train import TrainConfig, train
from speedysnn.network import SpikingNetwork

ALL = ",".join(GROUPS)
AUGMENTS = ", ".join(AUGMENTATIONS) + "."
STAGE = (
    "One stage, in place of the two counts; repeat for more: KIND:EPOCHS[,T=N][,delay=N|full][,spikes=KIND][,rate=X], "
    "KIND quantized, spiking, blockwise or reconstruct."
)
QUANTIZED = "Epochs on the quantized reading, one pass an image; by default 3 to 20, as few images ask for more."
SPIKING = "Epochs on the spiking reading, through time; by default 1, none where look-ahead makes both readings one."
RATE = "Peak rate of weights, biases and v_init, ten times that for log thresholds; by default one in their own scales."
SHARE = "Share of the labels in the loss; below 1 the network as it is given, read as it is, teaches the rest."


def command(
    network: Network,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tuned network, by custom NAME.snn.")],
    epochs_quantized: Annotated[int | None, typer.Option(help=QUANTIZED)] = None,
    epochs_spiking: Annotated[int | None, typer.Option(help=SPIKING)] = None,
    stage: Annotated[list[str] | None, typer.Option(help=STAGE)] = None,
    train: Annotated[str, typer.Option(help=f"What trains: some of {ALL}.")] = ALL,
    labels: Annotated[bool, typer.Option("--labels", help="Train towards labels, not the source's logits.")] = False,
    layer_match_weight: Annotated[
        float, typer.Option("--layer-match-weight", "--match", help="Weight of matching every layer to the source's.")
    ] = Config.layer_match_weight,
    temperature: Annotated[
        float, typer.Option(help="Of the softmax towards the source's logits.")
    ] = Config.temperature,
    average: Annotated[float, typer.Option(help="Decay of a running average that is kept, 0 for none.")] = (
        Config.average
    ),
    label_weight: Annotated[float, typer.Option(help="Share of the labels' cross-entropy in the loss.")] = 0.0,
    threshold_gradient: Annotated[
        str,
        typer.Option(
            "--threshold-gradient", "--threshold-rule", help="Gradient of theta through time: surrogate, step or mixed."
        ),
    ] = ("surrogate"),
    budget: Annotated[float | None, typer.Option(help="Most spikes a neuron and image, mean over the network.")] = None,
    budget_of: Annotated[str, typer.Option(help="What the budget counts: spikes, or synops (weighted by fan-out).")] = (
        "spikes"
    ),
    membrane: Annotated[float, typer.Option(help="Weight of the penalty on membranes that end out of range.")] = 0.0,
    learning_rate: Annotated[float | None, typer.Option("--lr", help=RATE)] = None,
    batch_norm: Annotated[
        bool | None,
        typer.Option(help="Whether batch-norm is in place while training; by default unless the images are few."),
    ] = Config.batch_norm,
    augment: Annotated[str, typer.Option(help=AUGMENTS)] = Config.augment,
    mixup: Annotated[float, typer.Option(help="Alpha of mixing pairs of images, 0 for none.")] = Config.mixup,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = Config.batch_size,
    more_data: Annotated[list[str] | None, typer.Option(help="Further inputs to train on, labels unused.")] = None,
    monitor: Monitor = "loss",
    patience: Annotated[int | None, typer.Option(help="Epochs without a better score that end a stage.")] = None,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 for mixed precision.")] = "float32",
    weight_bits: Annotated[int | None, typer.Option(help="Round weights to these bits, as a chip's.")] = None,
    source: Annotated[Path | None, typer.Option("--source", help="Teacher: the network before any tuning.")] = None,
    timesteps: Annotated[int | None, typer.Option("--timesteps", "-T", help="Another T to train for.")] = None,
    delay: DelayText = None,
    spikes: Spikes = None,
    normalize: NormalizeNet = None,
    limit: Limit = None,
    device: Device = "cpu",
    run_dir: Annotated[Path | None, typer.Option(help="Where the state is kept after every epoch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir.")] = False,
    log: Annotated[Path | None, typer.Option(help="Folder for CSV logs, and TensorBoard's where installed.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: JsonFile = None,
) -> None:
    """Train on the training images; a tenth is held out, and the state that does best there is kept.

    \b
    Example: speedysnn finetune digits.snn -d digits --augment shift -o tuned.snn
             speedysnn finetune net.snn -d npz:images.npz --augment flip-crop --epochs-quantized 24 -o tuned.snn
             speedysnn finetune net.snn -d npz:images.npz --train thresholds --run-dir run -o tuned.snn
             speedysnn finetune net.snn -d digits --stage quantized:8,T=8 --stage spiking:2 --budget 0.3 -o tuned.snn
    """  # noqa: D301 - \b keeps the lines apart
    check_json(json, overwrite, output)
    check_network(output, overwrite)
    check_run(run_dir, output, resume, overwrite)
    seeded(seed)
    config = Config(
        epochs_quantized=epochs_quantized, epochs_spiking=epochs_spiking, learning_rates=rates_of(learning_rate),
        mixup=mixup, seed=seed, stages=stages_of(stage), objective="labels" if labels else "kl",
        train=tuple(name.strip() for name in train.split(",") if name.strip()), temperature=temperature,
        label_weight=label_weight, average=average, threshold_gradient=threshold_gradient, monitor=monitor,
        layer_match_weight=layer_match_weight, budget=budget, budget_of=budget_of, membrane=membrane,
        patience=patience, precision=precision, augment=augment, batch_size=batch_size, batch_norm=batch_norm,
        weight_bits=weight_bits,
    )  # fmt: skip
    snn = network_of(network, device)
    configure(snn, timesteps, delay, spikes)
    normalize = normalize_of(snn, normalize)
    images = data_of(data, "train", normalize, limit, seed)
    check_fits(snn, images, labels or label_weight > 0)
    teacher = None if source is None else network_of(source, device)
    further = [data_of(spec, "train", normalize, None, seed) for spec in more_data or ()]
    train_part, held = _parts(images, further, config)
    fan_out = spike_fan_out(snn) if budget_of == "synops" and budget is not None else None
    result = fit(
        snn, train_part, held, teacher=teacher, config=config, fan_out=fan_out, folder=run_dir, resume=resume, log=log,
        progress=True, on_epoch=print_epoch, on_memory=lambda reading, need: note(f"{reading} stage: {need}"),
    )  # fmt: skip
    if Engine().main:  # one process of several writes the result
        more = {"more_data": [named(spec) for spec in more_data]} if more_data else {}
        snn.provenance["finetuned"][-1].update(data=named(data), normalize=normalize, limit=limit, **more)
        artifact.save(snn, output, overwrite=overwrite)
        write_json(json, _as_json(output, snn, result))
        if json != "-":
            show(result, snn)
            say_saved(result, output, typed("speedysnn", "analyze", output, "--source", source or network) + " ...")


def train_command(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new network, by custom NAME.snn.")],
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    normalize: Normalize = None,
    timesteps: Annotated[int, typer.Option("--timesteps", "-T", help="Steps T.", min=1)] = 4,
    delay: DelayText = None,
    spikes: Spikes = None,
    epochs: Annotated[int, typer.Option(help="Epochs through time.")] = 30,
    optimizer: Annotated[str, typer.Option(help="adamw or sgd.")] = "adamw",
    learning_rate: Annotated[float, typer.Option("--lr", help="Peak rate; ten times that for log thresholds.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of the weights only.")] = 0.0,
    label_weight: Annotated[float, typer.Option(help=SHARE, min=0, max=1)] = 1.0,
    budget: Annotated[float | None, typer.Option(help="Most spikes a neuron and image, mean over the network.")] = None,
    augment: Annotated[str, typer.Option(help=AUGMENTS)] = "none",
    mixup: Annotated[float, typer.Option(help="Alpha of mixing pairs of images and labels, 0 for none.")] = 0.0,
    average: Annotated[float, typer.Option(help="Decay of a running average that is kept, 0 for none.")] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Images a step; batch-norm takes its statistics over them.")] = 50,
    stage: Annotated[list[str] | None, typer.Option(help="Stages in place of --epochs, quantized or spiking.")] = None,
    monitor: Monitor = "loss",
    patience: Annotated[int | None, typer.Option(help="Epochs without a better score that end a stage.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the state is kept after every epoch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir.")] = False,
    log: Annotated[Path | None, typer.Option(help="Folder for CSV logs, and TensorBoard's where installed.")] = None,
    limit: Limit = None,
    device: Device = "cpu",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: JsonFile = None,
) -> None:
    """Train on the labelled training images; a tenth is held out, and the epoch that does best there is kept.

    \b
    Example: speedysnn train speedysnn.assets.digits:avg_net -d digits -T 4 -o net.snn
             speedysnn train net.py:make -c net.pt -d npz:images.npz --stage quantized:12 --label-weight 0.5 -o net.snn
    """  # noqa: D301 - \b keeps the lines apart
    place = device_of(device)
    check_json(json, overwrite, output)
    check_network(output, overwrite)
    check_run(run_dir, output, resume, overwrite)
    taught = label_weight < 1
    config = TrainConfig(
        objective="kl" if taught else "labels", label_weight=label_weight if taught else 0.0, budget=budget,
        epochs_spiking=epochs, optimizer=optimizer, learning_rates=rates_of(learning_rate), weight_decay=weight_decay,
        augment=augment, batch_size=batch_size, seed=seed, stages=stages_of(stage), patience=patience, monitor=monitor,
        mixup=mixup, average=average,
    )  # fmt: skip
    seeded(seed)
    source = model_of(model, checkpoint, num_classes)
    source.model.to(place)
    images = data_of(data, "train", normalize, limit, seed)
    snn, result = train(
        source.model, images, timesteps, config=config, teacher=source.model if taught else None,
        spikes=spikes or "binary", delay=0 if delay is None else delay_of(delay), folder=run_dir, resume=resume,
        log=log, progress=True, on_epoch=print_epoch,
    )  # fmt: skip
    snn.provenance.update(provenance(source, data=named(data), normalize=normalize, seed=seed))
    artifact.save(snn, output, overwrite=overwrite)
    write_json(json, {"network": str(output), "timesteps": timesteps, "config": config.to_json(),
                      "best_epoch": result.best_epoch, "seconds": result.seconds,
                      "history": result.history.to_dict("records")})  # fmt: skip
    if json != "-":
        show(result, snn)
        say_saved(result, output, typed("speedysnn", "evaluate", output, "-d", data))


def rates_of(learning_rate: float | None) -> dict[str, float]:
    """The peak rate of every group of parameters.

    Returns:
        The given rate, and ten times that for the logarithms of thresholds; nothing where none was given.
    """
    if learning_rate is None:
        return {}
    groups = ("weights", "biases", "v_init")
    return {**dict.fromkeys(groups, learning_rate), "thresholds": 10 * learning_rate}


def stages_of(texts: list[str] | None) -> tuple[Stage, ...]:
    """The stages that `--stage` names.

    Returns:
        The stages in order; none where the option was not given.

    Raises:
        InputError: one that is not understood.
    """
    return tuple(Stage.parse(text) for text in texts or ())


def say_saved(result: Result, output: Path, next_step: str) -> None:
    """Say where the network is, how long it took, and what to type next."""
    say(f"saved {output} after {result.seconds:.0f} s. Next: {next_step}", "bold")


def _as_json(output: Path, snn: SpikingNetwork, result: Result) -> dict[str, Any]:
    """Give the run's result as JSON data."""
    return {
        "network": str(output),
        "timesteps": snn.timesteps,
        "config": result.config.to_json(),
        "best_epoch": result.best_epoch,
        "seconds": result.seconds,
        "history": result.history.to_dict("records"),
        "layers": result.layers.to_dict("records"),
    }


def _parts(images: ImageData, further: list[ImageData], config: Config) -> tuple[Any, Any]:
    """Split the data into (train, held out); the held-out part comes from the main data alone.

    Further inputs come without labels.
    """
    if not further:
        return images, None
    tune, held = hold_out(images, config.holdout, config.seed)
    if config.objective == "labels" or config.label_weight:
        raise InputError("--more-data: its labels are not used; leave out --labels and --label-weight")
    return ConcatDataset([Unlabelled(part) for part in (tune, *further)]), held


def print_epoch(row: dict[str, Any]) -> None:
    """Print one row of the history on stderr."""
    note(
        f"{row['stage']} epoch {row['epoch']}: held-out loss {row['held_out_loss']:.4f}, agreement "
        f"{percent(row['held_out_agreement'])} %, {row['spikes_per_neuron']:.2f} spikes per neuron"
    )


def show(result: Result, snn: SpikingNetwork) -> None:
    """Print the history as a table."""
    rows = [
        (str(row.stage), str(row.epoch), cell(row.train_loss, 4), cell(row.held_out_loss, 4),
         percent(row.held_out_agreement), percent(row.held_out_accuracy), cell(row.spikes_per_neuron))
        for row in result.history.itertuples()
    ]  # fmt: skip
    columns = ("stage", "epoch", "train loss", "held-out loss", "agreement %", "accuracy %", "spikes per neuron")
    setting = f"T={snn.timesteps}, delay {settings(snn)['delay']}, latency {snn.latency} steps"
    table(f"{setting}; on held-out training images; epoch 0 is before the stage", columns, rows)
