"""What a report is made of, as data: advice, the details of a layer, and the tables that a page takes.

`Advice` is one finding with the Python call and the command that act on it; sentences are made from it last.
`LayerDetail` holds what a layer's row has no room for. The protocols at the end say what the page reads of a result, so
that `NoiseReport` and `Sensitivity` may write themselves as a page without an import circle.
"""

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pandas as pd
import torch

from speedysnn.analysis.noise import Column
from speedysnn.analysis.noise.layer_totals import LayerTotals, Unit, Units
from speedysnn.analysis.noise.moments import EDGES, Floats, from_powers, law
from speedysnn.analysis.theory.quantization import decibels
from speedysnn.display import plain
from speedysnn.kernels import what_is_missed

NET, DATA = "NET.snn", "DATA"  # in commands, until the command line puts in the real ones


@dataclass(frozen=True)
class CommandNames:
    """The names that a command of an advice is filled with.

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
    """One finding and, where something can be done about it, how to do it.

    Attributes:
        text: whole sentences: what was measured, and what to do.
        python: the call that does it, "" where there is none.
        argv: the command of the command line that does it, word by word, as `subprocess.run` takes it; empty where
            there is none. Until names are filled in it reads the network `NET` and the data `DATA`.

    Example:
        >>> from speedysnn.analysis.report import Advice, CommandNames, command_words
        >>> advice = Advice("Let every neuron look one step ahead.", "snn.set_delay(1)",
        ...                 command_words("evaluate", "--delay", "0,1"))
        >>> advice.filled(CommandNames("my net.snn", "digits")).shell
        "speedysnn evaluate 'my net.snn' -d digits --delay 0,1"
        >>> Advice("Let every neuron look one step ahead.", "snn.set_delay(1)").sentence()
        'Let every neuron look one step ahead. In Python: snn.set_delay(1).'
    """

    text: str
    python: str = ""
    argv: tuple[str, ...] = ()

    @property
    def shell(self) -> str:
        """The command as one line for a shell; "" where there is none."""
        return shlex.join(self.argv)

    def sentence(self) -> str:
        """Write the advice as one paragraph of plain text.

        Returns:
            The text, then the call, then the command.
        """
        parts = [self.text]
        if self.python:
            parts.append(f"In Python: {self.python}.")
        if self.argv:
            parts.append(f"In the shell: {self.shell}.")
        return " ".join(parts)

    def after(self, fact: str) -> "Advice":
        """Put the fact that leads to the advice in front of its text.

        Returns:
            A new advice.
        """
        return replace(self, text=f"{fact} {self.text}")

    def filled(self, names: CommandNames) -> "Advice":
        """Put the real names and options into the command.

        Returns:
            A new advice; the same one where there is no command.
        """
        if not self.argv:
            return self
        program, command, _, _, _, *own = self.argv  # as `command_words` puts them
        given = {"-d": names.data} | ({} if names.source is None else {"--source": names.source})
        given |= {key: value for key, value in names.options.items() if key not in own}
        carried = [word for pair in given.items() for word in pair]
        return replace(self, argv=(program, command, names.net, *carried, *own))

    def to_json(self) -> dict[str, Any]:
        """Give the advice as JSON data.

        Returns:
            "text", "python" and "argv".
        """
        return {"text": self.text, "python": self.python, "argv": list(self.argv)}


def command_words(command: str, *options: str) -> tuple[str, ...]:
    """Write a command on the network and its data, word by word.

    Returns:
        Words as `Advice.argv` has them, with `NET` and `DATA` in place of the names.

    Example:
        >>> from speedysnn.analysis.report import command_words
        >>> command_words("evaluate", "--delay", "1")
        ('speedysnn', 'evaluate', 'NET.snn', '-d', 'DATA', '--delay', '1')
    """
    return ("speedysnn", command, NET, "-d", DATA, *options)


def filled(advice: Iterable[Advice], names: CommandNames) -> tuple[Advice, ...]:
    """Put the real names into the commands of all advice.

    Returns:
        New advice, in the same order.
    """
    return tuple(one.filled(names) for one in advice)


def rendered(advice: Iterable[Advice]) -> tuple[str, ...]:
    """Write every advice as one paragraph of plain text.

    Returns:
        The paragraphs, in the same order.
    """
    return tuple(one.sentence() for one in advice)


def db(value: float) -> str:
    """Write decibels with one digit, undefined and infinite ones in words.

    Returns:
        The text.

    Example:
        >>> from speedysnn.analysis.report import db
        >>> db(12.34), db(float("inf"))
        ('12.3 dB', 'infinitely many dB (no error)')
    """
    if math.isnan(value):
        return "an undefined number of dB"
    return f"{value:.1f} dB" if math.isfinite(value) else "infinitely many dB (no error)"


def percent(value: float) -> str:
    """Write a fraction in per cent; "100.0 %" only where it is 1.

    Returns:
        The text.

    Example:
        >>> from speedysnn.analysis.report import percent
        >>> percent(0.5), percent(0.9998), percent(1.0)
        ('50.0 %', '99.98 %', '100.0 %')
    """
    return f"{100 * value:.1f} %" if value < 0.9995 or value >= 1 else f"{100 * value:.2f} %"


def steps(number: int) -> str:
    """Write a number of time steps.

    Returns:
        The text.

    Example:
        >>> from speedysnn.analysis.report import steps
        >>> steps(1), steps(4)
        ('1 step', '4 steps')
    """
    return f"{number} step" if number == 1 else f"{number} steps"


def missed(outputs: Mapping[str, Any]) -> str:
    """Say which counts the network's spikes cannot reach, "" where there are none or layers differ in kind."""
    return "" if outputs.get("spikes") in (None, "mixed") else what_is_missed(outputs["spikes"])


@dataclass(frozen=True, eq=False)
class LayerDetail:
    """What a layer's row has no room for: histograms, neurons by name, steps and channels.

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

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> noise = analysis.measure_noise(convert.to_spiking(net, images, timesteps=4), images)
        >>> detail = noise.details["1"]
        >>> len(detail.edges), len(detail.noise), len(detail.channels)
        (65, 66, 8)
        >>> len(detail.spikes_per_step)
        4
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
        """Table of the channels, one row each."""
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
    """The columns of `LayerDetail.channels`."""
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
    """Round a number to six digits, as many as a histogram or a channel's mean has."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _unit(unit: Unit, value: str) -> dict[str, Any]:
    return {"name": str(unit), "index": list(unit.index), value: _short(unit.value)}


class MemoryTold(Protocol):
    """What a measurement held in memory, told in a sentence."""

    def sentence(self) -> str:
        """Say it in whole sentences."""
        ...


class NoiseTables(Protocol):
    """The tables of a noise report; `NoiseReport` has them."""

    @property
    def layers(self) -> pd.DataFrame:
        """One row a neuron layer."""
        ...

    @property
    def outputs(self) -> Mapping[str, Any]:
        """Figures of the whole network."""
        ...

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What was found and what to do, most important first."""
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
        """Layer -> what its row has no room for."""
        ...

    @property
    def memory(self) -> MemoryTold | None:
        """What the measurement held; None where not measured."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Give the report as strict JSON data."""
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
        """Figures of the whole network."""
        ...

    @property
    def temporal_gap_db(self) -> float:
        """SQNR(twin) - SQNR(spiking) at the output, dB."""
        ...

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What was found and what to do, most important first."""
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
        """Give everything as strict JSON data."""
        ...
