"""Every image's answer after each step: how sure, which class, and the spikes spent; what stopping early gives."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.analysis.readout import watch
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork


def softmax_confidence(means: Tensor) -> Tensor:
    """Probability of the likeliest class, max softmax(m[t]); (T, B, C) -> (T, B), 1/C to 1."""
    return means.double().softmax(-1).amax(-1)


def margin_confidence(means: Tensor) -> Tensor:
    """Lead of the best class over the second, top1 - top2 of m[t]; (T, B, C) -> (T, B), in the output's unit."""
    best = means.double().topk(2, -1).values
    return best[..., 0] - best[..., 1]


# Name -> confidence of running means; user entries win.
MEASURES: dict[str, Callable[[Tensor], Tensor]] = {"softmax": softmax_confidence, "margin": margin_confidence}


def exit_steps(confidence: Tensor, threshold: float) -> Tensor:
    """First step whose confidence is at least the threshold, else T; (T, B) -> (B,), 1..T."""
    sure = confidence >= threshold
    sure[-1] = True
    return sure.to(torch.int64).argmax(0) + 1


@dataclass(frozen=True)
class Answers:
    """All images, (T, N): how sure, which class, spikes spent; (N,): the reference's class and the label."""

    confidence: Tensor
    answer: Tensor
    spent: Tensor
    reference: Tensor
    labels: Tensor | None
    neurons: int

    def at(self, threshold: float) -> tuple[Tensor, Tensor]:
        """(exit step, answer there), (N,) each."""
        steps = exit_steps(self.confidence, threshold)
        return steps, self.answer.gather(0, steps[None] - 1)[0]

    def row(self, threshold: float) -> dict[str, Any]:
        """The figures of one threshold."""
        steps, answer = self.at(threshold)
        images, real = len(steps), steps.double()
        shares = torch.bincount(steps - 1, minlength=len(self.answer)).double() / images
        return {
            "accuracy": None if self.labels is None else _share(answer == self.labels),
            "agreement": _share(answer == self.reference),
            "unchanged": _share(answer == self.answer[-1]),
            "mean_steps": float(real.mean()),
            "median_steps": float(real.quantile(0.5, interpolation="lower")),
            "p90_steps": float(real.quantile(0.9, interpolation="higher")),
            "images": images,
            "spikes_per_neuron": float(self.spent.gather(0, steps[None] - 1).double().mean()) / self.neurons,
            **{f"exit_{step}": share for step, share in enumerate(shares.tolist(), start=1)},
        }

    def choice(self, threshold: float) -> dict[str, Any]:
        """What the threshold costs against all T steps."""
        steps, answer = self.at(threshold)
        last = self.answer[-1]
        if self.labels is None:
            lost = (answer != last).double()
        else:
            lost = (last == self.labels).double() - (answer == self.labels).double()
        return {
            "confidence": threshold,
            "criterion": "unchanged" if self.labels is None else "accuracy",
            "loss": float(lost.mean()),
            "loss_error": float(lost.std(correction=0)) / math.sqrt(len(lost)),
            "mean_steps": float(steps.double().mean()),
            "images": len(lost),
        }


def collect(
    snn: SpikingNetwork, data: Any, measure: str, source: nn.Module | None, limit: int | None, progress: bool
) -> Answers:
    """All answers of one pass over the data.

    Raises:
        InputError: an unknown measure, or an output that is not (B, classes).
        DataError: no data, NaN in it, or the wrong shape.
    """
    if measure not in MEASURES:
        raise InputError(f"measure: expected one of {', '.join(sorted(MEASURES))}, got {measure!r}")
    parts: list[tuple[Tensor, ...]] = []
    labels: list[Tensor] = []
    neurons = 0
    for seen in watch(snn, data, source, limit, "early exit", progress):
        parts.append((MEASURES[measure](seen.means), seen.means.argmax(-1), seen.spent, seen.analog.argmax(-1)))
        labels += [] if seen.labels is None else [seen.labels]
        neurons = seen.neurons
    columns = [torch.cat(column, -1).cpu() for column in zip(*parts, strict=True)]
    return Answers(columns[0], columns[1], columns[2], columns[3], torch.cat(labels).cpu() if labels else None, neurons)


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
