"""Profiles: what a platform can hold and do, and everything of an integer network that does not fit, all at once."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from speedysnn.errors import ConversionError, InputError
from speedysnn.integer.program import Add, Conv, Gain, Linear, MaxPool, Program, SumPool, weights_of


@dataclass(frozen=True)
class Profile:
    """The limits of a platform; None where it has none.

    Attributes:
        name: as `to_integer` takes it.
        sources: where the limits were read.
        weight_bits: most bits of a weight.
        state_bits: most bits of a state.
        one_scale: weights, thresholds and biases of a layer share one scale, so that a layer has one threshold.
        shifts: weights may have an exponent of their own beside the state.
        biases: a constant current of a neuron is possible.
        lookahead: neurons can wait and divide by the steps seen.
        spikes: most spikes of a neuron in a step.
        negative: spikes may be negative (signed and ternary neurons).
        maxima: max-pooling is possible.
        pools: sides of a sum-pooling's windows.
        sums: several weight layers may meet in one neuron.
        convolutions: convolutions are possible; else linear layers alone.
        kernel: largest side of a convolution's kernel, which is square.
        destinations: layers that one layer's spikes may go to.
        neurons: hidden neurons in all.
        outputs: outputs of the network.
        cores: (weights, neurons) that each core holds, one layer a core.
        pixels: an image may be a constant current of 8-bit numbers; else its input has to be events.
    """

    name: str
    sources: tuple[str, ...]
    weight_bits: int = 16
    state_bits: int = 32
    one_scale: bool = False
    shifts: bool = True
    biases: bool = True
    lookahead: bool = True
    spikes: int | None = None
    negative: bool = True
    maxima: bool = True
    pools: tuple[int, ...] | None = None
    sums: bool = True
    convolutions: bool = True
    kernel: int | None = None
    destinations: int | None = None
    neurons: int | None = None
    outputs: int | None = None
    cores: tuple[tuple[int, int], ...] | None = None
    pixels: bool = True


_SPECK = ((16, 64), (16, 64), (16, 64), (32, 32), (32, 32), (64, 16), (64, 16), (16, 16), (16, 16))  # in 1024
PROFILES: dict[str, Profile] = {
    "generic": Profile("generic", ("the C99 that speedysnn.export writes",)),
    "speck": Profile(
        "speck",
        ("sinabs: sinabs/backend/dynapcnn/chips/dynapcnn.py (core sizes, square kernels, one threshold a layer, "
         "pooling at the destination)",
         "sinabs: sinabs/backend/dynapcnn/discretize.py (one scale for weights, bias and threshold of a layer)"),
        weight_bits=8, state_bits=16, one_scale=True, shifts=False, lookahead=False, spikes=1, negative=False,
        maxima=False, pools=(1, 2, 4), sums=False, kernel=15, destinations=2,
        cores=tuple((w * 1024, n * 1024) for w, n in _SPECK), pixels=False,
    ),
    "spinnaker2": Profile(
        "spinnaker2",
        ("py-spinnaker2: spinnaker2/s2_nir.py (weights in -127..127, subtractive reset, bias as i_offset, one step of "
         "delay a connection, average pooling as layers of its own)",),
        weight_bits=8, state_bits=32, shifts=False, lookahead=False, spikes=1, negative=False, maxima=False,
        pixels=False,
    ),
    "xylo": Profile(
        "xylo",
        ("Rockpool: rockpool/devices/xylo/syns61201/xylo_mapper.py (1,000 hidden and 8 output neurons, 8-bit weights, "
         "16-bit thresholds)", "Rockpool: XyloSim (up to 31 spikes a step)"),
        weight_bits=8, state_bits=16, shifts=False, lookahead=False, spikes=31, negative=False, maxima=False,
        convolutions=False, pools=(), neurons=1000, outputs=8, pixels=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Misfit:
    """One thing that does not fit.

    Attributes:
        layer: where.
        what: what it needs, and what there is.
        advice: what to change.
    """

    layer: str
    what: str
    advice: str


def find_profile(name: str) -> Profile:
    """The profile of a name.

    Raises:
        InputError: no such one.
    """
    if name not in PROFILES:
        raise InputError(f"profile: expected one of {', '.join(PROFILES)}, got {name!r}")
    return PROFILES[name]


def misfits(program: Program, profile: Profile | str) -> list[Misfit]:
    """Everything of an integer network that a platform cannot hold or do.

    Args:
        program: of a chip, `chip.program`.
        profile: the platform, or its name.

    Returns:
        One entry a layer and limit, in execution order; none where all fits.

    Example:
        >>> import torch, speedysnn
        >>> from speedysnn import integer
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> snn = speedysnn.convert.to_spiking(net, torch.rand(32, 4), timesteps=4, delay=1)
        >>> for found in integer.misfits(speedysnn.to_integer(snn).program, "xylo"):
        ...     print(found.layer, "|", found.what)
        network | states of 32 bits, of 16
        input | an image as a constant current
        1 | a look-ahead of 1 steps
    """
    made = find_profile(profile) if isinstance(profile, str) else profile
    found = [item for check in _CHECKS for item in check(program, made)]
    order = {"network": -1, **{op.name: position for position, op in enumerate(program.operations)}}
    return sorted(found, key=lambda item: order.get(item.layer, len(order)))


def require_fits(program: Program, profile: str) -> None:
    """Refuse an integer network that does not fit a platform.

    Raises:
        ConversionError: everything that does not fit, one a line.
    """
    found = misfits(program, profile)
    if found:
        lines = [f"  {item.layer}: {item.what}; {item.advice}" for item in found]
        raise ConversionError(f"to_integer: {len(found)} things do not fit profile={profile!r}:\n" + "\n".join(lines))


def _bits(program: Program, made: Profile) -> Iterator[Misfit]:
    if program.weight_bits > made.weight_bits:
        yield Misfit("network", f"weights of {program.weight_bits} bits, of {made.weight_bits}",
                     f"convert with weight_bits={made.weight_bits}")  # fmt: skip
    if program.state_bits > made.state_bits:
        yield Misfit("network", f"states of {program.state_bits} bits, of {made.state_bits}",
                     f"convert with state_bits={made.state_bits}")  # fmt: skip
    for op, _, shift in weights_of(program.operations):
        if shift and not made.shifts:
            yield Misfit(
                op.name, f"weights with an exponent of {shift}", "convert with this profile, which allows none"
            )


def _input(program: Program, made: Profile) -> Iterator[Misfit]:
    given = program.input
    if given.timing == "constant" and not made.pixels:
        yield Misfit(given.name, "an image as a constant current",
                     "convert with events=True and encode images as events (speedysnn.encoders)")  # fmt: skip


def _neurons(program: Program, made: Profile) -> Iterator[Misfit]:
    for op in program.neurons:
        if op.lookahead and not made.lookahead:
            yield Misfit(op.name, f"a look-ahead of {op.lookahead} steps",
                         "tune at delay=0 with a spiking stage (finetune.fit)")  # fmt: skip
        if op.threshold.size > 1 and np.ptp(op.threshold) and made.one_scale:
            yield Misfit(op.name, f"{len(np.unique(op.threshold))} thresholds in a layer",
                         'use granularity="layer" in to_spiking and in to_integer')  # fmt: skip
        if np.any(op.bias) and not made.biases:
            yield Misfit(op.name, "biases", "train the source network with bias=False, or merge biases")
        if made.spikes is not None and op.highest > made.spikes:
            kind = "binary" if made.spikes == 1 else f"graded:{made.spikes}"
            yield Misfit(op.name, f"up to {op.highest} spikes in a step, of {made.spikes}", f'use spikes="{kind}"')
        if op.lowest < 0 and not made.negative:
            yield Misfit(
                op.name, "negative spikes", 'use spikes="binary", and ReLU where a signed neuron re-encodes a value'
            )
    hidden = sum(op.size for op in program.neurons)
    if made.neurons is not None and hidden > made.neurons:
        yield Misfit("network", f"{hidden:,} hidden neurons, of {made.neurons:,}", "use narrower layers")
    if made.outputs is not None and program.operations[-1].size > made.outputs:
        yield Misfit(
            program.operations[-1].name,
            f"{program.operations[-1].size} outputs, of {made.outputs}",
            "use fewer classes",
        )


def _layers(program: Program, made: Profile) -> Iterator[Misfit]:
    for op in program.operations:
        if isinstance(op, Conv) and not made.convolutions:
            yield Misfit(op.name, "a convolution", "use linear layers")
        elif isinstance(op, Conv) and made.kernel is not None:
            sides = set(op.weight.shape[2:])
            if max(sides) > made.kernel or len(sides) > 1:
                yield Misfit(op.name, f"a kernel of {' x '.join(map(str, op.weight.shape[2:]))}",
                             f"use square kernels of at most {made.kernel}")  # fmt: skip
        if isinstance(op, MaxPool) and not made.maxima:
            yield Misfit(op.name, "max-pooling", "train the source network with average pooling")
        if isinstance(op, SumPool) and made.pools is not None and op.timing == "steps":
            yield from _pool(op, made.pools)
        if isinstance(op, Add | Gain) and not made.sums and op.timing == "steps":
            yield Misfit(op.name, "several layers that meet in one neuron", "use a network without residual sums")


def _pool(op: SumPool, allowed: tuple[int, ...]) -> Iterator[Misfit]:
    sides = {stop - first for windows in op.windows if windows is not None for first, stop in windows}
    if not sides <= set(allowed):
        what = f"sums over windows of {', '.join(map(str, sorted(sides)))}"
        sizes = f"of {' or '.join(map(str, allowed))}" if allowed else "by a linear layer"
        yield Misfit(op.name, what, f"pool {sizes}")


def _cores(program: Program, made: Profile) -> Iterator[Misfit]:
    """Each weight layer takes a core, with its own neurons; a layer's spikes go to few others."""
    layers = [op for op in program.operations if isinstance(op, Conv | Linear)]
    if made.cores is not None:
        if len(layers) > len(made.cores):
            yield Misfit(
                "network", f"{len(layers)} weight layers, of {len(made.cores)}", "use fewer layers, one a core"
            )
        for op in layers:
            if not any(op.weight.size <= weights and op.size <= neurons for weights, neurons in made.cores):
                most = f"{max(w for w, _ in made.cores):,} and {max(n for _, n in made.cores):,}"
                yield Misfit(op.name, f"{op.weight.size:,} weights and {op.size:,} neurons, of {most} on a core",
                             "use fewer channels or smaller maps")  # fmt: skip
    if made.destinations is not None:
        readers = Counter(name for op in program.operations for name in op.sources)
        for neuron in program.neurons:
            if readers[neuron.name] > made.destinations:
                yield Misfit(neuron.name, f"spikes that go to {readers[neuron.name]} layers, of {made.destinations}",
                             "use fewer branches")  # fmt: skip


_CHECKS: tuple[Callable[[Program, Profile], Iterator[Misfit]], ...] = (_bits, _input, _neurons, _layers, _cores)
