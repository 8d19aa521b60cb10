"""One neuron operator, several backends: the rule is data, a backend turns drive into output.

Kinds of spikes have names: `parse_spikes` says what a step may emit, `bits_per_spike` what a spike takes on a link.
"""

from speedysnn.errors import InputError
from speedysnn.kernels.dispatch import BACKENDS as BACKENDS
from speedysnn.kernels.dispatch import Backend as Backend
from speedysnn.kernels.dispatch import KernelWarning as KernelWarning
from speedysnn.kernels.dispatch import multistep as multistep
from speedysnn.kernels.dispatch import over_time as over_time
from speedysnn.kernels.dispatch import using as using
from speedysnn.kernels.dispatch import with_total as with_total
from speedysnn.kernels.reference import Rule as Rule

MOST_POWERS = 16  # of "power2:N": counts of up to 512 steps are then exact in float32


def parse_spikes(spikes: str) -> tuple[int, int]:
    """Read the name of a kind of spikes.

    Args:
        spikes: "binary", "ternary", "graded:N", up to N spikes a step, or "power2:N", of either sign and of size
            1, 2, 4, ..., 2^(N-1) a step.

    Returns:
        (min_spikes, max_spikes) of one step, as `Rule` takes them.

    Raises:
        InputError: another word, N below 1, or N above 16 for powers of two.

    Example:
        >>> from speedysnn.kernels import parse_spikes
        >>> parse_spikes("ternary"), parse_spikes("graded:3"), parse_spikes("power2:3")
        ((-1, 1), (0, 3), (-4, 4))
    """
    kinds = {"binary": (0, 1), "ternary": (-1, 1)}
    if spikes in kinds:
        return kinds[spikes]
    head, _, tail = spikes.partition(":")
    number = int(tail) if tail.isdecimal() else 0
    if head == "graded" and number >= 1:
        return 0, number
    if head == "power2" and 1 <= number <= MOST_POWERS:
        return -(2 ** (number - 1)), 2 ** (number - 1)
    raise InputError(
        f'spikes: expected "binary", "ternary", "graded:N" with N at least 1 or "power2:N" with N from 1 to '
        f"{MOST_POWERS}, got {spikes!r}"
    )


def bits_per_spike(spikes: str, signed: bool = False) -> int:
    """Compute what one spike takes on a link: ceil(log2(K)) bits for an alphabet of K values, 0 included.

    K is 2 for "binary", 3 for "ternary", N + 1 for "graded:N" and 2N + 1 for "power2:N"; where a neuron is signed, its
    spikes may have either sign, so that K is 3 for "binary" and 2N + 1 for "graded:N".

    Args:
        spikes: the kind of spikes, as `parse_spikes` reads it.
        signed: the neuron's value may be negative.

    Returns:
        Whole bits.

    Raises:
        InputError: no such kind.

    Example:
        >>> from speedysnn.kernels import bits_per_spike
        >>> [bits_per_spike(kind) for kind in ("binary", "ternary", "graded:4", "power2:3")]
        [1, 2, 3, 3]
    """
    low, high = parse_spikes(spikes)
    sizes = high.bit_length() if low < -1 else high
    return (sizes * (2 if low < 0 or signed else 1)).bit_length()


def what_is_missed(spikes: str) -> str:
    """Say in a sentence which counts a kind of spikes cannot reach, "" where there are none; see `Rule.most_missed`.

    Args:
        spikes: the kind of spikes, as `parse_spikes` reads it.

    Returns:
        A sentence for a report.

    Raises:
        InputError: no such kind.

    Example:
        >>> from speedysnn.kernels import what_is_missed
        >>> what_is_missed("power2:3")
        'Spikes of the kind power2:3 may miss the quantized count by 1, even where a neuron sees its whole input.'
    """
    low, high = parse_spikes(spikes)
    most = high // 4 if low < -1 else 0
    if not most:
        return ""
    return (f"Spikes of the kind {spikes} may miss the quantized count by {'up to ' * (most > 1)}{most}, even where a "
            "neuron sees its whole input.")  # fmt: skip
