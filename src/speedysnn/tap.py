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
        drive: its input; (B, ...) if `static`, else (T*B, ...).
        output: what it emitted, (B, ...) in a static pass, else (T*B, ...).
        static_drive: the drive holds for every step.
        static_output: the output is the mean over time (analog or quantized reading).
    """

    name: str
    neuron: IFNeuron
    drive: Tensor
    output: Tensor
    static_drive: bool
    static_output: bool


Observer = Callable[[Tap], None]
_Some = TypeVar("_Some", bound=Callable[..., None])


def any_order(observer: _Some) -> _Some:
    """Mark an observer that takes a batch in parts, from several threads and in any order."""
    observer.any_order = True  # type: ignore[attr-defined]
    return observer
