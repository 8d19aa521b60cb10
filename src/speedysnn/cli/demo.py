"""`speedysnn demo`: the whole path on the bundled digits, in about a minute."""

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from speedysnn import artifact, data
from speedysnn.analysis import NoiseReport, measure_noise
from speedysnn.analysis.report import CommandNames, filled
from speedysnn.assets.digits import load_digits_net
from speedysnn.cli.analyze import say_advice
from speedysnn.cli.options import Seed, seeded
from speedysnn.cli.output import cell, check_report, note, percent, say, table
from speedysnn.convert import to_spiking
from speedysnn.errors import InputError
from speedysnn.finetune import Config, fit

T = 4
QUANTIZED, SPIKING, BATCH = 4, 3, 100  # half the work of 8, 4, 50, and the same held-out loss


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the report and the networks; numbered if it is there.")
    ] = Path("speedysnn-demo"),
    pool: Annotated[str, typer.Option(help="Which bundled network: avg or max pooling.")] = "max",
    seed: Seed = 0,
) -> None:
    """Convert a trained digits network at T=4, measure, tune and measure again; writes the report and the networks.

    Example: speedysnn demo -o speedysnn-demo
    """
    seeded(seed)
    folder, begin = _free(output), time.monotonic()
    check_report(folder, overwrite=False)
    train, test = data.load("digits", "train"), data.load("digits", "test")
    note(f"1/4 converting the bundled {pool}-pool network at T={T}: thresholds from {len(train)} training images")
    origin = {"model": f"digits, {pool}-pool", "data": "digits"}
    snn = to_spiking(load_digits_net(pool), train, timesteps=T, provenance=origin, progress=True)
    artifact.save(snn, folder / "converted.snn")
    source = copy.deepcopy(snn)
    note(f"2/4 measuring its noise on {len(test)} test images")
    before = measure_noise(snn, test, progress=True)
    note(f"3/4 tuning thresholds and weights without labels: {QUANTIZED} epochs quantized, {SPIKING} through time")
    config = Config(
        epochs_quantized=QUANTIZED,
        epochs_spiking=SPIKING,
        batch_size=BATCH,
        augment="shift",
        layer_match_weight=1.0,
        seed=seed,
    )
    fit(snn, train, config=config, on_epoch=_line, progress=True)
    artifact.save(snn, folder / "tuned.snn")
    note("4/4 measuring again, against the source network")
    after = measure_noise(snn, test, source, progress=True)
    before = replace(before, advice=filled(before.advice, CommandNames(str(folder / "converted.snn"), "digits")))
    tuned, converted = str(folder / "tuned.snn"), str(folder / "converted.snn")
    after = replace(after, advice=filled(after.advice, CommandNames(tuned, "digits", converted)))
    before.save(folder / "before")
    after.save(folder)
    _show(before, after)
    say(f"\nreport           {folder / 'report.html'}   (before tuning: {folder / 'before' / 'report.html'})")
    say(f"tuned network    {folder / 'tuned.snn'}")
    say(f"done in {time.monotonic() - begin:.0f} s")


def _line(row: dict[str, Any]) -> None:
    note(f"    {row['stage']:9} epoch {row['epoch']}: held-out loss {row['held_out_loss']:.4f}")


def _free(wanted: Path) -> Path:
    """Find the folder, or the first numbered one that is not there yet.

    Returns:
        A folder that does not exist.

    Raises:
        InputError: a file is there, or the path ends in no name of its own.
    """
    if wanted.is_file() or wanted.name in ("", ".."):
        found = "a file is there" if wanted.is_file() else "that is no new name"
        raise InputError(f"--output {wanted}: {found}; give the name of a new folder")
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _show(before: NoiseReport, after: NoiseReport) -> None:
    o, p = before.outputs, after.outputs
    head = f"T={o['timesteps']}, delay {o['delay']}, latency {o['latency']} steps, {o['images']} test images"
    rows = [
        ("accuracy % (source " + percent(o["analog_accuracy"]) + ")", percent(o["accuracy"]), percent(p["accuracy"])),
        ("agreement with the source %", percent(o["agreement"]), percent(p["agreement"])),
        ("output SQNR dB, higher is better", cell(o["sqnr_db"], 1), cell(p["sqnr_db"], 1)),
        ("relative error of the logits", cell(o["logit_error"], 3), cell(p["logit_error"], 3)),
        ("spikes per neuron", cell(o["spikes_per_neuron"]), cell(p["spikes_per_neuron"])),
    ]
    table(head, ("", "before", "after"), rows)
    by_name = after.layers.set_index("layer").to_dict("index")
    layers = [(cell(row["layer"]), cell(row["sqnr_db"], 1), cell(by_name[row["layer"]]["sqnr_db"], 1),
               cell(row["share_temporal"]), cell(by_name[row["layer"]]["share_temporal"]))
              for row in before.layers.to_dict("records")]  # fmt: skip
    say()
    table("layer by layer", ("layer", "SQNR dB before", "after", "temporal share before", "after"), layers)
    say("\nverdict after tuning", "bold")
    say_advice(after.advice)
