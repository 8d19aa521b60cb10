"""The firing rule as data: everything a backend needs to know beside the tensors."""

from dataclasses import dataclass

from speedysnn.errors import InputError
from speedysnn.surrogate import SURROGATES


@dataclass(frozen=True)
class Rule:
    """How a neuron fires over T steps.

    With S[k] the input summed over the first k steps, n the spikes so far and k = min(t + delay, T), the membrane in
    units of the threshold is u = (t/k) S[k] / theta + v_init - n, and s = clip(floor(u), 0, max_spikes); with
    min_spikes = -1 a neuron that has fired takes one spike back while u < 0. A signed neuron, whose value may be
    negative, emits s = clip(floor(u), -max_spikes, max_spikes) and its count may fall below zero.

    Attributes:
        timesteps: T.
        delay: steps of look-ahead d, 0..T; 0 is the soft-reset integrate-and-fire neuron.
        min_spikes: 0, or -1 for signed (ternary) spikes.
        max_spikes: most spikes in one step; 1 is binary.
        surrogate: name of the spike derivative used in the backward pass.
        width: its width in units of theta.
        detach_reset: no gradient through the reset.
        signed: the count may be negative; spikes run from -max_spikes to max_spikes.
    """

    timesteps: int
    delay: int = 0
    min_spikes: int = 0
    max_spikes: int = 1
    surrogate: str = "rectangle"
    width: float = 1.0
    detach_reset: bool = False
    signed: bool = False

    def values(self) -> tuple[int | float | str | bool, ...]:
        """The attributes in order, written out: torch.compile does not follow `vars` before torch 2.7."""
        return (
            self.timesteps, self.delay, self.min_spikes, self.max_spikes, self.surrogate, self.width, self.detach_reset,
            self.signed,
        )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse what no backend could compute."""
        if self.timesteps < 1:
            raise InputError(f"timesteps: expected at least 1, got {self.timesteps}")
        if not 0 <= self.delay <= self.timesteps:
            raise InputError(f"delay: expected 0..{self.timesteps} (T), got {self.delay}")
        if self.surrogate not in SURROGATES:
            raise InputError(f"unknown surrogate {self.surrogate!r}: expected one of {', '.join(sorted(SURROGATES))}")
        if not self.width > 0:
            raise InputError(f"surrogate width: expected a positive number, got {self.width}")

    def seen(self, t: int) -> int:
        """k: how many inputs the neuron has seen when it makes its output of step t = 1..T."""
        return min(t + self.delay, self.timesteps)


def parse_spikes(spikes: str) -> tuple[int, int]:
    """The (min_spikes, max_spikes) in one step of a kind: "binary", "ternary" or "graded:N".

    Raises:
        InputError: another word, or N below 1.
    """
    kinds = {"binary": (0, 1), "ternary": (-1, 1)}
    if spikes in kinds:
        return kinds[spikes]
    head, _, tail = spikes.partition(":")
    if head == "graded" and tail.isdecimal() and int(tail) >= 1:
        return 0, int(tail)
    raise InputError(f'spikes: expected "binary", "ternary" or "graded:N" with N at least 1, got {spikes!r}')
