"""`speedysnn finetune`: train the thresholds, and more if asked, until the noise is gone."""

from pathlib import Path
from typing import Annotated, Any

import typer

from speedysnn import artifact
from speedysnn.analysis.outputs import settings
from speedysnn.cli.common import (
    Data,
    DelayText,
    JsonFile,
    Limit,
    Network,
    NormalizeNet,
    Overwrite,
    Seed,
    Spikes,
    check_fits,
    configure,
    data_of,
    named,
    network_of,
    normalize_of,
    seeded,
)
from speedysnn.cli.show import cell, note, percent, say, table, write_json
from speedysnn.cli.targets import check_json, check_network, check_run
from speedysnn.finetune import Config, Result, fit
from speedysnn.finetune.config import GROUPS
from speedysnn.network import SpikingNetwork

ALL = ",".join(GROUPS)


def command(
    network: Network,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tuned network, by custom NAME.snn.")],
    epochs_quantized: Annotated[int, typer.Option(help="Epochs on the quantized reading: one pass an image.")] = 8,
    epochs_spiking: Annotated[int, typer.Option(help="Epochs on the spiking reading: through time.")] = 2,
    train: Annotated[str, typer.Option(help=f"What trains: some of {ALL}.")] = ALL,
    labels: Annotated[bool, typer.Option("--labels", help="Train towards labels, not the source's logits.")] = False,
    match: Annotated[float, typer.Option(help="Weight of matching every layer to the source's activations.")] = 1.0,
    learning_rate: Annotated[float, typer.Option("--lr", help="Peak rate; ten times that for log thresholds.")] = 1e-3,
    augment: Annotated[str, typer.Option(help="none, flip, shift or flip-crop.")] = "none",
    mixup: Annotated[float, typer.Option(help="Alpha of mixing pairs of images, 0 for none.")] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 50,
    source: Annotated[Path | None, typer.Option("--source", help="Teacher: the network before any tuning.")] = None,
    timesteps: Annotated[int | None, typer.Option("--timesteps", "-T", help="Another T to train for.")] = None,
    delay: DelayText = None,
    spikes: Spikes = None,
    normalize: NormalizeNet = None,
    limit: Limit = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the state is kept after every epoch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir.")] = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: JsonFile = None,
) -> None:
    """Train on the training images; a tenth is held out, and the state that does best there is kept.

    \b
    Example: speedysnn finetune digits.snn -d digits --augment shift -o tuned.snn
             speedysnn finetune net.snn -d npz:images.npz --augment flip-crop --epochs-quantized 24 -o tuned.snn
             speedysnn finetune net.snn -d npz:images.npz --train thresholds --run-dir run -o tuned.snn
    """  # noqa: D301 - \b keeps the lines apart
    check_json(json, overwrite, output)
    check_network(output, overwrite)
    check_run(run_dir, output, resume, overwrite)
    seeded(seed)
    config = Config(
        epochs_quantized=epochs_quantized,
        epochs_spiking=epochs_spiking,
        train=tuple(name.strip() for name in train.split(",") if name.strip()),
        learning_rates={"weights": learning_rate, "biases": learning_rate, "v_init": learning_rate,
                        "thresholds": 10 * learning_rate},
        objective="labels" if labels else "kl",
        match=match,
        augment=augment,
        mixup=mixup,
        batch_size=batch_size,
        seed=seed,
    )  # fmt: skip
    snn = network_of(network)
    configure(snn, timesteps, delay, spikes)
    normalize = normalize_of(snn, normalize)
    images = data_of(data, "train", normalize, limit, seed)
    check_fits(snn, images, labels)
    teacher = None if source is None else network_of(source)
    result = fit(
        snn, images, teacher=teacher, config=config, folder=run_dir, resume=resume, progress=True, on_epoch=_line,
        on_memory=lambda reading, need: note(f"{reading} stage: {need}"),
    )  # fmt: skip
    snn.provenance["finetuned"][-1].update(data=named(data), normalize=normalize, limit=limit)
    artifact.save(snn, output, overwrite=overwrite)
    write_json(json, {"network": str(output), "timesteps": snn.timesteps, "config": config.to_json(),
                      "best_epoch": result.best_epoch, "seconds": result.seconds,
                      "history": result.history.to_dict("records")})  # fmt: skip
    if json != "-":
        show(result, snn)
        next_step = f"speedysnn analyze {output} --source {source or network} ..."
        say(f"saved {output} after {result.seconds:.0f} s. Next: {next_step}", "bold")


def _line(row: dict[str, Any]) -> None:
    note(
        f"{row['stage']} epoch {row['epoch']}: held-out loss {row['held_out_loss']:.4f}, agreement "
        f"{percent(row['held_out_agreement'])} %, {row['spikes_per_neuron']:.2f} spikes per neuron"
    )


def show(result: Result, snn: SpikingNetwork) -> None:
    """The history as a table."""
    rows = [
        (str(row.stage), str(row.epoch), cell(row.train_loss, 4), cell(row.held_out_loss, 4),
         percent(row.held_out_agreement), percent(row.held_out_accuracy), cell(row.spikes_per_neuron))
        for row in result.history.itertuples()
    ]  # fmt: skip
    columns = ("stage", "epoch", "train loss", "held-out loss", "agreement %", "accuracy %", "spikes per neuron")
    setting = f"T={snn.timesteps}, delay {settings(snn)['delay']}, latency {snn.latency} steps"
    table(f"{setting}; on held-out training images; epoch 0 is before the stage", columns, rows)
