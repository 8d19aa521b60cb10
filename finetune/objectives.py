"""What a network is trained towards: a teacher's outputs, labels, both, and the source's layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn.errors import InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.finetune.config import Config
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Reading


@dataclass(frozen=True)
class Target:
    """What a batch of outputs is compared with; what a run does not use is None.

    Attributes:
        logits: the teacher's outputs for the same images, (B, ...).
        labels: classes (B,), or probabilities of the classes (B, classes) where images are mixed.
    """

    logits: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(next(x for x in (self.logits, self.labels) if x is not None))

    def split(self, sizes: Sequence[int]) -> list["Target"]:
        """The target of consecutive parts of the batch.

        Args:
            sizes: images of each part; they add up to the batch.

        Returns:
            One target a part.
        """
        missing = [None] * len(sizes)
        logits = missing if self.logits is None else torch.split(self.logits, list(sizes))
        labels = missing if self.labels is None else torch.split(self.labels, list(sizes))
        return [Target(*both) for both in zip(logits, labels, strict=True)]

    def teacher(self) -> Tensor:
        """The teacher's outputs.

        Returns:
            `logits`.

        Raises:
            InputError: there are none.
        """
        if self.logits is None:
            raise InputError("objective: expected a teacher's outputs, got labels alone; train with a teacher")
        return self.logits


Objective = Callable[[Tensor, Target, float], Tensor]


def kl(logits: Tensor, target: Target, temperature: float) -> Tensor:
    r"""Divergence of the outputs' probabilities from the teacher's.

    tau^2 KL(softmax(teacher / tau) || softmax(logits / tau)).

    Args:
        logits: the network's outputs, (B, classes).
        target: what they are compared with; `target.logits` counts.
        temperature: tau, of both softmaxes.

    Returns:
        The mean over images, one number.

    Raises:
        InputError: the target has no teacher's outputs.

    Example:
        >>> import torch
        >>> from speedysnn.finetune import Target
        >>> teacher = torch.tensor([[2.0, 0.0]])
        >>> round(float(kl(torch.tensor([[0.0, 0.0]]), Target(teacher), 1.0)), 4)
        0.3278
        >>> float(kl(teacher, Target(teacher), 1.0))
        0.0
    """
    theirs = F.log_softmax(target.teacher() / temperature, dim=1)
    ours = F.log_softmax(logits / temperature, dim=1)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def mse(logits: Tensor, target: Target, temperature: float) -> Tensor:
    """Mean squared difference of the outputs; of any shape, so that it serves regression too.

    Args:
        logits: the network's outputs, (B, ...).
        target: what they are compared with; `target.logits` counts.
        temperature: has no effect.

    Returns:
        The mean over images and outputs, one number.

    Raises:
        InputError: the target has no teacher's outputs.

    Example:
        >>> import torch
        >>> from speedysnn.finetune import Target
        >>> float(mse(torch.tensor([[1.0, 2.0]]), Target(torch.tensor([[1.0, 4.0]])), 1.0))
        2.0
    """
    return F.mse_loss(logits, target.teacher())


def labels(logits: Tensor, target: Target, temperature: float) -> Tensor:
    """Cross-entropy with class labels, or with mixtures of them.

    Args:
        logits: the network's outputs, (B, classes).
        target: what they are compared with; `target.labels` counts.
        temperature: has no effect.

    Returns:
        The mean over images, one number.

    Raises:
        InputError: there are no labels, the outputs are not one number a class, or a label is none of their classes.

    Example:
        >>> import torch
        >>> from speedysnn.finetune import Target
        >>> round(float(labels(torch.tensor([[2.0, 0.0]]), Target(labels=torch.tensor([0])), 1.0)), 4)
        0.1269
    """
    if target.labels is None:
        raise InputError("labels: the data has none; use 'kl' or 'mse', which need a teacher and no labels")
    if target.labels.ndim == 1:
        require_classes(target.labels, logits)
        return F.cross_entropy(logits, target.labels)
    return F.cross_entropy(logits, target.labels.to(logits.dtype))


def require_classes(classes: Tensor, logits: Tensor) -> None:
    """Refuse labels that are none of a network's classes.

    Args:
        classes: labels, (B,).
        logits: the network's outputs for any images, (B, ...).

    Raises:
        InputError: the outputs are not one number a class, or a label is none of their classes.
    """
    low, high = int(classes.min()), int(classes.max())
    if logits.ndim != 2 or low < 0 or high >= logits.shape[1]:
        raise InputError(
            f"labels: expected classes 0..{logits.shape[-1] - 1} for outputs (B, ...) of {tuple(logits.shape[1:])}, "
            f"got {low}..{high}; take a network with as many outputs as classes"
        )


def beside_labels(loss_fn: Objective, weight: float) -> Objective:
    """(1 - a) loss_fn + a cross-entropy with the labels, a the weight (Hinton et al. 2015, arXiv:1503.02531).

    Args:
        loss_fn: the objective to the teacher.
        weight: a.

    Returns:
        An objective whose targets hold both the teacher's outputs and labels.
    """

    def both(logits: Tensor, target: Target, temperature: float) -> Tensor:
        if logits.ndim != 2:
            raise InputError(f"label_weight: expected outputs (B, classes), got {tuple(logits.shape)}")
        return (1 - weight) * loss_fn(logits, target, temperature) + weight * labels(logits, target, temperature)

    return both


OBJECTIVES: dict[str, Objective] = {"kl": kl, "mse": mse, "labels": labels}


def objective(name: str) -> Objective:
    """The named objective.

    Args:
        name: a key of `OBJECTIVES`.

    Returns:
        What computes the loss.

    Raises:
        InputError: no objective has that name.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name]


