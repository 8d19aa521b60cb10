"""IFNeuron: one activation of the source network, readable as the source, its quantizer, or spikes."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from speedysnn.errors import InputError
from speedysnn.kernels import Rule, multistep, parse_spikes
from speedysnn.kernels.quantizer import levels, quantize, step_gradient
from speedysnn.kernels.reference import fire
from speedysnn.surrogate import SURROGATES
from speedysnn.window import Window

Reading = Literal["analog", "quantized", "spiking"]
Delay = int | Literal["full"]
THRESHOLD_RULES = ("surrogate", "step", "mixed")


class IFNeuron(nn.Module):
    """A layer of integrate-and-fire neurons with soft reset and a trainable threshold.

    spiking:   u = (t/k) S[k]/theta + v_init - n;  s[t] = floor(u) in {0..N};  emits theta * s[t]
    quantized: Q(z) = theta/T clip(floor(T z/theta + v_init), 0, T N)
    analog:    min(max(z, floor), ceiling); with `steps` L the source's own staircase,
               ceiling/L clip(floor(L z/ceiling + 1/2), 0, L)

    `offset`, None or one value a channel in the input's unit, is a constant current that a correction added: the
    quantized and spiking readings see z + offset (a bias of the layer before, were it this neuron's alone), the analog
    reading never does, so that it stays the source.

    A signed neuron (floor below 0 or None) stands for a value that may be negative: s[t] runs from -N to N, the count
    from -T N to T N.
    with S[k] the input summed over k = min(t + delay, T) steps and n the spikes so far; delay 0 is the plain
    soft-reset neuron. Shapes: input (T*B, ...) time-major when spiking, (B, ...) otherwise or with `constant`; output
    alike, in the input's unit. theta is positive by construction (its logarithm is the parameter).

    Args:
        threshold: theta in the activation's unit, a number or one value a channel.
        v_init: initial membrane as a fraction of theta; 1/2 rounds, 0 floors.
        timesteps: T.
        spikes: "binary", "ternary" (a neuron that fired may take a spike back) or "graded:N".
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
        super().__init__()
        self.log_threshold = nn.Parameter(_log_threshold(threshold))
        self.v_init = nn.Parameter(torch.as_tensor(v_init, dtype=torch.float32).clone())
        self.spikes, self.surrogate, self.width = spikes, surrogate, width
        self.detach_reset, self.channel_dim, self.ceiling, self.floor = detach_reset, channel_dim, ceiling, floor
        self.steps = steps
        self.offset: Tensor | None
        self.register_buffer("offset", None)
        self.scaled_gradient = True
        self.threshold_rule = "surrogate"
        self.reading: Reading = "spiking"
        self.timesteps, self.delay = timesteps, delay
        parse_spikes(spikes)
        if surrogate not in SURROGATES:
            raise InputError(f"unknown surrogate {surrogate!r}: expected one of {', '.join(sorted(SURROGATES))}")
        _check_steps(timesteps, delay)
        _check_range(floor, ceiling, steps)
        self.reset()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "IFNeuron":
        """As torch's, but in float32 at least: by its logarithm in bfloat16 a theta of 1e-6 would move by 3 %."""

        def kept(x: Tensor) -> Tensor:
            out = fn(x)
            precise = torch.promote_types(out.dtype, torch.float32)
            return out if out.dtype == precise else x.to(out.device, precise)

        super()._apply(kept, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def threshold(self) -> Tensor:
        """theta, positive; shape () for a layer or (C,) for channels."""
        return self.log_threshold.exp()

    def set_threshold(self, threshold: float | Tensor) -> None:
        """Replace theta in place; a scalar becomes per channel when one value a channel is given."""
        value = _log_threshold(threshold).to(self.log_threshold)
        self.log_threshold.data = value.clone()

    @property
    def granularity(self) -> str:
        """One theta for the "layer", or one for each "channel"."""
        return "channel" if self.log_threshold.ndim else "layer"

    @property
    def levels_per_step(self) -> int:
        """N: most spikes in one step."""
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
    def rule(self) -> Rule:
        """The firing rule as a backend needs it."""
        lowest, highest = parse_spikes(self.spikes)
        return Rule(
            self.timesteps,
            self.lookahead,
            lowest,
            highest,
            self.surrogate,
            self.width,
            self.detach_reset,
            self.signed,
        )

    def per_channel(self, value: Tensor, ndim: int) -> Tensor:
        """A () or (C,) tensor shaped so that it broadcasts against a (B, ...) tensor of `ndim` dimensions."""
        if value.ndim == 0:
            return value
        shape = [1] * ndim
        shape[self.channel_dim] = -1
        return value.view(shape)

    def forward(self, x: Tensor, *, constant: bool = False) -> Tensor:
        """Read the layer as `self.reading` says; `constant` marks a drive (B, ...) that holds for all T steps."""
        if self.reading == "analog":
            return self.analog(x)
        if self.reading == "quantized":
            return self.quantized(x)
        return self.spiking(x, constant=constant)

    def analog(self, z: Tensor) -> Tensor:
        """The activation that the neuron replaced: min(max(z, floor), ceiling), or the source's own staircase."""
        if self.steps is not None and self.ceiling is not None:
            level = torch.floor(z * (self.steps / self.ceiling) + 0.5).clamp(0, self.steps)
            return level * (self.ceiling / self.steps)
        return z if self.floor is None and self.ceiling is None else z.clamp(self.floor, self.ceiling)

    def corrected(self, z: Tensor) -> Tensor:
        """The drive with the correction's offset, as the quantized and spiking readings see it; shape as z."""
        return z if self.offset is None else z + self.per_channel(self.offset, z.ndim).to(z.dtype)

    def quantized(self, z: Tensor) -> Tensor:
        """Q(z + offset), with the learned-step-size gradient; shape as z."""
        z = self.corrected(z)
        theta, start = self.per_channel(self.threshold, z.ndim), self.per_channel(self.v_init, z.ndim)
        return quantize(
            z, theta, start, self.timesteps, self.levels_per_step, signed=self.signed, scaled=self.scaled_gradient
        )

    def counts(self, z: Tensor) -> Tensor:
        """Spikes that T steps of constant drive z give; shape as z, whole numbers."""
        z = self.corrected(z)
        theta, start = self.per_channel(self.threshold, z.ndim), self.per_channel(self.v_init, z.ndim)
        return levels(z, theta, start, self.timesteps, self.levels_per_step, self.signed)

    def spiking(self, x: Tensor, *, constant: bool = False, over: bool = False) -> Tensor:
        """Theta * s[t] for all steps, (T*B, ...); `over`: the input is needed no more and may be written over."""
        x = self.corrected(x)
        theta, start = self.per_channel(self.threshold, x.ndim), self.per_channel(self.v_init, x.ndim)
        if self.threshold_rule == "surrogate" or not torch.is_grad_enabled():
            return multistep(x, theta, start, self.rule, constant=constant, over=over)
        share = 0.5 if self.threshold_rule == "mixed" else 1.0
        through_time = (1 - share) * theta + share * theta.detach()
        out = multistep(x, through_time, start, self.rule, constant=constant)
        drive = x if constant else x.view(self.timesteps, -1, *x.shape[1:]).mean(0)
        return step_gradient(out, drive.detach(), theta, self.rule, share, scaled=self.scaled_gradient)

    def reset(self) -> None:
        """Forget the streaming state."""
        self._window = Window()

    def step(self, x: Tensor | None) -> Tensor | None:
        """One tick: take the input of the next step (None when there is none) and emit, or None while looking ahead.

        The first output comes after `lookahead` ticks; T outputs answer T inputs, and the next T may follow at once.
        Shapes: (B, ...) in and out.

        Raises:
            InputError: the shape changed before `reset`.
        """
        return self._window.tick(None if x is None else self.corrected(x), self.timesteps, self.lookahead, self._fire)

    def _fire(self, paced: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        theta, start = (self.per_channel(v, paced.ndim).to(paced.dtype) for v in (self.threshold, self.v_init))
        spikes = fire(paced / theta + start, count, self.rule)
        return spikes, spikes * theta

    def extra_repr(self) -> str:
        """Options in one line; never the tensors."""
        return (
            f"T={self.timesteps}, spikes={self.spikes}, delay={self.delay}, theta per {self.granularity}, "
            f"surrogate={self.surrogate}({self.width:g})"
        )


def _log_threshold(threshold: float | Tensor) -> Tensor:
    value = torch.as_tensor(threshold, dtype=torch.float32).detach().clone()
    if value.ndim > 1:
        raise InputError(f"threshold: expected a number or one value a channel, got shape {tuple(value.shape)}")
    if not bool((value.isfinite() & (value > 0)).all()):
        raise InputError(f"threshold: expected positive finite values, got a minimum of {value.min().item():g}")
    return value.log()


def _check_range(floor: float | None, ceiling: float | None, steps: int | None) -> None:
    if floor is not None and floor > 0:
        raise InputError(f"floor: expected 0 or below, or None, got {floor!r}")
    if ceiling is not None and ceiling <= (floor or 0):
        raise InputError(f"ceiling: expected a value above the floor and above 0, got {ceiling!r}")
    if steps is not None and (steps < 1 or ceiling is None or floor != 0):
        raise InputError(
            f"steps: expected None, or at least 1 with floor 0 and a ceiling, got {steps!r}, {floor!r}, {ceiling!r}"
        )


def _check_steps(timesteps: int, delay: Delay) -> None:
    if timesteps < 1:
        raise InputError(f"timesteps: expected at least 1, got {timesteps}")
    if delay != "full" and (not isinstance(delay, int) or isinstance(delay, bool) or delay < 0):
        raise InputError(f'delay: expected a whole number of steps of at least 0, or "full", got {delay!r}')
