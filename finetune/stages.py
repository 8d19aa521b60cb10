"""Stages of a run: what is read, how long, at which T, look-ahead and spike kind; a curriculum is a list of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from speedysnn.errors import InputError
from speedysnn.kernels import parse_spikes
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Delay, Reading
from speedysnn.thresholds import CLIP, choose

KINDS = ("quantized", "spiking", "blockwise")


@dataclass(frozen=True)
class Stage:
    """One stage; what is None is the network's own.

    Attributes:
        kind: "quantized" (the twin, one pass an image), "spiking" (through time), or "blockwise" (every layer towards
            the source's activations by itself, no gradient between layers: first in closed form, then Adam).
        epochs: passes over the training data; 0 is allowed for "blockwise", which then is the closed form alone.
        timesteps: T of this stage; on the way from another T every theta is scaled by the ratio of the calibrated
            thetas at both.
        delay: look-ahead in steps, or "full".
        spikes: spike kind.
        rate: factor on all learning rates.
    """

    kind: str
    epochs: int
    timesteps: int | None = None
    delay: Delay | None = None
    spikes: str | None = None
    rate: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what could not run."""
        if self.kind not in KINDS:
            raise InputError(f"stage: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.epochs < (0 if self.kind == "blockwise" else 1):
            raise InputError(f"stage {self.kind}: epochs: expected at least 1 (0 in blockwise), got {self.epochs}")
        if self.timesteps is not None and self.timesteps < 1:
            raise InputError(f"stage {self.kind}: T: expected at least 1, got {self.timesteps}")
        if self.delay is not None and self.delay != "full" and self.delay < 0:
            raise InputError(f"stage {self.kind}: delay: expected at least 0, or full, got {self.delay}")
        if self.spikes is not None:
            parse_spikes(self.spikes)
        if not self.rate > 0:
            raise InputError(f"stage {self.kind}: rate: expected a positive number, got {self.rate}")

    @property
    def reading(self) -> Reading:
        """What is trained and judged; a blockwise stage works on the twin."""
        return "spiking" if self.kind == "spiking" else "quantized"

    def __str__(self) -> str:
        given = {"T": self.timesteps, "delay": self.delay, "spikes": self.spikes}
        more = [f"{key}={value}" for key, value in given.items() if value is not None]
        more += [f"rate={self.rate:g}"] if self.rate != 1 else []
        return ",".join([f"{self.kind}:{self.epochs}", *more])

    @staticmethod
    def parse(text: str) -> "Stage":
        """A stage from text, `KIND:EPOCHS[,T=8][,delay=1][,spikes=ternary][,rate=0.5]`.

        Raises:
            InputError: it is written another way.
        """
        head, *rest = (part.strip() for part in text.split(","))
        kind, _, epochs = head.partition(":")
        options = dict(part.partition("=")[::2] for part in rest)
        known = {"T": "timesteps", "delay": "delay", "spikes": "spikes", "rate": "rate"}
        wrong = [key for key in options if key not in known]
        try:
            if wrong:
                raise ValueError(wrong[0])
            values: dict[str, Any] = {known[key]: _value(key, value) for key, value in options.items()}
            return Stage(kind, int(epochs), **values)
        except ValueError as err:
            raise InputError(
                f"stage {text!r}: expected KIND:EPOCHS[,T=N][,delay=N|full][,spikes=KIND][,rate=X] ({err})"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """The stage as JSON data."""
        return asdict(self)


def _value(key: str, value: str) -> Any:
    if key == "spikes" or (key == "delay" and value == "full"):
        return value
    return float(value) if key == "rate" else int(value)


@contextmanager
def setting(snn: SpikingNetwork, stage: Stage) -> Iterator[None]:
    """The network at the stage's T, look-ahead and spike kind; its own come back afterwards, thetas stay."""
    with snn.preserved("timesteps", "delay", "spikes"):
        if stage.timesteps is not None:
            snn.timesteps = stage.timesteps
        if stage.delay is not None:
            snn.set_delay(stage.delay)
        if stage.spikes is not None:
            snn.set_spikes(stage.spikes)
        yield


def carry_thresholds(snn: SpikingNetwork, before: int, after: int) -> None:
    """Theta <- theta theta_c(after) / theta_c(before), theta_c(T) the calibrated one at T; what was learnt stays.

    Layers with a given threshold or a learned clip, and networks without histograms, keep theirs.
    """
    if before == after:
        return
    for name, neuron in snn.neurons.items():
        rule, hist = snn.calibration.rules.get(name, "given"), snn.calibration.histograms.get(name)
        if rule in ("given", CLIP) or hist is None:
            continue
        old, new = (
            choose(hist, rule, neuron.v_init, steps, neuron.levels_per_step, signed=neuron.signed, layer=name)
            for steps in (before, after)
        )
        ratio = (new / old).to(neuron.threshold)
        if neuron.granularity == "layer":
            ratio = ratio.log().mean().exp()
        neuron.set_threshold(neuron.threshold.detach() * ratio)


def stages_of(data: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The stages in the JSON data of settings."""
    return tuple(Stage(**stage) for stage in data.get("stages", ()))
