"""The one place where a sum and a column of a noise measurement are declared.

A sum is a row of `SUMS`: kind, unit, meaning, and its definition in torch over the quantities of a block. The
compiled kernels take its place in their arrays from here (`index`). A column of `NoiseReport.layers` is a row of
`COLUMNS`: how it is shown, what it means, and the function that computes it from a layer's sums.

Both are dictionaries, and an entry of a user wins over a built-in one. A new column of existing sums is one entry, a
new sum is another:

    >>> from speedysnn.analysis import COLUMNS, SUMS, Column, Sum
    >>> SUMS["absolute"] = Sum("total", "activation", "Absolute error.", lambda block: block.e.abs())
    >>> COLUMNS["mean_absolute_error"] = Column(
    ...     "activation", "Mean absolute error.", False, "0", value=lambda layer: layer.total["absolute"] / layer.n
    ... )
    >>> del COLUMNS["mean_absolute_error"], SUMS["absolute"]
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from speedysnn.analysis.noise import Column as Column
from speedysnn.analysis.noise import Format, Kind
from speedysnn.analysis.noise import Sum as Sum
from speedysnn.analysis.noise.layer_totals import ratio
from speedysnn.analysis.noise.moments import histogram, lateness, starts
from speedysnn.analysis.output_metrics import OUTPUTS as OUTPUTS
from speedysnn.analysis.theory.quantization import decibels


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum of products of two tensors of one shape."""
    return torch.dot(x.reshape(-1), y.reshape(-1))


# The order within a kind is the order in the kernels' arrays. "eee" is a power of e, "gg" of the rounding error.
SUMS: dict[str, Sum] = {
    "a": Sum("channel", "activation", "Source activation, absolute.", lambda b: b.a.abs()),
    "aa": Sum("channel", "activation^2", "Source activation squared.", lambda b: b.a * b.a),
    "s": Sum("channel", "activation", "Source activation with its sign.", lambda b: b.a),
    "e": Sum("channel", "activation", "Error.", lambda b: b.e),
    "ee": Sum("channel", "activation^2", "Error squared.", lambda b: b.e * b.e),
    "eee": Sum("channel", "activation^3", "Error, third power.", lambda b: b.e * b.e * b.e),
    "eeee": Sum("channel", "activation^4", "Error, fourth power.", lambda b: (b.e * b.e) ** 2),
    "in_range": Sum("channel", "elements", "Elements whose z lies inside the range.", lambda b: b.in_range),
    "granular": Sum("channel", "elements", "The same with the offset, zeros left out.", lambda b: b.granular),
    "z": Sum("channel", "activation", "Source's drive.", lambda b: b.z),
    "zz": Sum("channel", "activation^2", "Source's drive squared.", lambda b: b.z * b.z),
    "d": Sum("channel", "activation", "Error of the drive, z' - z.", lambda b: b.drift),
    "dd": Sum("channel", "activation^2", "Error of the drive squared.", lambda b: b.drift * b.drift),
    "zd": Sum("channel", "activation^2", "Source's drive times its error.", lambda b: b.z * b.drift),
    "o": Sum("channel", "activation", "Error of the quantizer alone, Q(z) - a.", lambda b: b.own),
    "ao": Sum("channel", "activation^2", "Source times error of the quantizer alone.", lambda b: b.a * b.own),
    "propagated": Sum(
        "channel", "activation^2", "Propagated part times error, with what rounded weights add to it.",
        lambda b: b.propagated * b.e,
    ),
    "weights": Sum("channel", "activation^2", "The part of rounded weights.", lambda b: b.weights * b.e, "rounded"),
    "ar": Sum("total", "activation^2", "Source times output.", lambda b: _dot(b.a, b.r)),
    "rr": Sum("total", "activation^2", "Output squared.", lambda b: _dot(b.r, b.r)),
    "twin": Sum(
        "total", "activation^2", "Error of the quantized reading, squared.", lambda b: _dot(b.twin_error, b.twin_error)
    ),
    "miss": Sum("total", "activation^2", "What the parts miss, squared.", lambda b: _dot(b.miss, b.miss)),
    "clip": Sum("total", "activation^2", "Clipping times error.", lambda b: _dot(b.clip, b.e)),
    "round": Sum("total", "activation^2", "Rounding times error.", lambda b: _dot(b.round, b.e)),
    "temporal": Sum("total", "activation^2", "Temporal part times error.", lambda b: _dot(b.temporal, b.e)),
    "g": Sum("total", "steps", "Rounding error inside the range.", lambda b: b.gap[b.granular]),
    "gg": Sum("total", "steps^2", "The same squared.", lambda b: b.gap[b.granular] ** 2),
    "ggg": Sum("total", "steps^3", "The same, third power.", lambda b: b.gap[b.granular] ** 3),
    "gggg": Sum("total", "steps^4", "The same, fourth power.", lambda b: b.gap[b.granular] ** 4),
    "lag0": Sum("total", "spikes^2", "Train's error squared.", lambda b: b.lag_error * b.lag_error, "train"),
    "lag1": Sum(
        "total", "spikes^2", "Train's error times that of the next step.",
        lambda b: b.lag_error[1:] * b.lag_error[:-1], "train",
    ),
    "saturated": Sum("count", "elements", "Elements with the largest count.", lambda b: b.fired.abs() == b.max_count),
    "silent": Sum("count", "elements", "Elements with output 0.", lambda b: b.fired == 0),
    "source_silent": Sum("count", "elements", "Elements with source activation 0.", lambda b: b.a == 0),
    "outside": Sum("count", "elements", "Elements with a temporal error.", lambda b: b.fired != b.reached),
    "fired": Sum("count", "elements", "Elements with a spike.", lambda b: b.when != 0, "train"),
    "first": Sum("count", "steps", "Steps of the first spikes.", lambda b: b.when, "train"),
    "lagged": Sum("count", "elements", "Elements that lag0 and lag1 are about.", lambda b: b.lag_range, "train"),
    "started": Sum("count", "images", "Images with a spike in the layer.", lambda i: starts(i.when)[0], "image"),
    "start": Sum("count", "steps", "Steps of the images' first spikes.", lambda i: starts(i.when)[1], "image"),
    "rounding": Sum("histogram", "elements", "Rounding error in steps.", lambda b: histogram(b.gap, b.granular)),
    "noise": Sum("histogram", "elements", "Error in steps, 0 left out.", lambda b: histogram(b.e / b.step, b.e != 0)),
    "fires": Sum("unit", "images", "Images with a spike.", lambda i: (i.fired != 0).sum(0).to(torch.int32), "image"),
    "full": Sum(
        "unit", "images", "Images with all spikes it can fire.",
        lambda i: (i.fired.abs() == i.max_count).sum(0).to(torch.int32), "image",
    ),
    "peak": Sum(
        "unit", "activation", "Largest |source activation|; of two passes the larger one is kept.",
        lambda i: i.a.abs().amax(0).to(torch.float32), "image",
    ),
    "pulses": Sum(
        "step", "events", "Spike events.", lambda i: torch.stack([torch.count_nonzero(x) for x in i.outputs]), "image"
    ),
}  # fmt: skip
BUILT_IN_SUMS: Mapping[str, Sum] = MappingProxyType(dict(SUMS))  # what the kernels compute, whatever a user declares


