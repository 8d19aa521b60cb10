"""`speedysnn analyze`: where the accuracy goes, layer by layer, and what to do."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from speedysnn.analysis import NoiseReport, Sensitivity, measure_cost, measure_noise, measure_sensitivity, sweep
from speedysnn.analysis.memory import DEFAULT_MIB
from speedysnn.analysis.report import Advice, CommandNames, filled
from speedysnn.analysis.report.page import Extras
from speedysnn.cli.options import (
    Data,
    DelayText,
    Device,
    JsonFile,
    Limit,
    Network,
    NormalizeNet,
    Overwrite,
    Seed,
    SourceNet,
    Spikes,
    Split,
    configure,
    data_of,
    network_of,
    normalize_of,
    reference_of,
    seeded,
    several,
    steps_of,
)
from speedysnn.cli.output import cell, check_json, check_report, percent, say, table, write_json
from speedysnn.cli.process import hand_freed_memory_back
from speedysnn.data.images import ImageData
from speedysnn.errors import InputError

WORST = 10  # layers that the table shows
PARTS = ("clip", "round", "propagated", "temporal")  # shown always, and weights where they were rounded


def command(
    network: Network,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report.")],
    split: Split = "test",
    source: SourceNet = None,
    sweep_steps: Annotated[str | None, typer.Option("--sweep", help="Also measure these T, such as 1,2,4,8.")] = None,
    sensitivity: Annotated[
        int | None,
        typer.Option("--sensitivity", help="Also measure, on this many images, what each layer costs at the output."),
    ] = None,
    confirm: Annotated[
        int | None,
        typer.Option("--confirm", help="Measure the best changes again, on this many images after those."),
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Also count operations and energy beside a quantized rival.")
    ] = False,
    detail: Annotated[bool, typer.Option("--full", help="Also measure correlations across channels.")] = False,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            help=f"MiB beside the weights, {DEFAULT_MIB:g} if left out, more for a large network; where short, "
            "neurons and --sensitivity's images are sampled by the seed. Freed memory is then handed back at once.",
        ),
    ] = None,
    tried: Annotated[
        int,
        typer.Option("--try", help="Images on which settings that may help are tried; 0 to try nothing.", min=0),
    ] = 64,
    weight_bits: Annotated[
        int | None, typer.Option(help="Measure with weights of these bits, rounded as for a chip.")
    ] = None,
    timesteps: Annotated[int | None, typer.Option("--timesteps", "-T", help="Another T, thresholds kept.")] = None,
    delay: DelayText = None,
    spikes: Spikes = None,
    normalize: NormalizeNet = None,
    limit: Limit = None,
    device: Device = "cpu",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: JsonFile = None,
) -> None:
    """Measure every layer's noise against the source, split it by cause, and write the report.

    \b
    Example: speedysnn analyze digits.snn -d digits -o report
             speedysnn analyze net.snn -d npz:images.npz -o report --sweep 1,2,4,8,16
             speedysnn analyze net.snn -d npz:images.npz -o report --sensitivity 256 --confirm 1024 --cost
             speedysnn analyze tuned.snn --source net.snn -d npz:images.npz -o after --delay 1
    """  # noqa: D301 - \b keeps the lines apart
    check_json(json, overwrite, output)
    check_report(output, overwrite)
    seeded(seed)
    steps = several(sweep_steps, "--sweep", steps_of) if sweep_steps is not None else []
    snn = network_of(network, device)
    configure(snn, timesteps, delay, spikes)
    reference = reference_of(source, snn, device)
    images = data_of(data, split, normalize_of(snn, normalize), limit, seed)
    more = others(images, sensitivity, confirm)
    if memory is not None:
        hand_freed_memory_back()
    noise = measure_noise(
        snn, images, reference, detail="full" if detail else "standard", memory_mib=memory, seed=seed, progress=True,
        try_settings=tried, weight_bits=weight_bits,
    )  # fmt: skip
    given = {"-T": timesteps, "--delay": delay, "--spikes": spikes, "--normalize": normalize}
    options = {key: str(value) for key, value in given.items() if value is not None}
    names = CommandNames(str(network), data, None if source is None else str(source), options)
    noise = replace(noise, advice=filled(noise.advice, names))
    swept = sweep(snn, images, steps, progress=True) if steps else None
    found = None
    if sensitivity is not None:
        found = measure_sensitivity(
            snn, images, limit=sensitivity, confirm=more, progress=True, memory_mib=memory, seed=seed
        )
        found = replace(found, names=names)
    extras = Extras(swept, found, measure_cost(snn, images, progress=True) if cost else None)
    noise.save(output, sweep=swept, sensitivity=found, cost=extras.cost)
    write_json(json, {**noise.to_json(), **extras.to_json()})
    if json != "-":
        show(noise)
        if found is not None:
            show_sensitivity(found)
        say(f"report: {output / 'report.html'}", "bold")


def others(images: ImageData, sensitivity: int | None, confirm: int | None) -> ImageData | None:
    """Take the images after those that `--sensitivity` takes.

    Returns:
        The images for `--confirm`; None without it.

    Raises:
        InputError: there are not so many.
    """
    if confirm is None:
        return None
    if sensitivity is None or confirm < 1 or sensitivity + confirm > len(images):
        raise InputError(
            f"--confirm: expected a number of at least 1 beside --sensitivity, together at most the {len(images)} "
            f"images there are, got --sensitivity {sensitivity} --confirm {confirm}"
        )
    return images.subset(range(sensitivity, sensitivity + confirm))


def say_advice(advice: Iterable[Advice]) -> None:
    """Print findings one by one, and below each the call and the command, on lines that can be copied whole."""
    for one in advice:
        say(one.text)
        if one.python:
            say(f"    In Python: {one.python}")
        if one.argv:
            say(f"    In the shell: {one.shell}")


def show_sensitivity(found: Sensitivity) -> None:
    """Print what the best changes of single layers bring, and what was sampled."""
    say_advice(found.advice)
    if found.memory is not None:
        say(found.memory.sentence())


def show(noise: NoiseReport) -> None:
    """Print the verdict, the outputs in one line, and a table of the worst layers."""
    say_advice(noise.advice)
    say()
    o = noise.outputs
    say(
        f"{o['images']} images, T={o['timesteps']}, delay {o['delay']}, latency {o['latency']} steps, "
        f"{cell(o['spikes_per_neuron'])} spikes per neuron: accuracy {percent(o['accuracy'])} %, "
        f"quantized {percent(o['twin_accuracy'])} %, source {percent(o['analog_accuracy'])} %"
    )
    if noise.memory is not None:
        say(noise.memory.sentence())
    worst = noise.layers.sort_values("sqnr_db").head(WORST)
    parts = (*PARTS, "weights") if "weight_bits" in o else PARTS
    rows = [
        (cell(row.layer), cell(row.sqnr_db, 1), cell(row.twin_sqnr_db, 1), cell(row.floor_db, 1), cell(row.gain, 3),
         cell(row.rate, 3), *(cell(getattr(row, f"share_{part}")) for part in parts))
        for row in worst.itertuples()
    ]  # fmt: skip
    columns = ("layer", "SQNR dB", "quantized", "floor", "gain", "rate", *parts)
    table(f"the {len(rows)} layers with the most noise; shares of the squared error by cause", columns, rows)
