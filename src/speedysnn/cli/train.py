"""`speedysnn train`: a network, untrained or not, learns from labels as a spiking one from its first step."""

from pathlib import Path
from typing import Annotated

import typer

from speedysnn import artifact
from speedysnn.cli.finetune import AUGMENTS, print_epoch, rates_of, say_saved, show, stages_of
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
    Normalize,
    Overwrite,
    Seed,
    Spikes,
    data_of,
    delay_of,
    device_of,
    model_of,
    named,
    provenance,
    seeded,
)
from speedysnn.cli.output import check_json, check_network, check_run, typed, write_json
from speedysnn.finetune.train import TrainConfig, train

SHARE = "Share of the labels in the loss; below 1 the network as it is given, read as it is, teaches the rest."


def command(
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
