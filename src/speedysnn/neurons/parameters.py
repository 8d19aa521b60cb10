"""What a neuron layer owns: theta and amplitude by their logarithms, v_init and offset, for the layer or each channel.

What a neuron can be told, and what it refuses: theta, its clip, T and the look-ahead.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from speedysnn.errors import ArtifactError, InputError

Reading = Literal["analog", "quantized", "spiking"]
READINGS: tuple[Reading, ...] = get_args(Reading)
Delay = int | Literal["full"]
THRESHOLD_GRADIENTS = ("surrogate", "step", "mixed")


def log_threshold(threshold: float | Tensor, name: str = "threshold") -> Tensor:
    """Ln theta, which makes theta positive by construction; shape () for a layer or (C,) for channels."""
    value = torch.as_tensor(threshold, dtype=torch.float32).detach().clone()
    if value.ndim > 1:
        raise InputError(f"{name}: expected a number or one value a channel, got shape {tuple(value.shape)}")
    if not bool((value.isfinite() & (value > 0)).all()):
        raise InputError(f"{name}: expected positive finite values, got a minimum of {value.min().item():g}")
    return value.log()


_SAID = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
_LARGE = 2**31  # of a neuron's numbers
_OPTIONS: dict[str, tuple[type, ...]] = {
    "width": (int, float), "detach_reset": (bool,), "channel_dim": (int,), "ceiling": (int, float, type(None)),
    "floor": (int, float, type(None)), "steps": (int, type(None)),
}  # fmt: skip


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options of a neuron that are of another type than it takes.

    Raises:
        ArtifactError: the option, what was expected, what came.
    """
    for option, kinds in _OPTIONS.items():
        value = options.get(option, 0.0 if float in kinds else False if bool in kinds else 0)
        if type(value) not in kinds or not (value is None or abs(value) < _LARGE):
            expected = " or ".join(_SAID[kind] for kind in kinds)
            raise ArtifactError(f"neuron {name!r}: {option} is {value!r}, expected {expected} (numbers below 2^31)")


def check_range(floor: float | None, ceiling: float | None, steps: int | None) -> None:
    """The clip of the source activation, and the number of its steps."""
    if floor is not None and floor > 0:
        raise InputError(f"floor: expected 0 or below, or None, got {floor!r}")
    if ceiling is not None and ceiling <= (floor or 0):
        raise InputError(f"ceiling: expected a value above the floor and above 0, got {ceiling!r}")
    if steps is not None and (steps < 1 or ceiling is None or floor != 0):
        raise InputError(
            f"steps: expected None, or at least 1 with floor 0 and a ceiling, got {steps!r}, {floor!r}, {ceiling!r}"
        )
    if floor != 0 and ceiling != (None if floor is None else -floor):
        raise InputError(
            f"floor, ceiling: expected a floor of 0, none of either, or a ceiling of -floor, since a signed neuron "
            f"counts as far below 0 as above, got {floor!r} and {ceiling!r}; take two neurons, as the conversion does"
        )


def check_steps(timesteps: int, delay: Delay) -> None:
    """T and the look-ahead."""
    if timesteps < 1:
        raise InputError(f"timesteps: expected at least 1, got {timesteps}")
    if delay != "full" and (not isinstance(delay, int) or isinstance(delay, bool) or delay < 0):
        raise InputError(f'delay: expected a whole number of steps of at least 0, or "full", got {delay!r}')


