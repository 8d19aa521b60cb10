"""IFNeuron: one activation of the source network, readable as the source, its quantizer, or spikes.

The streaming state of a layer of neurons: a window of T inputs that come in while the last one's outputs go out.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from speedysnn.errors import InputError
from speedysnn.kernels import Rule, multistep, over_time, parse_spikes, with_total
from speedysnn.kernels.quantizer import levels, quantize, step_gradient
from speedysnn.kernels.reference import fire
from speedysnn.neurons.parameters import (
    READINGS,
    Delay,
    NeuronParameters,
    Reading,
    check_range,
    check_steps,
)
from speedysnn.surrogate import SURROGATES

Fire = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class NeuronState:
    """What a neuron keeps between ticks: the sum of its inputs, and the spikes it has answered.

    At output step t it fires on (t/k) S[k], with S[k] the input summed over k = min(t + lookahead, T) steps.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._complete: Tensor | None = None
        self._count: Tensor | None = None
        self._dtype: torch.dtype | None = None
        self._arrived = 0
        self._emitted = 0

    def tick(self, x: Tensor | None, timesteps: int, lookahead: int, fire: Fire) -> Tensor | None:
        """Take the input of the next step, if there is one, and answer, or None while looking ahead.

        Args:
            x: (B, ...), or None.
            timesteps: T.
            lookahead: D in steps, 0 to T.
            fire: (paced sum, spikes so far) -> (spikes, what they stand for).

        Raises:
            InputError: the shape changed within a window.
        """
        if self._complete is not None:  # the last window's outputs go on while the next one's inputs arrive
            out = self._emit(self._complete, timesteps, lookahead, fire)
            if x is not None:
                self._arrive(x, timesteps)
            return out
        if x is None:
            return None
        self._arrive(x, timesteps)
        arrived = self._arrived if self._complete is None else timesteps
        total = self._sum if self._complete is None else self._complete
        if total is None or arrived - lookahead <= self._emitted:
            return None
        return self._emit(total, timesteps, lookahead, fire)

    def _arrive(self, x: Tensor, timesteps: int) -> None:
        self._dtype = x.dtype
        value = x.to(torch.promote_types(x.dtype, torch.float32))
        if self._sum is not None and self._sum.shape != value.shape:
            raise InputError(
                f"step: expected the shape {tuple(self._sum.shape)} of the steps before, got {tuple(value.shape)}; "
                "call reset() before another batch"
            )
        self._sum = value if self._sum is None else self._sum + value
        self._arrived += 1
        if self._arrived == timesteps:
            self._complete, self._sum, self._arrived = self._sum, None, 0

    def _emit(self, total: Tensor, timesteps: int, lookahead: int, fire: Fire) -> Tensor:
        t = self._emitted + 1
        k = min(t + lookahead, timesteps)
        paced = total if k == t else total * (t / k)
        count = torch.zeros_like(total) if self._count is None else self._count
        spikes, out = fire(paced, count)
        self._count, self._emitted = count + spikes, t
        if t == timesteps:
            self._count, self._complete, self._emitted = None, None, 0
        return out.to(self._dtype)


