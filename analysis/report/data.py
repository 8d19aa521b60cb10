"""What the page takes: tables, advice and JSON, by protocol, so that a result may write itself without a circle.

Advice as data: what was found, the Python call that acts on it, and the command that does the same.

Figures in a verdict's sentences.

What a layer's row has no room for: histograms, neurons by name, steps and channels.
"""

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pandas as pd
import torch

from speedysnn.analysis.noise.layer_totals import Column, LayerTotals, Unit, Units
from speedysnn.analysis.noise.moments import EDGES, Floats, from_powers, law
from speedysnn.analysis.theory.quantization import decibels
from speedysnn.display import plain

NET, DATA = "NET.snn", "DATA"  # in commands, until the command line puts in the real ones


@dataclass(frozen=True)
class CommandNames:
    """The names that a command is filled with.

    Attributes:
        net: the network's file.
        data: the data's spec.
        source: the source network's file.
        options: option -> value that the measurement was made with; a command that sets one itself keeps its own.
    """

    net: str = NET
    data: str = DATA
    source: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Advice:
    """One finding and, where something can be done about it, how.

    Attributes:
        text: whole sentences: what was measured, and what to do.
        python: the call that does it, "" where there is none.
        argv: the command of the command line that does it, word by word, as `subprocess.run` takes it; empty where
            there is none. Until names are filled in it reads the network `NET` and the data `DATA`.
    """

    text: str
    python: str = ""
    argv: tuple[str, ...] = ()

    @property
    def shell(self) -> str:
        """The command as a shell takes it; "" where there is none."""
        return shlex.join(self.argv)

    def sentence(self) -> str:
        """Everything in one paragraph of plain text."""
        parts = [self.text]
        if self.python:
            parts.append(f"In Python: {self.python}.")
        if self.argv:
            parts.append(f"In the shell: {self.shell}.")
        return " ".join(parts)

    def after(self, fact: str) -> "Advice":
        """The same advice with the fact that leads to it in front."""
        return replace(self, text=f"{fact} {self.text}")

    def filled(self, names: CommandNames) -> "Advice":
        """The same advice with the real names and options in its command."""
        if not self.argv:
            return self
        program, command, _, _, _, *own = self.argv  # as `command_words` puts them
        given = {"-d": names.data} | ({} if names.source is None else {"--source": names.source})
        given |= {key: value for key, value in names.options.items() if key not in own}
        carried = [word for pair in given.items() for word in pair]
        return replace(self, argv=(program, command, names.net, *carried, *own))

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"text": self.text, "python": self.python, "argv": list(self.argv)}


def command_words(command: str, *options: str) -> tuple[str, ...]:
    """A command on the network and its data, word by word."""
    return ("speedysnn", command, NET, "-d", DATA, *options)


def filled(advice: Iterable[Advice], names: CommandNames) -> tuple[Advice, ...]:
    """All advice with the real names in its commands."""
    return tuple(one.filled(names) for one in advice)


def rendered(advice: Iterable[Advice]) -> tuple[str, ...]:
    """One paragraph of plain text for each advice."""
    return tuple(one.sentence() for one in advice)


def db(value: float) -> str:
    """Decibels, undefined and infinite ones in words."""
    if math.isnan(value):
        return "an undefined number of dB"
    return f"{value:.1f} dB" if math.isfinite(value) else "infinitely many dB (no error)"


def percent(value: float) -> str:
    """Of a fraction; 100 % only where it is 1."""
    return f"{100 * value:.1f} %" if value < 0.9995 or value >= 1 else f"{100 * value:.2f} %"


def steps(number: int) -> str:
    """Time steps."""
    return f"{number} step" if number == 1 else f"{number} steps"


