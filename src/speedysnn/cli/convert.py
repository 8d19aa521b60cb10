"""`speedysnn convert`: a trained network becomes a spiking one."""

from pathlib import Path
from typing import Annotated

import typer

from speedysnn import artifact
from speedysnn.calibration.rules import parse_rule, rules_help
from speedysnn.cli.console import cell, say, table, typed, write_json
from speedysnn.cli.options import (
    AllowHybrid,
    Checkpoint,
    Classes,
    Data,
    Device,
    JsonFile,
    KeepAnalog,
    Model,
    Normalize,
    Overwrite,
    Seed,
    data_of,
    delay_of,
    device_of,
    listing,
    model_of,
    named,
    provenance,
    seeded,
)
from speedysnn.cli.output_paths import check_json, check_network
from speedysnn.convert import to_spiking
from speedysnn.convert.correct import KINDS
from speedysnn.network import SpikingNetwork


def _rules_help() -> str:
    return rules_help().replace('"', "").removeprefix("one of ") + "."


def _corrections_help() -> str:
    return f"After the thresholds: {', '.join(KINDS)}."


def command(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new network, by custom NAME.snn.")],
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    normalize: Normalize = None,
    timesteps: Annotated[int, typer.Option("--timesteps", "-T", help="Steps T.", min=1)] = 4,
    threshold: Annotated[str, listing(_rules_help, "--threshold")] = "mse",
    granularity: Annotated[str, typer.Option("--granularity", help="channel or layer.")] = "channel",
    v_init: Annotated[float, typer.Option("--v-init", help="Initial membrane, a fraction of the threshold.")] = 0.5,
    spikes: Annotated[str, typer.Option("--spikes", help="binary, ternary or graded:N.")] = "binary",
    delay: Annotated[str, typer.Option("--delay", help="Steps of look-ahead, or full.")] = "0",
    correct: Annotated[
        str, listing(_corrections_help, "--correct")
    ] = "none",
    allow_hybrid: AllowHybrid = False,
    keep_analog: KeepAnalog = None,
    limit: Annotated[int, typer.Option("--limit", help="Calibration images, chosen by the seed.")] = 1024,
    device: Device = "cpu",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: JsonFile = None,
) -> None:
    """Replace every activation by integrate-and-fire neurons, with thresholds from the training images.

    \b
    Example: speedysnn convert speedysnn.assets.digits:load_digits_net -d digits -o digits.snn
             speedysnn convert net.py:make -c net.pth -d npz:images.npz --normalize imagenet -T 4 --delay 1 -o net.snn
             speedysnn convert torchvision:resnet18 -c r18.pth -d imagefolder:photos@224 --normalize imagenet -o r18.snn
    """  # noqa: D301 - \b keeps the lines apart
    place = device_of(device)
    check_json(json, overwrite, output)
    check_network(output, overwrite)
    parse_rule(threshold)
    look_ahead = delay_of(delay)
    seeded(seed)
    source = model_of(model, checkpoint, num_classes)
    source.model.to(place)
    images = data_of(data, "train", normalize, limit, seed)
    snn = to_spiking(
        source.model,
        images,
        timesteps,
        threshold=threshold,
        granularity=granularity,
        v_init=v_init,
        spikes=spikes,
        delay=look_ahead,
        correct=correct,
        allow_hybrid=allow_hybrid,
        keep_analog=tuple(keep_analog or ()),
        provenance=provenance(source, data=named(data), normalize=normalize, seed=seed, threshold=threshold),
        progress=True,
    )
    artifact.save(snn, output, overwrite=overwrite)
    summary = snn.summary()
    write_json(json, {"network": str(output), "latency": snn.latency, "timesteps": timesteps,
                      "provenance": snn.provenance, "layers": summary.to_dict("records")})  # fmt: skip
    if json != "-":
        _show(snn, output)


def _show(snn: SpikingNetwork, output: Path) -> None:
    rows = [
        (cell(row.layer), cell(row.neurons), cell(row.thresholds), cell(row.theta_min, 3), cell(row.theta_mean, 3),
         cell(row.theta_max, 3), cell(row.predicted_rate, 3))
        for row in snn.summary().itertuples()
    ]  # fmt: skip
    columns = ("layer", "neurons", "thresholds", "theta min", "mean", "max", "spikes per neuron and step")
    table(f"{len(rows)} neuron layers, T={snn.timesteps}", columns, rows)
    error = snn.provenance["analog_error"]
    say(f"analog reading equals the source network: relative error {error:.1e}, expected below 1e-5")
    if "correction" in snn.provenance:
        say(snn.provenance["correction"]["said"])
    following = f"{typed('speedysnn', 'analyze', output)} --data ... -o report"
    say(f"saved {output}; latency {snn.latency} steps. Next: {following}", "bold")
