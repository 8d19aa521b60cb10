"""`speedysnn convert`: a trained network becomes a spiking one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from speedysnn import artifact
from speedysnn.calibration.rules import parse_rule, rules_help
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
    several,
    steps_of,
)
from speedysnn.cli.output import cell, check_json, check_network, say, table, typed, write_json
from speedysnn.convert import SearchResult, search, to_spiking
from speedysnn.convert.correct import KINDS
from speedysnn.errors import InputError
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
    timesteps: Annotated[
        str | None, typer.Option("--timesteps", "-T", help="Steps T, 4; with --auto those to try, 2,4,8.")
    ] = None,
    threshold: Annotated[str, listing(_rules_help, "--threshold")] = "mse",
    granularity: Annotated[str, typer.Option("--granularity", help="channel or layer.")] = "channel",
    v_init: Annotated[float, typer.Option("--v-init", help="Initial membrane, a fraction of the threshold.")] = 0.5,
    spikes: Annotated[
        str | None, typer.Option("--spikes", help="binary, ternary or graded:N; with --auto binary,ternary.")
    ] = None,
    delay: Annotated[
        str | None, typer.Option("--delay", help="Steps of look-ahead, or full: 0; with --auto 0,1,2.")
    ] = None,
    correct: Annotated[
        str | None, listing(_corrections_help, "--correct")
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Try settings on held-out images and keep the best.")] = False,
    max_latency: Annotated[int | None, typer.Option("--max-latency", help="With --auto: steps to the answer.")] = None,
    max_spikes: Annotated[float | None, typer.Option("--max-spikes", help="With --auto: spikes an image.")] = None,
    max_synops: Annotated[
        float | None, typer.Option("--max-synops", help="With --auto: synaptic operations an image.")
    ] = None,
    allow_hybrid: AllowHybrid = False,
    keep_analog: KeepAnalog = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Calibration images, chosen by the seed: 1024; with --auto 512.")
    ] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: JsonFile = None,
) -> None:
    """Replace every activation by integrate-and-fire neurons, with thresholds from the training images.

    \b
    Example: speedysnn convert speedysnn.assets.digits:load_digits_net -d digits -o digits.snn
             speedysnn convert net.py:make -c net.pth -d npz:images.npz --normalize imagenet -T 4 --delay 1 -o net.snn
             speedysnn convert net.py:make -c net.pth -d npz:images.npz --auto --max-latency 24 -o best.snn
             speedysnn convert torchvision:resnet18 -c r18.pth -d imagefolder:photos@224 --normalize imagenet -o r18.snn
    """  # noqa: D301 - \b keeps the lines apart
    place = device_of(device)
    check_json(json, overwrite, output)
    check_network(output, overwrite)
    parse_rule(threshold)
    given = _settings(timesteps, spikes, delay, correct, auto)
    limits = _limits(auto, max_latency=max_latency, max_spikes_per_image=max_spikes, max_synops=max_synops)
    seeded(seed)
    source = model_of(model, checkpoint, num_classes)
    source.model.to(place)
    count = limit if limit is not None else 512 if auto else 1024
    images = data_of(data, "train", normalize, count, seed)
    snn = to_spiking(
        source.model,
        images,
        threshold=threshold,
        granularity=granularity,
        v_init=v_init,
        allow_hybrid=allow_hybrid,
        keep_analog=tuple(keep_analog or ()),
        provenance=provenance(source, data=named(data), normalize=normalize, seed=seed, threshold=threshold),
        progress=True,
        **({} if auto else {singular: given[several_of][0] for singular, several_of in _SINGLE.items()}),
    )
    found = search(snn, images, images=count, progress=True, **given, **limits) if auto else None
    snn = snn if found is None else found.best
    artifact.save(snn, output, overwrite=overwrite)
    summary = snn.summary()
    tried = {} if found is None else {"search": found.to_json()}
    write_json(json, {"network": str(output), "latency": snn.latency, "timesteps": snn.timesteps,
                      "provenance": snn.provenance, "layers": summary.to_dict("records"), **tried})  # fmt: skip
    if json != "-":
        if found is not None:
            _show_search(found)
        _show(snn, output)


_SINGLE = {"timesteps": "timesteps", "spikes": "spikes", "delay": "delays", "correct": "corrections"}


def _settings(
    timesteps: str | None, spikes: str | None, delay: str | None, correct: str | None, auto: bool
) -> dict[str, Any]:
    """What to try, by the names that `search` has for it; one of each without --auto."""
    default = ("2,4,8", "binary,ternary", "0,1,2", "none,bias,moments") if auto else ("4", "binary", "0", "none")
    texts = [text or usual for text, usual in zip((timesteps, spikes, delay, correct), default, strict=True)]
    found: dict[str, Any] = {
        "timesteps": several(texts[0], "-T", steps_of),
        "spikes": several(texts[1], "--spikes", str),
        "delays": several(texts[2], "--delay", delay_of),
        "corrections": several(texts[3], "--correct", str),
    }
    options = dict(zip(found, ("-T", "--spikes", "--delay", "--correct"), strict=True))
    if not auto and (many := [name for name, values in found.items() if len(values) > 1]):
        raise InputError(f"{options[many[0]]}: expected one value, or --auto to try several, got {len(found[many[0]])}")
    return found


def _limits(auto: bool, **limits: float | None) -> dict[str, Any]:
    """The limits that were given.

    Raises:
        InputError: one without --auto, which alone looks at them.
    """
    given = {name: value for name, value in limits.items() if value is not None}
    if given and not auto:
        raise InputError(
            "--max-latency, --max-spikes and --max-synops choose among settings: expected --auto beside them"
        )
    return given


def _show_search(found: SearchResult) -> None:
    shown = found.marked()[found.table["images"] == found.scored_on]
    table(found.title, list(shown.columns), [[cell(value) for value in row] for row in shown.itertuples(index=False)])
    say("* best, + frontier of agreement, latency and spikes an image; look-ahead 'delay' in steps, KL in nats")


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