def loss_of(config: Config, own: Objective | None = None) -> Objective:
    """The loss of a run.

    Args:
        config: the settings, which name the objective and the labels' weight.
        own: an objective in place of the named one.

    Returns:
        The objective, with the labels' cross-entropy where they have a weight.
    """
    loss_fn = own or objective(config.objective)
    return beside_labels(loss_fn, config.label_weight) if config.label_weight else loss_fn


class Recorder:
    """An observer that keeps every neuron's mean output, (B, ...) by name."""

    def __init__(self) -> None:
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, tap: LayerRecord) -> None:
        """Keep one neuron's output, averaged over its steps."""
        self.outputs[tap.name] = mean_output(tap)


def mean_output(tap: LayerRecord) -> Tensor:
    """A neuron's output averaged over its steps, (B, ...).

    Returns:
        One value a neuron and image.
    """
    return tap.mean_output()


def outputs_and_layers(
    snn: SpikingNetwork, inputs: Sequence[Tensor], reading: Reading | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """(output, every neuron's mean output) for a batch, in the present reading or the one given.

    Returns:
        The outputs, and every neuron's mean output by name.
    """
    recorder = Recorder()
    with snn.reading(reading or snn.present_reading):
        out = snn(*inputs, observer=recorder)
    return out, recorder.outputs


def powers(source: Mapping[str, Tensor]) -> Tensor:
    """Sum of squares of every layer's source activation over the batch, (layers,).

    Returns:
        One sum a layer.
    """
    sums = [x.square().sum().clamp_min(torch.finfo(x.dtype).tiny) for x in source.values()]
    return torch.stack(sums) if sums else torch.zeros(0)


def layer_distance(ours: Mapping[str, Tensor], source: Mapping[str, Tensor], total: Tensor | None = None) -> Tensor:
    """Mean over layers of sum (r - a)^2 / sum a^2; r mean output, a source activation, both (B, ...).

    `total` holds the denominators of the whole batch where these images are a part of it. The distance is the mean
    noise-to-signal power ratio: 0.1 stands for an SQNR of 10 dB.

    Returns:
        One number, 0 where all layers agree.
    """
    total = powers(source) if total is None else total
    return torch.stack([(ours[name] - x).square().sum() for name, x in source.items()]).div(total).mean()