def names_of(kind: Kind) -> tuple[str, ...]:
    """List the built-in sums of a kind.

    Args:
        kind: see `Sum`.

    Returns:
        Their names, in the order in which the kernels' arrays hold them; sums of rounded networks are in none.
    """
    return tuple(name for name, row in BUILT_IN_SUMS.items() if row.kind == kind and row.scope != "rounded")


CHANNELS, TOTALS, COUNTS, HISTOGRAMS = (names_of(kind) for kind in ("channel", "total", "count", "histogram"))
UNITS = names_of("unit")
FOLDER = Path(__file__).parent  # compiled code below it is renewed when a file here changes
_SUMMED = CHANNELS + TOTALS + COUNTS
ELEMENT_SUMS = tuple(name for name in _SUMMED if BUILT_IN_SUMS[name].scope == "element")
TRAIN_SUMS = tuple(name for name in _SUMMED if BUILT_IN_SUMS[name].scope == "train")


def index(name: str) -> int:
    """Find a built-in sum's place in the array of its kind.

    Args:
        name: of the sum.

    Returns:
        The place, from 0 on.
    """
    return names_of(BUILT_IN_SUMS[name].kind).index(name)


def indices(*names: str) -> Sequence[int]:
    """Find the places of several built-in sums; see `index`.

    Returns:
        One place a name.
    """
    return tuple(index(name) for name in names)


_SILENT = "the source activation is zero throughout"
_EXACT = "the layer has no error"
_CONSTANT = "the error is the same throughout"
_EMPTY = "no value lies inside the range"
_FEW = "fewer than two different values inside the range"
_STEPLESS = 'a look-ahead of "full", which is read without its steps'
_FULL = 'not measured: detail="full" does'