@dataclass(frozen=True, eq=False)
class LayerDetail:
    """More of one layer.

    Attributes:
        layer: its name.
        edges: bin edges of both histograms in steps theta/T, (65,).
        rounding: counts of Q(z) - z over elements inside the range, exact zeros of z left out: (66,), the first below
            and the last from the edges on.
        noise: counts of r - a over elements whose error is not exactly 0, (66,) alike.
        expected: shares of the 66 bins that the uniform law [v_init - 1, v_init] gives `rounding`.
        units: dead and saturated neurons, counted and by name.
        spikes_per_step: events of every step, all images; None where no trains were unrolled.
        by_channel: the columns of `channels`: theta, v_init, sqnr_db, in_range, and the error's bias and variance
            (activation), skew and kurtosis.
    """

    layer: str
    edges: Floats
    rounding: Floats
    noise: Floats
    expected: Floats
    units: Units
    spikes_per_step: tuple[int, ...] | None
    by_channel: Mapping[str, Any] = field(repr=False)

    @property
    def channels(self) -> pd.DataFrame:
        """One row a channel."""
        return pd.DataFrame(self.by_channel)

    def to_json(self) -> dict[str, Any]:
        """Give the details as strict JSON data.

        Returns:
            Data by name; None for what is undefined or was not measured.
        """
        units = self.units
        return {
            "rounding": [int(x) for x in self.rounding],
            "noise": [int(x) for x in self.noise],
            "expected": [_short(x) for x in self.expected],
            "dead": [_unit(unit, "source_peak") for unit in units.first_dead],
            "saturated": [_unit(unit, "share") for unit in units.worst_saturated],
            "spikes_per_step": None if self.spikes_per_step is None else list(self.spikes_per_step),
            "channels": {str(name): [_short(plain(x)) for x in column] for name, column in self.channels.items()},
        }


def detail_of(layer: LayerTotals) -> LayerDetail:
    """Compute the details of a layer.

    Returns:
        Histograms, neurons by name, steps and channels.
    """
    weights = layer.channel["granular"].numpy()
    reached = law(EDGES, layer.starts(), weights / max(1.0, float(weights.sum())))
    expected = torch.tensor([reached[0], *(reached[1:] - reached[:-1]), weights.any() - reached[-1]])
    rounding, noise = layer.histogram("rounding"), layer.histogram("noise")
    steps = None if layer.pulses is None else tuple(layer.pulses)
    return LayerDetail(layer.name, EDGES, rounding, noise, expected.numpy(), layer.units, steps, _by_channel(layer))


def _by_channel(layer: LayerTotals) -> dict[str, Any]:
    """What is known of every channel, column by column."""
    channel, count = layer.channel, len(layer.channel["e"])
    n = layer.n / count
    moments = from_powers(n, torch.stack([channel["e" * k] for k in (1, 2, 3, 4)]).numpy())
    pairs = zip(channel["aa"].tolist(), channel["ee"].tolist(), strict=True)
    return {
        "channel": range(count),
        "theta": layer.theta.expand(count).numpy(),
        "v_init": layer.starts(),
        "sqnr_db": [decibels(signal, noise) for signal, noise in pairs],
        "in_range": (channel["in_range"] / n).numpy(),
        "bias": moments.mean,
        "variance": moments.variance,
        "skew": moments.skew,
        "kurtosis": moments.kurtosis,
    }


def _short(value: Any) -> Any:
    """Six digits of a number, which a histogram or a channel's mean does not have more of."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _unit(unit: Unit, value: str) -> dict[str, Any]:
    return {"name": str(unit), "index": list(unit.index), value: _short(unit.value)}


class MemoryTold(Protocol):
    """What a measurement held in memory, told in a sentence."""

    def sentence(self) -> str:
        """In words."""
        ...


class NoiseTables(Protocol):
    """The tables of a noise report; `NoiseReport` has them."""

    @property
    def layers(self) -> pd.DataFrame:
        """One row a neuron layer."""
        ...

    @property
    def outputs(self) -> Mapping[str, Any]:
        """The whole network's figures."""
        ...

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What was found and what to do."""
        ...

    @property
    def verdict(self) -> tuple[str, ...]:
        """The advice as plain sentences."""
        ...

    @property
    def columns(self) -> Mapping[str, Column]:
        """What each column of `layers` means and how it is shown."""
        ...

    @property
    def details(self) -> Mapping[str, LayerDetail]:
        """By layer, what its row has no room for."""
        ...

    @property
    def memory(self) -> MemoryTold | None:
        """What the measurement held; None where not measured."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The report as strict JSON data."""
        ...


class SensitivityTables(Protocol):
    """The tables of a sensitivity measurement; `Sensitivity` has them."""

    @property
    def table(self) -> pd.DataFrame:
        """One row a layer and mode."""
        ...

    @property
    def gains(self) -> pd.DataFrame:
        """One row a layer and change."""
        ...

    @property
    def outputs(self) -> Mapping[str, Any]:
        """The whole network's figures."""
        ...

    @property
    def temporal_gap_db(self) -> float:
        """SQNR(twin) - SQNR(spiking) at the output, dB."""
        ...

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What was found and what to do."""
        ...

    @property
    def verdict(self) -> tuple[str, ...]:
        """The advice as plain sentences."""
        ...

    @property
    def memory(self) -> MemoryTold | None:
        """What the measurement held; None where not measured."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Everything as strict JSON data."""
        ...
