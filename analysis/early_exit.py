"""Early exit: stop an image at the first step whose answer is sure enough, with a threshold from other images.

`Answers` holds every image's answer after each step: how sure it is, which class, and the spikes spent; what stopping
at a threshold gives is computed from it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from speedysnn.analysis.output_metrics import settings
from speedysnn.analysis.readout import watch
from speedysnn.display import plain
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork

CANDIDATES = 400  # thresholds that `choose_confidence` tries, quantiles of the confidences it saw
EXITS = ("confidence", "measure", "accuracy", "agreement", "unchanged", "mean_steps", "median_steps", "p90_steps",
         "mean_latency", "images", "timesteps", "delay", "latency", "spikes", "spikes_per_neuron")  # fmt: skip


def softmax_confidence(means: Tensor) -> Tensor:
    """Probability of the likeliest class, max softmax(m[t]).

    Args:
        means: running means of the output, (T, B, C).

    Returns:
        (T, B), 1/C to 1.
    """
    return means.double().softmax(-1).amax(-1)


def margin_confidence(means: Tensor) -> Tensor:
    """Lead of the best class over the second, top1 - top2 of m[t].

    Args:
        means: running means of the output, (T, B, C).

    Returns:
        (T, B), in the output's unit.
    """
    best = means.double().topk(2, -1).values
    return best[..., 0] - best[..., 1]


# Name -> confidence of running means; user entries win.
MEASURES: dict[str, Callable[[Tensor], Tensor]] = {"softmax": softmax_confidence, "margin": margin_confidence}


def exit_steps(confidence: Tensor, threshold: float) -> Tensor:
    """Find the first step whose confidence is at least the threshold, else T.

    Args:
        confidence: (T, B).
        threshold: in the unit of the confidence.

    Returns:
        (B,), 1 to T.

    Example:
        >>> import torch
        >>> from speedysnn.analysis.early_exit import exit_steps
        >>> exit_steps(torch.tensor([[0.5, 0.9], [0.8, 0.9], [0.7, 0.9]]), 0.75).tolist()
        [2, 1]
    """
    sure = confidence >= threshold
    sure[-1] = True
    return sure.to(torch.int64).argmax(0) + 1


@dataclass(frozen=True)
class Answers:
    """Every image's answer after each step.

    Attributes:
        confidence: (T, N), in the unit of the measure.
        answer: class, (T, N).
        spent: spikes until then, (T, N).
        reference: the reference's class, (N,).
        labels: (N,), or None.
        neurons: of the network.
    """

    confidence: Tensor
    answer: Tensor
    spent: Tensor
    reference: Tensor
    labels: Tensor | None
    neurons: int

    def at(self, threshold: float) -> tuple[Tensor, Tensor]:
        """Stop every image at a threshold.

        Args:
            threshold: in the unit of the measure.

        Returns:
            Exit step and the answer there, (N,) each.
        """
        steps = exit_steps(self.confidence, threshold)
        return steps, self.answer.gather(0, steps[None] - 1)[0]

    def row(self, threshold: float) -> dict[str, Any]:
        """Compute the figures of one threshold.

        Args:
            threshold: in the unit of the measure.

        Returns:
            Columns of `early_exit` by name.
        """
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
        """Compute what a threshold costs against all T steps.

        Args:
            threshold: in the unit of the measure.

        Returns:
            Fields of `Confidence` by name.
        """
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
    """Read the data once and keep all answers.

    Args:
        snn, data, source, limit, progress: as in `measure_noise`.
        measure: of `MEASURES`.

    Returns:
        The answers.

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


