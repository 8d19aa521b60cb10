"""What an observer of a pass is handed, layer by layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from speedysnn.neurons import IFNeuron


@dataclass(frozen=True)
class Tap:
    """What a neuron received and emitted in one pass, handed to an observer.

    Attributes:
        name: the neuron's name.
        neuron: the layer itself.
        drive: its input; (B, ...) if `static_drive`, else (T*B, ...), or what the observer `sees` of that: the sum over
            all steps, (B, ...), as the neuron adds it up, or nothing, (0,).
        output: what it emitted, (B, ...) in a static pass, else (T*B, ...).
        static_drive: the drive holds for every step.
        static_output: the output is the mean over time (analog or quantized reading).
        total: the drive is the sum over all steps, with the neuron's offset in it.
    """

    name: str
    neuron: IFNeuron
    drive: Tensor
    output: Tensor
    static_drive: bool
    static_output: bool
    total: bool = False


Observer = Callable[[Tap], None]
_Some = TypeVar("_Some", bound=Callable[..., None])


def any_order(observer: _Some) -> _Some:
    """Mark an observer that takes a batch in parts, from several threads and in any order."""
    observer.any_order = True  # type: ignore[attr-defined]
    return observer


def sees(drive: str) -> Callable[[_Some], _Some]:
    """Mark an observer that needs no steps of a drive, only their "total" or "nothing": spikes may take its place."""

    def mark(observer: _Some) -> _Some:
        observer.sees = drive  # type: ignore[attr-defined]
        return observer

    return mark


def seen_by(observer: Observer | None) -> str:
    """What an observer needs of a drive that varies: "steps", if it does not say, their "total", or "nothing"."""
    return "nothing" if observer is None else str(getattr(observer, "sees", "steps"))
