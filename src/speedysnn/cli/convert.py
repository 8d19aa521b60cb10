"""`speedysnn inspect` and `speedysnn convert`: a trained network is looked through, or becomes a spiking one."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape

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
    chip_of,
    data_of,
    delay_of,
    device_of,
    listing,
    model_of,
    named,
    network_of,
    provenance,
    seeded,
    several,
    steps_of,
)
from speedysnn.cli.output import (
    cell,
    check_json,
    check_network,
    say,
    table,
    typed,
    write_json,
)
from speedysnn.convert import Report, Row, SearchResult, search, to_spiking
from speedysnn.convert import inspect as inspect_network
from speedysnn.convert.correct import DEFAULT, KINDS
from speedysnn.data.batches import iter_batches
from speedysnn.errors import InputError
from speedysnn.integer import PROFILES, Program, is_chip, misfits
from speedysnn.integer import load as load_chip
from speedysnn.integer.profiles import find_profile
from speedysnn.kernels import what_is_missed
from speedysnn.network import SpikingNetwork

COLOURS = {"spiking": "green", "hybrid": "yellow", "unsupported": "bold red"}


def _rules_help() -> str:
    return rules_help().replace('"', "").removeprefix("one of ") + "."


def _corrections_help() -> str:
    return f"After the thresholds: {', '.join(KINDS)}; by default {DEFAULT}, with --auto none,bias,moments."


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
        str | None, typer.Option("--spikes", help="binary, ternary, graded:N or power2:N; with --auto binary,ternary.")
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
        **({"correct": "none"} if auto else {one: given[several_of][0] for one, several_of in _SINGLE.items()}),
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
    default = ("2,4,8", "binary,ternary", "0,1,2", "none,bias,moments") if auto else ("4", "binary", "0", DEFAULT)
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
    say("* best, + frontier of agreement, latency and bits of spikes an image; look-ahead 'delay' in steps, KL in nats")


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
    for missed in {what_is_missed(neuron.spikes): None for neuron in snn.neurons.values()}:
        if missed:
            say(missed)
    following = f"{typed('speedysnn', 'analyze', output)} --data ... -o report"
    say(f"saved {output}; latency {snn.latency} steps. Next: {following}", "bold")


def inspect_command(
    model: Model,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Images for the example input.")] = None,
    normalize: Normalize = None,
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", help="Shape of one input instead of data, such as 3,224,224.")
    ] = None,
    allow_hybrid: AllowHybrid = False,
    keep_analog: KeepAnalog = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", help=f"List what does not fit a platform instead: {', '.join(PROFILES)}; also NET.snn."
        ),
    ] = None,
    problems: Annotated[bool, typer.Option("--problems", help="List only what cannot be converted.")] = False,
    overwrite: Overwrite = False,
    json: JsonFile = None,
) -> int:
    """Say how every operator would be converted, where it is, and what to change.

    Exit code 0: everything converts; 1: something does not; 2: a mistake in the command.

    \b
    Example: speedysnn inspect torchvision:resnet18 --input-shape 3,64,64
             speedysnn inspect net.py:make -c net.pth -d npz:images.npz --problems
             speedysnn inspect net.py:make --input-shape 3,32,32 --json report.json
             speedysnn inspect digits.snn --profile speck
    """  # noqa: D301 - \b keeps the lines apart
    check_json(json, overwrite)
    if profile is not None and Path(model).is_dir():
        return _platform(_program_of(Path(model), profile), profile, json)
    if (data is None) == (input_shape is None):
        raise InputError("give the example input: either --data, or --input-shape such as 3,32,32")
    example = torch.randn(2, *_shape(input_shape)) if input_shape else _images(str(data), normalize)
    source = model_of(model, checkpoint, num_classes)
    kept = tuple(keep_analog or ())
    if profile is not None:
        snn = to_spiking(source.model, example, timesteps=4, keep_analog=kept)
        find_profile(profile)
        return _platform(chip_of(snn, (8, 16, None), "generic", normalize).program, profile, json)
    report = inspect_network(source.model, example, allow_hybrid=allow_hybrid, keep_analog=kept)
    write_json(json, report.to_json())
    if json != "-":
        _show_report(report, problems)
    return 0 if report.supported else 1


def _program_of(folder: Path, profile: str) -> Program:
    """The integer network in a folder: a chip, or a spiking network in the bits of the profile."""
    made = find_profile(profile)
    if is_chip(folder):
        return load_chip(folder).program
    bits = (min(8, made.weight_bits), min(32, made.state_bits), "layer" if made.one_scale else "channel")
    return chip_of(network_of(folder), bits, "generic", None).program


def _platform(program: Program, profile: str, json: str | None) -> int:
    """Say what of an integer network does not fit a platform; the exit code."""
    found = misfits(program, profile)
    rows: list[dict[str, Any]] = [vars(item) for item in found]
    write_json(json, {"profile": profile, "sources": list(find_profile(profile).sources), "misfits": rows})
    if json != "-":
        for item in found:
            say(escape(f"{item.layer}: {item.what}; {item.advice}"))
        for source in find_profile(profile).sources:
            say(escape(f"limits from {source}"))
        verdict = f"{len(found)} things do not fit {profile}" if found else f"it fits {profile}"
        say(verdict, "bold red" if found else "bold green")
    return 1 if found else 0


def _shape(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--input-shape: expected whole numbers such as 3,32,32 (without the batch), got {text!r}")
    return [int(part) for part in parts]


def _images(data: str, normalize: str | None) -> torch.Tensor:
    return next(iter_batches(data_of(data, "train", normalize, 2, 0))).inputs[0]


def _show_report(report: Report, problems: bool) -> None:
    rows = report.problems if problems else report.rows
    if rows:
        table(
            f"{report.network}: {len(report.rows)} operators, read by torch.{report.tracer}",
            ("layer", "operator", "treatment", "source", "neurons", "operations", "state"),
            [
                (escape(row.path), escape(row.operator), f"[{COLOURS[row.treatment]}]{row.treatment}[/]",
                 escape(row.source), f"{row.neurons:,}", f"{row.operations:,}", f"{row.state:,}")
                for row in rows
            ],
            left=4,
        )  # fmt: skip
    for (treatment, accuracy, why, advice), count in _reasons(rows).items():
        said = ", ".join(word for word in (treatment, accuracy) if word)
        say(escape(f"{said}: {count} x {why}") + (escape(f". To do: {advice}") if advice else ""))
    never = f"; never called: {', '.join(report.never_called)}" if report.never_called else ""
    say(f"{report.activations_found} activation modules found, {report.neurons} neuron layers placed{never}")
    total = report.frame[["neurons", "operations", "state"]].sum()
    say(f"one image: {total.neurons:,} neurons, {total.operations:,} operations a step, {total.state:,} values kept")
    say(_verdict(report), "bold green" if report.supported else "bold red")


def _reasons(rows: Sequence[Row]) -> Counter[tuple[str, str, str, str]]:
    """How often each treatment is given for each reason, the first met first."""
    return Counter((row.treatment, row.accuracy, row.why, row.advice) for row in rows)


def _verdict(report: Report) -> str:
    """What can be done with the network, in a line."""
    kinds = report.frame.treatment.value_counts()
    hybrid, unsupported = int(kinds.get("hybrid", 0)), int(kinds.get("unsupported", 0))
    if unsupported:
        return f"{unsupported} operators cannot be converted"
    if hybrid and not report.allow_hybrid:
        return f"{hybrid} operators need an analog unit: it converts with --allow-hybrid"
    return f"everything converts, {hybrid} operators on an analog unit" if hybrid else "everything converts"
