"""Rules that choose a threshold from a histogram of activations; `RULES` is the one table of them.

A user adds a rule with one line, `RULES["mine"] = ThresholdRule(function)`; it replaces a built-in rule of the same
name, and `to_spiking(threshold=...)` also takes the function itself.

"mse" minimises the squared error for this T and v_init. "output-mse" weighs each error by its squared gradient at the
output, which needs a backward pass of the calibration. "gaussian", "laplace" and "half-normal" minimise the squared
error of a fitted law (see `speedysnn.calibration.distributions`). "max" and "percentile:Q" do not depend on T. "clip"
keeps the source's own clip.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from speedysnn.calibration.distributions import LAWS, fitted_threshold, least_squares
from speedysnn.calibration.histogram import ActivationHistogram
from speedysnn.errors import ConversionError, InputError

GRADIENTS = "gradients"  # what a rule may need: squared gradients at the output, by bin
CLIP = "clip"  # theta is the source activation's own clip over N, whatever the histogram holds


@dataclass(frozen=True)
class Request:
    """What a threshold rule is called with.

    Attributes:
        histogram: of the layer's activations, C rows, or 2 C rows if `signed`: the values, then the values negated.
        magnitudes: the histogram of the absolute values, C rows.
        v_init: (C,) in 0..1.
        timesteps: T.
        max_spikes: N, the most spikes a step.
        signed: the values may be negative.
        argument: what stands after the colon in the rule's name, as `ThresholdRule.parse` read it.
        layer: the neuron's name.

    Example:
        >>> import torch
        >>> from speedysnn.calibration import ActivationHistogram, Request
        >>> hist = ActivationHistogram()
        >>> hist.update(torch.tensor([[1.0, 4.0]]))
        >>> request = Request(hist, hist, torch.tensor([0.5]), timesteps=4, max_spikes=1, signed=False)
        >>> request.magnitudes.maximum / request.max_spikes  # the rule "max"
        tensor([4.])
    """

    histogram: ActivationHistogram
    magnitudes: ActivationHistogram
    v_init: Tensor
    timesteps: int
    max_spikes: int
    signed: bool
    argument: Any = None
    layer: str = ""

    def gradient_histogram(self) -> ActivationHistogram:
        """Return the histogram with squared gradients for counts: each bin holds the sum of (v dy/dz)^2.

        z is an activation in the bin, y the network's output and v random signs, one for each output and image, so that
        the expected sum is that of the squared Jacobian: how much the output's squared error grows with a squared error
        made there. A rule that reads this says so, `ThresholdRule(mine, needs=(GRADIENTS,))`.

        Returns:
            Rows and bins as those of `histogram`, counts float64; values at zero have none.

        Raises:
            ConversionError: the gradients were not collected.
        """
        found = self.histogram.by_gradient()
        if found is None:
            raise ConversionError(
                f"layer {self.layer!r}: its threshold rule asks for gradients, which were not collected; give the rule "
                f"needs=({GRADIENTS!r},) and convert again with calibration data"
            )
        return found


Choose = Callable[[Request], Tensor]


@dataclass(frozen=True)
class ThresholdRule:
    """One rule of `RULES`.

    Attributes:
        choose: called with a `Request`; returns theta, (C,) or one number, in the activation's unit. A channel's theta
            of 0 stands for a dead channel.
        needs: what the calibration has to collect beside the histogram; `GRADIENTS` is all there is.
        parse: reads what a user writes after the colon and raises ValueError where it is wrong; None: nothing may.
        form: how a user writes a rule with an argument, for messages.

    Example:
        >>> import torch
        >>> from speedysnn.calibration import RULES, ActivationHistogram, ThresholdRule, choose
        >>> RULES["half"] = ThresholdRule(lambda request: request.magnitudes.maximum / 2)
        >>> hist = ActivationHistogram()
        >>> hist.update(torch.tensor([[1.0, 4.0]]))
        >>> choose(hist, "half", torch.tensor([0.5]), timesteps=4)
        tensor([2.])
        >>> del RULES["half"]
    """

    choose: Choose
    needs: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    form: str = ""

    def __post_init__(self) -> None:
        """Raise InputError for a need that calibration cannot meet."""
        unknown = [need for need in self.needs if need != GRADIENTS]
        if unknown:
            raise InputError(f"threshold rule: needs must be () or ({GRADIENTS!r},), got {self.needs!r}")


Rule = str | ThresholdRule | Choose


def _fitted(law: str, r: Request) -> Tensor:
    """Choose theta by a fitted law."""
    return fitted_threshold(law, r.magnitudes, r.v_init, r.timesteps, r.max_spikes, signed=r.signed)


def _percentage(text: str) -> float:
    """Read the Q of "percentile:Q"; raises ValueError where it is not in 0..100."""
    q = float(text)
    if not 0 < q <= 100:
        raise ValueError
    return q


def least_output_error(r: Request) -> Tensor:
    """Find the theta with the least squared error at the output, to first order: each error is weighed by its gradient.

    A channel that the output does not depend on takes the theta of "mse".

    Args:
        r: with a histogram of squared gradients.

    Returns:
        Theta (C,), in the activation's unit.
    """
    plain = least_squares(r.histogram, r.v_init, r.timesteps, r.max_spikes, signed=r.signed)
    weighted = r.gradient_histogram()
    seen = weighted.counts.sum(1).view(2 if r.signed else 1, -1).sum(0) > 0
    return torch.where(seen, least_squares(weighted, r.v_init, r.timesteps, r.max_spikes, signed=r.signed), plain)


# One row for each rule; a function of a `Request` may stand for a row without further fields.
RULES: dict[str, ThresholdRule | Choose] = {
    "mse": ThresholdRule(lambda r: least_squares(r.histogram, r.v_init, r.timesteps, r.max_spikes, signed=r.signed)),
    "output-mse": ThresholdRule(least_output_error, needs=(GRADIENTS,)),
    "max": ThresholdRule(lambda r: r.magnitudes.maximum / r.max_spikes),
    "percentile": ThresholdRule(
        lambda r: r.magnitudes.percentile(r.argument) / r.max_spikes,
        parse=_percentage,
        form='"percentile:Q" with 0 < Q <= 100',
    ),
    **{law: ThresholdRule(partial(_fitted, law)) for law in LAWS},
}


def as_rule(rule: ThresholdRule | Choose) -> ThresholdRule:
    """Return a row of `RULES` from the row or the function that stands for it.

    Raises:
        InputError: the rule cannot be called.
    """
    if isinstance(rule, ThresholdRule):
        return rule
    if not callable(rule):
        raise InputError(f"threshold rule: expected a name, a function or a ThresholdRule, got {rule!r}")
    return ThresholdRule(rule)


def parse_rule(rule: str) -> tuple[str, Any]:
    """Split a rule's text into a key of `RULES`, or "clip", and its argument.

    Raises:
        InputError: an unknown rule, or an argument that the rule does not take.
    """
    name, colon, value = rule.partition(":")
    if name == CLIP and not colon:
        return name, None
    if name in RULES:
        parse = as_rule(RULES[name]).parse
        if parse is None and not colon:
            return name, None
        if parse is not None:
            with suppress(ValueError):
                return name, parse(value)
    raise InputError(f"threshold rule: expected {rules_help()}, got {rule!r}")


def rules_help() -> str:
    """List every rule that is known now.

    Returns:
        "one of ...", for messages and the help of an option.
    """
    rows = {name: as_rule(rule) for name, rule in RULES.items()}
    plain = [f'"{name}"' for name, row in rows.items() if row.parse is None]
    words = [*plain, f'"{CLIP}"', *(row.form or f'"{name}:..."' for name, row in rows.items() if row.parse)]
    return f"one of {', '.join(words[:-1])} or {words[-1]}"


def needs_of(rule: Rule) -> tuple[str, ...]:
    """Return what a rule needs beside the histogram; nothing for an unknown name."""
    if not isinstance(rule, str):
        return as_rule(rule).needs
    name = rule.partition(":")[0]
    return as_rule(RULES[name]).needs if name in RULES else ()


def starts_of(v_init: Tensor, channels: int) -> Tensor:
    """Return v_init as (C,) in 0..1; a layer-wide threshold takes the mean of channels with different values."""
    start = v_init.detach().to("cpu", torch.float32).clamp(0, 1)
    return (start if start.numel() in (1, channels) else start.mean()).reshape(-1).expand(channels)


def choose(
    hist: ActivationHistogram,
    rule: Rule,
    v_init: Tensor,
    timesteps: int,
    max_spikes: int = 1,
    *,
    signed: bool = False,
    layer: str = "",
) -> Tensor:
    """Choose theta by a rule; a dead channel takes the layer's largest theta, so that it stays silent.

    Args:
        hist: the layer's activations, C rows, or 2 C rows if `signed`; most built-in rules then use the magnitudes.
        rule: a name such as "mse" or "percentile:99.9", a `ThresholdRule`, or a function of a `Request`. "clip" stands
            for "mse" here, where there is no clip.
        v_init: (C,) or one number, as a fraction of theta.
        timesteps: T.
        max_spikes: N, the most spikes in one step.
        signed: whether the values may be negative.
        layer: the neuron's name, for messages.

    Returns:
        Theta (C,) float32, in the activation's unit.

    Raises:
        ConversionError: no activation of the layer was ever positive, or the rule returned no thetas.
        InputError: an unknown rule.

    Example:
        >>> import torch
        >>> from speedysnn.calibration import RULES, ActivationHistogram, choose
        >>> hist = ActivationHistogram()
        >>> hist.update(torch.linspace(0, 1, 1001)[None])
        >>> for rule in ("max", "percentile:90", "mse"):
        ...     print(rule, round(choose(hist, rule, torch.tensor([0.5]), timesteps=4).item(), 2))
        max 1.0
        percentile:90 0.9
        mse 0.89
        >>> "output-mse" in RULES
        True
    """
    name, argument = parse_rule(rule) if isinstance(rule, str) else ("", None)
    row = as_rule(RULES["mse" if name == CLIP else name] if isinstance(rule, str) else rule)
    sizes = hist.folded() if signed else hist
    start = starts_of(v_init, sizes.channels)
    theta = row.choose(Request(hist, sizes, start, timesteps, max_spikes, signed, argument, layer))
    theta = _checked(theta, sizes.channels, layer)
    # a percentile at zero would be no threshold
    theta = torch.where(theta > 0, theta, sizes.maximum / max_spikes)
    if not bool((theta > 0).any()):
        raise ConversionError(
            f"layer {layer!r}: no activation was {'other than zero' if signed else 'positive'} on the calibration "
            "data, so no threshold can be chosen; "
            "check the checkpoint and the input's normalisation, or give the threshold yourself"
        )
    return torch.where(theta > 0, theta, theta.max())


def _checked(theta: Any, channels: int, layer: str) -> Tensor:
    """Return what a rule gave as (C,) float32.

    Raises:
        ConversionError: it is no tensor, has another shape, or holds NaN or infinity.
    """
    if not isinstance(theta, Tensor) or theta.numel() not in (1, channels) or not bool(theta.isfinite().all()):
        came = f"shape {tuple(theta.shape)}" if isinstance(theta, Tensor) else type(theta).__name__
        raise ConversionError(
            f"layer {layer!r}: its threshold rule gave {came}; expected a tensor of {channels} finite thetas, or of one"
        )
    return theta.detach().to("cpu", torch.float32).reshape(-1).expand(channels)


def predicted_rate(
    hist: ActivationHistogram,
    theta: Tensor,
    v_init: Tensor,
    timesteps: int,
    max_spikes: int = 1,
    *,
    signed: bool = False,
) -> float:
    """Predict the mean spikes per neuron and step that the quantizer emits on the calibration data, from bin centres.

    Args:
        hist: the layer's activations, C rows, or 2 C rows if `signed`.
        theta: (C,) or one number, in the activation's unit.
        v_init: likewise, as a fraction of theta.
        timesteps: T.
        max_spikes: N.
        signed: whether the values may be negative.

    Returns:
        The rate, in spikes per neuron and step.

    Example:
        >>> import torch
        >>> from speedysnn.calibration import ActivationHistogram, predicted_rate
        >>> hist = ActivationHistogram()
        >>> hist.update(torch.tensor([[0.0, 0.5, 0.5, 1.0]]))
        >>> predicted_rate(hist, torch.tensor(1.0), torch.tensor(0.5), timesteps=4)
        0.5
    """
    edges = hist.edges()
    centres = (edges[:, 1:] + edges[:, :-1]) / 2
    channels = hist.channels // 2 if signed else hist.channels
    th = theta.detach().cpu().to(torch.float64).reshape(-1).expand(channels)
    v0 = starts_of(v_init, channels).to(torch.float64)
    if signed:
        th, v0 = th.repeat(2), torch.cat([v0, 1 - v0])
    scaled = centres * timesteps / th[:, None] + v0[:, None]
    spikes = torch.floor(scaled).clamp(0, timesteps * max_spikes) * hist.counts
    return float(spikes.sum() / hist.total.sum().clamp_min(1) / timesteps) * (2 if signed else 1)