def early_exit(
    snn: SpikingNetwork,
    data: Any,
    confidence: Sequence[float] = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
    *,
    measure: str = "softmax",
    source: nn.Module | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Stop each image at the first step whose running mean is sure enough; one row a threshold, all from one pass.

    Choose the threshold on other images than those reported: see `choose_confidence`. Spikes are those spent until the
    answer comes; with a look-ahead the layers before the last have by then run some steps further, which is counted.

    Args:
        snn: the network, in its spiking reading at its present T; it is left as it is.
        data: as in `measure_noise`.
        confidence: thresholds, in the unit of the measure; above every confidence no image exits early.
        measure: "softmax" (probability of the best class) or "margin" (its lead over the second, in logits).
        source: what to compare with, as in `measure_noise`.
        limit: stop after this many images.
        progress: show progress.

    Returns:
        Columns `EXITS`, then exit_1 ... exit_T, the fraction of images that stop at each step. `unchanged` is the
        fraction whose answer is the one that all T steps give; steps and latencies are in time steps.

    Raises:
        InputError: an option out of range, or an output that is not (B, classes).
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> from speedysnn import analysis, convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "test", limit=40)
        >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
        >>> table = analysis.early_exit(snn, images, confidence=(0.0, 2.0))  # at once, and never
        >>> table["mean_steps"].tolist(), table["unchanged"].tolist()[1]
        ([1.0, 4.0], 1.0)
    """
    thresholds = list(dict.fromkeys(float(value) for value in confidence))
    if not thresholds or any(math.isnan(value) for value in thresholds):
        raise InputError(f"confidence: expected one or more numbers, got {list(confidence)}")
    answers = collect(snn, data, measure, source, limit, progress)
    rows = [{"confidence": value, "measure": measure, **answers.row(value), **settings(snn)} for value in thresholds]
    names = [f"exit_{step}" for step in range(1, snn.timesteps + 1)]
    table = pd.DataFrame(rows, columns=[*EXITS, *names])
    table["mean_latency"] = table["mean_steps"] + (snn.latency - snn.timesteps)
    return table


@dataclass(frozen=True)
class Confidence:
    """The threshold that `choose_confidence` found.

    Attributes:
        confidence: the threshold for `early_exit`; infinite where no image may exit early.
        measure: what it is a threshold of.
        criterion: "accuracy" where labels were known, else "unchanged".
        allowed_loss: as asked for, a fraction.
        loss: what exiting early costs on these images, a fraction; below 0 it gains.
        loss_error: standard error of that loss.
        mean_steps: until the answer, in time steps.
        timesteps: T of the network it was chosen for.
        images: how many it was chosen on.
    """

    confidence: float
    measure: str
    criterion: str
    allowed_loss: float
    loss: float
    loss_error: float
    mean_steps: float
    timesteps: int
    images: int

    def to_json(self) -> dict[str, Any]:
        """Give the fields as strict JSON data.

        Returns:
            Values by name; infinity is a word.
        """
        return {name: plain(value) for name, value in asdict(self).items()}


def choose_confidence(
    snn: SpikingNetwork,
    validation: Any,
    allowed_loss: float = 0.005,
    *,
    measure: str = "softmax",
    limit: int | None = None,
    progress: bool = False,
) -> Confidence:
    """Find the lowest threshold from which on early exit costs at most `allowed_loss` on validation images.

    The loss is accuracy(T steps) - accuracy(early exit) with labels, else the fraction of answers that change; at
    every higher threshold tried it is within the allowance too. Give images that are neither reported on nor, if
    there are others, trained on: a network is surer of those than of new ones.

    Args:
        snn: the network at the T, look-ahead and spikes it is to run with.
        validation: as `data` in `measure_noise`, held out.
        allowed_loss: a fraction in 0..1.
        measure: "softmax" or "margin".
        limit: stop after this many images.
        progress: show progress.

    Returns:
        The threshold, and what it costs on these images.

    Raises:
        InputError: an option out of range, or an output that is not (B, classes).
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> from speedysnn import analysis, convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "test", limit=40)
        >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
        >>> found = analysis.choose_confidence(snn, images, allowed_loss=0.05)
        >>> found.criterion, found.loss <= 0.05, found.mean_steps <= 4
        ('accuracy', True, True)
    """
    if not 0 <= allowed_loss <= 1:
        raise InputError(f"allowed_loss: expected a fraction in 0..1, got {allowed_loss!r}")
    answers = collect(snn, validation, measure, None, limit, progress)
    values = answers.confidence.flatten()
    tried = values.quantile(torch.linspace(0, 1, CANDIDATES, dtype=values.dtype)) if len(values) < 2**24 else None
    if tried is None:  # more than torch's quantile takes
        order = values.sort().values
        tried = order[torch.linspace(0, len(order) - 1, CANDIDATES).long()]
    best = answers.choice(math.inf)
    for threshold in sorted(set(tried.tolist()), reverse=True):
        candidate = answers.choice(threshold)
        if candidate["loss"] > allowed_loss:
            break
        best = candidate
    return Confidence(measure=measure, allowed_loss=allowed_loss, timesteps=snn.timesteps, **best)