# One entry a column of `NoiseReport.layers`, in the table's order. a: the source's activation; z: its pre-activation;
# z': the mean over time of what the neuron integrates, offset in it and times amplitude / theta; r: its mean output
# over T steps; e = r - a; every sum runs over all elements of all images.
COLUMNS: dict[str, Column] = {
    "layer": Column("name", "Name of the neuron layer, in execution order.", value=lambda x: x.name),
    "kind": Column(
        "name", 'Spike kind: "binary", "ternary", "graded:N" or "power2:N".', value=lambda x: x.neuron.spikes
    ),
    "reads": Column(
        "names", "The neuron layers whose spikes reach this one directly; empty for the first.",
        value=lambda x: ", ".join(x.reads),
    ),
    "theta_mean": Column("activation", "Mean threshold of the layer.", value=lambda x: float(x.theta.mean())),
    "theta_min": Column("activation", "Smallest threshold.", value=lambda x: float(x.theta.min())),
    "theta_max": Column("activation", "Largest threshold.", value=lambda x: float(x.theta.max())),
    "timesteps": Column("steps", "T.", None, value=lambda x: x.neuron.timesteps),
    "v_init": Column(
        "fraction of theta", "Mean initial membrane; 0.5 rounds, 0 floors.",
        value=lambda x: float(x.neuron.v_init.detach().mean()),
    ),
    "delay": Column("steps", 'Look-ahead, or "full" for T.', value=lambda x: x.neuron.delay),
    "n": Column("elements", "Neurons times images.", value=lambda x: x.n),
    "sqnr_db": Column(
        "dB", "Signal to noise of the spiking layer: 10 log10(sum a^2 / sum e^2).", True, "its floor_db",
        value=lambda x: x.sqnr_db, format="decibels", title="SQNR (dB)", missing=_SILENT, summary=True,
    ),
    "floor_db": Column(
        "dB", "What the step theta/T (A/T with an amplitude A) alone allows, clipping and timing left out.", True,
        "more T, or a smaller theta",
        value=lambda x: x.floor_db, format="decibels", title="floor (dB)", missing=_SILENT, summary=True,
    ),
    "gap_db": Column(
        "dB", "floor_db - sqnr_db: what is lost beyond the step.", False, "0", value=lambda x: x.floor_db - x.sqnr_db,
        format="decibels", missing="floor and SQNR are both infinite, or one is undefined",
    ),
    "twin_sqnr_db": Column(
        "dB", "The same for the quantized reading, in which time does no harm.", True, "its floor_db",
        value=lambda x: decibels(x.total["aa"], x.total["twin"]),
        format="decibels", title="quantized (dB)", missing=_SILENT, summary=True,
    ),
    "gain": Column(
        "ratio", "sum a r / sum a^2; below 1 the layer answers too weakly.", None, "1",
        value=lambda x: ratio(x.total["ar"], x.total["aa"]), missing=_SILENT,
    ),
    "drive_gain": Column(
        "ratio", "Slope of the regression of z' on z within channels; below 1 earlier layers have shrunk the drive.",
        None, "1", value=lambda x: x.drive_gain, missing="the source's drive is the same throughout every channel",
    ),
    "own_gain": Column(
        "ratio", "Slope of the regression of Q(z) on a within channels: what the quantizer of this layer alone leaves.",
        None, "1", value=lambda x: x.own_gain, missing="the source's activation is the same throughout every channel",
    ),
    "cosine": Column(
        "ratio", "sum a r / (|a| |r|), blind to a wrong scale, so read it beside gain.", True, "1",
        value=lambda x: ratio(x.total["ar"], math.sqrt(x.total["aa"] * x.total["rr"])),
        missing="the source activation or the spiking output is zero throughout",
    ),
    "rmse_steps": Column(
        "steps theta/T", "Root mean squared error over all elements, in quantizer steps.", False, "rmse_ideal",
        value=lambda x: math.sqrt(x.in_steps(2) / x.n),
    ),
    "rmse_ideal": Column(
        "steps theta/T", "Error of rounding alone; silent elements are exact, so a sparse layer may lie below it.",
        value=lambda x: math.sqrt(float((x.rounding_rmse**2).mean())),
    ),
    "saturated": Column(
        "fraction", "Elements that fired all they could, N spikes in every step.", False, "0",
        value=lambda x: x.counts["saturated"] / x.n, format="percent", summary=True,
    ),
    "silent": Column(
        "fraction", "Elements whose mean output is 0.", None, "source_silent",
        value=lambda x: x.counts["silent"] / x.n, format="percent", summary=True,
    ),
    "source_silent": Column(
        "fraction", "Elements whose source activation is 0.",
        value=lambda x: x.counts["source_silent"] / x.n, format="percent",
    ),
    "rate": Column(
        "events per neuron and step", "Spikes, signed ones included, a graded one counted once.", False,
        value=lambda x: x.events / x.n / x.neuron.timesteps,
    ),
    "rate_ideal": Column(
        "spikes per neuron and step", "mean(a / A), A the amplitude: what carries the source activation.",
        value=lambda x: float((x.channel["a"] / x.step).sum()) / x.n / x.neuron.timesteps,
    ),
    "spikes_per_neuron": Column(
        "events per neuron", "rate times T: all events of one inference.", False, value=lambda x: x.events / x.n,
    ),
    "share_clip": Column(
        "fraction of sum e^2", "Error of the range: clamp(z, 0, N theta) - a.", None,
        value=lambda x: x.share("clip"), format="percent", title="clip", missing=_EXACT, summary=True,
    ),
    "share_round": Column(
        "fraction of sum e^2", "Error of the step: Q(z) - clamp(z, 0, N theta).", None, "1",
        value=lambda x: x.share("round"), format="percent", title="round", missing=_EXACT, summary=True,
    ),
    "share_propagated": Column(
        "fraction of sum e^2", "Error from earlier layers: Q(z') - Q(z), less share_weights.", None,
        value=lambda x: x.propagated_share, format="percent", title="propagated", missing=_EXACT, summary=True,
    ),
    "affine_share": Column(
        "fraction of sum e^2",
        "Part of share_propagated that is lost gain and offset: of every channel's propagated error the fraction of "
        "sum (z' - z)^2 that the least-squares map a z' + b of the channel's drive would remove.",
        False, "0", value=lambda x: x.affine_share, format="percent", title="of it affine", missing=_EXACT,
        summary=True,
    ),
    "share_temporal": Column(
        "fraction of sum e^2", "Error of spike timing in this layer: r - Q(z').", None,
        value=lambda x: x.share("temporal"), format="percent", title="temporal", missing=_EXACT, summary=True,
    ),
    "share_weights": Column(
        "fraction of sum e^2",
        "Error of this layer's own rounded weights: Q(z') - Q(z''), z'' being what the weights before rounding make of "
        "the same spikes; 0 where none were rounded.",
        None, "0", value=lambda x: x.share("weights"), format="percent", title="weights", missing=_EXACT, summary=True,
    ),
    "bias": Column("activation", "Mean error r - a.", None, "0", value=lambda x: x.total["e"] / x.n),
    "bias_share": Column(
        "fraction of sum e^2", "Part that one constant a channel would remove: a bias or v_init.", False, "0",
        value=lambda x: x.bias_share, format="percent", missing=_EXACT,
    ),
    "remaining_share": Column(
        "fraction of sum e^2", "What no constant a channel removes: the channels' variance.", None, "1",
        value=lambda x: x.remaining_share, missing=_EXACT,
    ),
    "bias_gain_db": Column(
        "dB", "SQNR that removing every channel's mean error would add.", False, "0",
        value=lambda x: decibels(1, x.remaining_share), format="decibels", missing=_EXACT,
    ),
    "residual": Column(
        "fraction", "What the parts miss of the measured error, relative RMS; a check on the split.", False, "0",
        value=lambda x: math.sqrt(x.total["miss"] / (x.total["ee"] or 1)),
    ),
    "noise_mean": Column(
        "steps theta/T", "Mean of e over all elements.", None, "0", value=lambda x: float(x.noise.mean),
    ),
    "noise_variance": Column(
        "steps theta/T, squared", "Variance of e over all elements.", False, value=lambda x: float(x.noise.variance),
    ),
    "noise_skew": Column(
        "ratio", "Skew of e: positive where large errors are too high.", None, "0",
        value=lambda x: float(x.noise.skew), missing=_CONSTANT,
    ),
    "noise_kurtosis": Column(
        "ratio", "Kurtosis of e, 3 for a normal law: large where few elements err much.", None,
        value=lambda x: float(x.noise.kurtosis), missing=_CONSTANT,
    ),
    "round_mean": Column(
        "steps theta/T", "Mean of Q(z) - z inside the range, exact zeros of z left out.", None, "v_init - 1/2",
        value=lambda x: float(x.rounding.mean), missing=_EMPTY,
    ),
    "round_variance": Column(
        "steps theta/T, squared", "Variance of the same.", False, "1/12",
        value=lambda x: float(x.rounding.variance), missing=_EMPTY,
    ),
    "round_skew": Column("ratio", "Skew of the same.", None, "0", value=lambda x: float(x.rounding.skew), missing=_FEW),
    "round_kurtosis": Column(
        "ratio", "Kurtosis of the same.", None, "1.8", value=lambda x: float(x.rounding.kurtosis), missing=_FEW,
    ),
    "round_ks": Column(
        "ratio",
        "Kolmogorov-Smirnov distance of the same from the uniform law [v_init - 1, v_init], at the histogram's edges.",
        False, "0", value=lambda x: x.rounding_distance(), missing=_EMPTY,
    ),
    "exact": Column("fraction", "Elements without any error.", True, value=lambda x: int(x.sums["noise"][-1]) / x.n),
    "signal_correlation": Column(
        "ratio", "Correlation of e with a: negative where large values come out too small.", None, "0",
        value=lambda x: x.signal_correlation(), missing="the source activation or the error is the same throughout",
    ),
    "channel_correlation": Column(
        "ratio", "Mean |correlation| of two channels' errors at one place.", False, "0; by chance sqrt(2/pi/places)",
        value=lambda x: x.channel_correlation(), missing=_FULL + "; or fewer than two channels have an error",
    ),
    "channels_compared": Column(
        "channels", "All, or 512 drawn with a fixed seed, fewer where memory is short.",
        value=lambda x: len(x.sums["gram"]) if "gram" in x.sums else None, missing=_FULL,
    ),
    "step_correlation": Column(
        "ratio",
        "Correlation of s[t] - mean drive/theta one step apart, where the mean drive is in range: below 0 where spikes "
        "are spread out, above where they bunch.",
        value=lambda x: x.step_correlation(),
        missing=_FULL + "; or a single step, no value inside the range, or " + _STEPLESS,
    ),
    "units": Column("neurons", "Neurons of one image.", value=lambda x: x.units.count),
    "units_read": Column(
        "neurons", "Of these, how many the next three were counted among; fewer where sampled.",
        value=lambda x: x.units.read,
    ),
    "dead_units": Column("neurons", "Whose mean output was 0 on every image.", None, value=lambda x: x.units.dead),
    "lost_units": Column(
        "neurons", "Dead ones whose source was active on some image.", False, "0", value=lambda x: x.units.lost,
    ),
    "saturated_units": Column(
        "neurons", "That fired all they can on at least half of the images.", False, "0",
        value=lambda x: x.units.saturated,
    ),
    "first_spike": Column(
        "steps", "Mean step of the first spike, 1 to T, over elements that fire.", None,
        value=lambda x: x.if_unrolled(ratio(x.counts["first"], x.counts["fired"])),
        missing="no neuron fired, or " + _STEPLESS,
    ),
    "never_fired": Column(
        "fraction", "Elements without a spike.", None, "source_silent",
        value=lambda x: x.if_unrolled(1 - x.counts["fired"] / x.n), missing=_STEPLESS,
    ),
    "start_up": Column(
        "steps", "First step in which any neuron of the layer fires, mean over images.", False, "1",
        value=lambda x: x.if_unrolled(ratio(x.counts["start"], x.counts["started"])),
        missing="no neuron fired, or " + _STEPLESS,
    ),
    "lateness": Column(
        "steps", "Mean step of all spikes minus (T + 1)/2.", None, "0",
        value=lambda x: x.if_unrolled(lateness(x.pulses or ())),
        missing="a single step, no neuron fired, or " + _STEPLESS,
    ),
    "membrane_outside": Column(
        "fraction",
        "Elements whose last membrane lies outside [0, theta), silent ones below and saturated ones above excepted: "
        "just those with a temporal error. Binary spikes without look-ahead only.", False, "0",
        value=lambda x: x.membrane_outside(), missing="only binary spikes without look-ahead have it",
    ),
}  # fmt: skip


def format_of(name: str) -> Format:
    """Say how a page shows a figure.

    Args:
        name: of a column or an output.

    Returns:
        The format of the column or output of this name; "decibels" for other names that end in _db.
    """
    row = COLUMNS.get(name) or OUTPUTS.get(name)
    return row.format if row is not None else "decibels" if name.endswith("_db") else "number"