class NeuronParameters(nn.Module):
    """Theta, amplitude, v_init and offset of a layer of neurons, kept in float32 at least; see `IFNeuron`.

    Raises:
        InputError: a threshold that is not positive and finite.
    """

    def __init__(self, threshold: float | Tensor, v_init: float | Tensor, channel_dim: int) -> None:
        super().__init__()
        self.log_threshold = nn.Parameter(log_threshold(threshold))
        self.log_amplitude: nn.Parameter | None
        self.register_parameter("log_amplitude", None)
        self.v_init = nn.Parameter(torch.as_tensor(v_init, dtype=torch.float32).clone())
        self.channel_dim = channel_dim
        self.offset: Tensor | None
        self.register_buffer("offset", None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
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
        """Replace theta in place; a scalar becomes per channel when one value a channel is given.

        An amplitude that was set stays as it is; `scale` moves both.
        """
        value = log_threshold(threshold).to(self.log_threshold)
        self.log_threshold.data = value.clone()

    @property
    def amplitude(self) -> Tensor:
        """A, what one spike stands for in the activation's unit; theta unless one was set; shape () or (C,)."""
        return self.log_threshold.exp() if self.log_amplitude is None else self.log_amplitude.exp()

    def set_amplitude(self, amplitude: float | Tensor | None) -> None:
        """Give spikes a value A of their own, or with None that of theta again.

        The neuron still fires against theta. A trains like theta, by its logarithm; what equals theta bit for bit has
        theta's own logarithm.

        Args:
            amplitude: A in the activation's unit, a number or one value a channel; None for theta, which is the
                default and then trains for both.

        Raises:
            InputError: an amplitude that is not positive and finite.

        Example:
            >>> from speedysnn import IFNeuron
            >>> neuron = IFNeuron(0.5, timesteps=2)
            >>> neuron.set_amplitude(0.75)
            >>> neuron(torch.tensor([0.5, 1.0]), reading="quantized").tolist()
            [0.75, 0.75]
        """
        if amplitude is None:
            self.log_amplitude = None
            return
        theta = self.threshold.detach()
        given = torch.as_tensor(amplitude, dtype=torch.float32).detach().to(theta)
        value = log_threshold(amplitude, "amplitude").to(self.log_threshold)
        if given.shape == theta.shape:  # the logarithm of theta, rounded, need not give theta again
            value = torch.where(given == theta, self.log_threshold.detach(), value)
        if self.log_amplitude is None:
            self.log_amplitude = nn.Parameter(value, requires_grad=self.log_threshold.requires_grad)
        else:
            self.log_amplitude.data = value

    def scale(self, factor: float | Tensor) -> None:
        """Multiply theta, and the amplitude where one was set, in place: input and output keep their proportion.

        Args:
            factor: above 0; a number, or one value a channel, of which an amplitude that serves the whole layer takes
                the geometric mean.

        Raises:
            InputError: a product that is not positive and finite.

        Example:
            >>> from speedysnn import IFNeuron
            >>> neuron = IFNeuron(2.0)
            >>> neuron.set_amplitude(1.0)
            >>> neuron.scale(0.5)
            >>> round(neuron.threshold.item(), 6), round(neuron.amplitude.item(), 6)
            (1.0, 0.5)
        """
        if self.log_amplitude is not None:
            alike = isinstance(factor, Tensor) and factor.ndim > self.log_amplitude.ndim
            own = torch.as_tensor(factor).log().mean().exp() if alike else factor
            self.set_amplitude(self.amplitude.detach() * own)
        self.set_threshold(self.threshold.detach() * factor)

    def own_amplitude(self, ndim: int) -> Tensor | None:
        """The amplitude that was set, shaped as `per_channel` does, or None where it is theta: what kernels take."""
        return None if self.log_amplitude is None else self.per_channel(self.log_amplitude.exp(), ndim)

    @property
    def granularity(self) -> str:
        """One theta for the "layer", or one for each "channel"."""
        return "channel" if self.log_threshold.ndim else "layer"

    def per_channel(self, value: Tensor, ndim: int) -> Tensor:
        """A () or (C,) tensor shaped so that it broadcasts against a (B, ...) tensor of `ndim` dimensions."""
        if value.ndim == 0:
            return value
        shape = [1] * ndim
        shape[self.channel_dim] = -1
        return value.view(shape)

    def corrected(self, z: Tensor) -> Tensor:
        """The drive with the correction's offset, as the quantized and spiking readings see it; shape as z."""
        return z if self.offset is None else z + self.per_channel(self.offset, z.ndim).to(z.dtype)