class IFNeuron(NeuronParameters):
    """A layer of integrate-and-fire neurons with soft reset and a trainable threshold.

    spiking:   u = (t/k) S[k]/theta + v_init - n;  s[t] = floor(u) in {0..N};  emits A * s[t]
    quantized: Q(z) = (A/T) clip(floor(T z/theta + v_init), 0, T N)
    analog:    min(max(z, floor), ceiling); with `steps` L the source's own staircase,
               ceiling/L clip(floor(L z/ceiling + 1/2), 0, L)

    A, the amplitude, is theta unless `set_amplitude` gave it a value of its own: the neuron then fires against theta,
    and each spike stands for A.
    `offset`, None or one value a channel in the input's unit, is a constant current that a correction added: the
    quantized and spiking readings see z + offset (a bias of the layer before, were it this neuron's alone), the analog
    reading never does, so that it stays the source.

    With `spikes="power2:N"` a step emits a signed power of two, the nearest to what the count misses:

    power2:    s[t] = argmin |u - 1/2 - s| over s in {0, 1, -1, 2, -2, 4, ..., -2^(N-1)};  Q(z) as above, N = 2^(N-1)

    so that one step can move far and later ones make up the rest; one that is not signed takes back what it sent at
    most (s >= -n). With N = 1 it is the ternary neuron. Its quantized reading is the twin whose counts are all of
    0..T 2^(N-1); with full look-ahead spikes equal it for N <= 2, and for larger N miss its count by at most 2^(N-3)
    (`Rule.most_missed`), 1/(4 T) of the full scale: the rest of the last steps.

    A signed neuron (floor below 0 or None) stands for a value that may be negative: s[t] runs from -N to N, the count
    from -T N to T N.
    with S[k] the input summed over k = min(t + delay, T) steps and n the spikes so far; delay 0 is the plain
    soft-reset neuron. Shapes: input (T*B, ...) time-major when spiking, (B, ...) otherwise or with `constant`; output
    alike, in the input's unit. theta is positive by construction (its logarithm is the parameter).

    Args:
        threshold: theta in the activation's unit, a number or one value a channel.
        v_init: initial membrane as a fraction of theta; 1/2 rounds, 0 floors.
        timesteps: T.
        spikes: "binary", "ternary" (a neuron that fired may take a spike back), "graded:N" (up to N a step) or
            "power2:N" (of either sign, of size 1, 2, 4, ..., 2^(N-1)).
        delay: steps of look-ahead, or "full" for T.
        surrogate: spike derivative, one of `speedysnn.surrogate.SURROGATES`.
        width: its width in units of theta.
        detach_reset: no gradient through the reset.
        channel_dim: which dimension of (B, ...) a per-channel threshold runs along.
        ceiling: upper clip of the source activation (6 for ReLU6), or None.
        floor: lower clip of the source activation; 0 for ReLU, None for a value that is only re-encoded.
        steps: L, where the source activation is itself a quantizer of L steps from 0 to `ceiling`; else None.

    Raises:
        InputError: a threshold that is not positive and finite, or an option out of range.

    Reference: castagnetti2023
    """

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        v_init: float | Tensor = 0.5,
        *,
        timesteps: int = 4,
        spikes: str = "binary",
        delay: Delay = 0,
        surrogate: str = "rectangle",
        width: float = 1.0,
        detach_reset: bool = False,
        channel_dim: int = 1,
        ceiling: float | None = None,
        floor: float | None = 0.0,
        steps: int | None = None,
    ) -> None:
        super().__init__(threshold, v_init, channel_dim)
        self.spikes, self.surrogate, self.width = spikes, surrogate, width
        self.detach_reset, self.ceiling, self.floor, self.steps = detach_reset, ceiling, floor, steps
        self.scaled_gradient = True
        self.threshold_gradient = "surrogate"
        self._reading: Reading = "spiking"
        self.belongs_to_network = False
        self.timesteps, self.delay = timesteps, delay
        parse_spikes(spikes)
        if surrogate not in SURROGATES:
            raise InputError(f"unknown surrogate {surrogate!r}: expected one of {', '.join(sorted(SURROGATES))}")
        check_steps(timesteps, delay)
        check_range(floor, ceiling, steps)
        self.reset()

    @property
    def threshold_rule(self) -> str:
        """The name that `threshold_gradient` had before; it goes in the next minor version."""
        return self.threshold_gradient

    @threshold_rule.setter
    def threshold_rule(self, value: str) -> None:
        self.threshold_gradient = value

    @property
    def levels_per_step(self) -> int:
        """Most spikes in one step: N of "graded:N", 2^(N-1) of "power2:N", else 1."""
        return parse_spikes(self.spikes)[1]

    @property
    def signed(self) -> bool:
        """Whether the value may be negative, and spikes with it."""
        return self.floor is None or self.floor < 0

    @property
    def lookahead(self) -> int:
        """D in steps, with "full" resolved to T and never above it."""
        return self.timesteps if self.delay == "full" else min(int(self.delay), self.timesteps)

    @property
    def synchronous(self) -> bool:
        """Whether its counts are the quantizer's: it sees its whole input, and its spikes can say every count."""
        return self.lookahead == self.timesteps and not self.rule.most_missed

    @property
    def rule(self) -> Rule:
        """The firing rule as a backend needs it."""
        min_spikes, max_spikes = parse_spikes(self.spikes)
        return Rule(
            self.timesteps,
            self.lookahead,
            min_spikes,
            max_spikes,
            self.surrogate,
            self.width,
            self.detach_reset,
            self.signed,
        )

    @property
    def reading(self) -> Reading:
        """How a call reads the layer that names no reading; a network names its own in every call.

        Raises:
            InputError: on setting it to another word, or in a network, which has one reading for all its neurons.
        """
        return self._reading

    @reading.setter
    def reading(self, reading: Reading) -> None:
        if self.belongs_to_network:
            raise InputError(
                "neuron.reading: this neuron belongs to a network, whose reading holds for all its layers; use "
                "`with snn.reading(...)`, analysis.read_mixed(snn, {layer: reading}, x) for one layer, or name the "
                "reading in the call, neuron(x, reading=...)"
            )
        self._reading = _known_reading(reading)

    def forward(
        self,
        x: Tensor | None,
        *,
        reading: Reading | None = None,
        constant: bool = False,
        inplace: bool = False,
        one_step: bool = False,
    ) -> Tensor | None:
        """The layer's output in a reading, by default its own; a network calls each neuron so, once a pass.

        Args:
            x: (T*B, ...) time-major when spiking, (B, ...) otherwise, with `constant`, or for one step.
            reading: "analog", "quantized" or "spiking".
            constant: a drive (B, ...) that holds for all T steps; for the spiking reading.
            inplace: the input may be written over; for the spiking reading.
            one_step: `step` instead of a reading, with its state; only then may `x` or the output be None.

        Returns:
            Spikes times the amplitude, (T*B, ...), or the value of the other readings, (B, ...).

        Raises:
            InputError: no such reading, or no input.

        Example:
            >>> neuron = IFNeuron(1.0, timesteps=2)
            >>> neuron(torch.tensor([0.4, 0.8]), reading="quantized").tolist()
            [0.5, 1.0]
        """
        if one_step:
            return self.step(x)
        if x is None:
            raise InputError("neuron: expected a tensor, got None; only a single step may have no input")
        reading = self._reading if reading is None else _known_reading(reading)
        if reading == "spiking":
            return self.spiking(x, constant=constant, inplace=inplace)
        return self.analog(x) if reading == "analog" else self.quantized(x)

    def analog(self, z: Tensor) -> Tensor:
        """The activation that the neuron replaced: min(max(z, floor), ceiling), or the source's own staircase."""
        if self.steps is not None and self.ceiling is not None:
            level = torch.floor(z * (self.steps / self.ceiling) + 0.5).clamp(0, self.steps)
            return level * (self.ceiling / self.steps)
        return z if self.floor is None and self.ceiling is None else z.clamp(self.floor, self.ceiling)

    def quantized(self, z: Tensor) -> Tensor:
        """Q(z + offset), with the learned-step-size gradient; shape as z."""
        z = self.corrected(z)
        theta, start = self.per_channel(self.threshold, z.ndim), self.per_channel(self.v_init, z.ndim)
        return quantize(
            z, theta, start, self.timesteps, self.levels_per_step, amplitude=self.own_amplitude(z.ndim),
            signed=self.signed, scaled=self.scaled_gradient,
        )  # fmt: skip

    def counts(self, z: Tensor) -> Tensor:
        """Spikes that T steps of constant drive z give; shape as z, whole numbers."""
        z = self.corrected(z)
        theta, start = self.per_channel(self.threshold, z.ndim), self.per_channel(self.v_init, z.ndim)
        return levels(z, theta, start, self.timesteps, self.levels_per_step, self.signed)

    def spiking(self, x: Tensor, *, constant: bool = False, inplace: bool = False) -> Tensor:
        """A * s[t] for all steps, (T*B, ...); `inplace`: the input may be written over."""
        x = self.corrected(x)
        theta, start = self.per_channel(self.threshold, x.ndim), self.per_channel(self.v_init, x.ndim)
        unit = self.own_amplitude(x.ndim)
        if self.threshold_gradient == "surrogate" or not torch.is_grad_enabled():
            return multistep(x, theta, start, self.rule, amplitude=unit, constant=constant, inplace=inplace)
        share = 0.5 if self.threshold_gradient == "mixed" else 1.0
        through_time = (1 - share) * theta + share * theta.detach()
        emitted = None if unit is None else (1 - share) * unit + share * unit.detach()
        out = multistep(x, through_time, start, self.rule, amplitude=emitted, constant=constant)
        drive = x if constant else x.view(self.timesteps, -1, *x.shape[1:]).mean(0)
        given = (out, drive.detach(), theta, self.rule, share)
        return step_gradient(*given, scaled=self.scaled_gradient, amplitude=unit)

    def total(self, x: Tensor) -> Tensor:
        """Sum over time of what the neuron integrates of an input (T*B, ...), in its order: (B, ...)."""
        return over_time(self.corrected(x), self.timesteps)

    def spiking_and_total(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `spiking` gives, written over an input (T*B, ...), and the `total` of that input."""
        x = self.corrected(x)
        theta, start = self.per_channel(self.threshold, x.ndim), self.per_channel(self.v_init, x.ndim)
        return with_total(x, theta, start, self.rule, self.own_amplitude(x.ndim))

    def reset(self) -> None:
        """Forget the streaming state."""
        self._state = NeuronState()

    def step(self, x: Tensor | None) -> Tensor | None:
        """One tick: take the input of the next step (None when there is none) and emit, or None while looking ahead.

        The first output comes after `lookahead` ticks; T outputs answer T inputs, and the next T may follow at once.
        Shapes: (B, ...) in and out.

        Raises:
            InputError: the shape changed before `reset`.
        """
        return self._state.tick(None if x is None else self.corrected(x), self.timesteps, self.lookahead, self._fire)

    def _fire(self, paced: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        own = (self.threshold, self.v_init, self.amplitude)
        theta, start, unit = (self.per_channel(v, paced.ndim).to(paced.dtype) for v in own)
        spikes = fire(paced / theta + start, count, self.rule)
        return spikes, spikes * unit

    def extra_repr(self) -> str:
        """Options in one line; never the tensors."""
        amplitude = "" if self.log_amplitude is None else "amplitude of its own, "
        return (
            f"T={self.timesteps}, spikes={self.spikes}, delay={self.delay}, theta per {self.granularity}, {amplitude}"
            f"surrogate={self.surrogate}({self.width:g})"
        )


def _known_reading(reading: Reading) -> Reading:
    if reading not in READINGS:
        raise InputError(f"reading: expected one of {', '.join(READINGS)}, got {reading!r}")
    return reading
