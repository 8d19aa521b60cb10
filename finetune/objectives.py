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

    Example:
        An objective of your own, for `fit(..., objective=...)`:

        >>> import torch
        >>> from speedysnn.finetune import Target
        >>> def worst_output(logits, target, temperature):
        ...     return (logits - target.teacher()).abs().amax(1).mean()
        >>> target = Target(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
        >>> float(worst_output(torch.zeros(2, 2), target, 1.0))
        1.0
        >>> [len(part) for part in target.split([1, 1])]
        [1, 1]
    """

    logits: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(next(x for x in (self.logits, self.labels) if x is not None))

    def split(self, sizes: Sequence[int]) -> list["Target"]:
        """Split the target into those of consecutive parts of the batch.

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
        """Give the teacher's outputs.

        Returns:
            `logits`, (B, ...).

        Raises:
            InputError: there are none.
        """
        if self.logits is None:
            raise InputError("objective: expected a teacher's outputs, got labels alone; train with a teacher")
        return self.logits


Objective = Callable[[Tensor, Target, float], Tensor]


def kl(logits: Tensor, target: Target, temperature: float) -> Tensor:
    """Divergence of the outputs' probabilities from the teacher's.

    loss = tau^2 KL(softmax(teacher / tau) || softmax(logits / tau)).

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
    """Mean squared difference of the outputs, which may have any shape, so that it serves regression too.

    loss = mean (logits - teacher)^2.

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

    loss = -mean log softmax(logits)[label].

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
    """Add labels to an objective: (1 - a) loss_fn + a cross-entropy (Hinton et al. 2015, arXiv:1503.02531).

    Args:
        loss_fn: the objective to the teacher.
        weight: a, between 0 and 1.

    Returns:
        An objective whose targets hold both the teacher's outputs and labels.

    Example:
        >>> import torch
        >>> from speedysnn.finetune.objectives import Target, beside_labels, labels, mse
        >>> out, target = torch.tensor([[2.0, 0.0]]), Target(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        >>> mean = (mse(out, target, 1.0) + labels(out, target, 1.0)) / 2
        >>> bool(beside_labels(mse, 0.5)(out, target, 1.0) == mean)
        True
    """

    def both(logits: Tensor, target: Target, temperature: float) -> Tensor:
        if logits.ndim != 2:
            raise InputError(f"label_weight: expected outputs (B, classes), got {tuple(logits.shape)}")
        return (1 - weight) * loss_fn(logits, target, temperature) + weight * labels(logits, target, temperature)

    return both


OBJECTIVES: dict[str, Objective] = {"kl": kl, "mse": mse, "labels": labels}


def objective(name: str) -> Objective:
    """Look up an objective by name.

    Args:
        name: a key of `OBJECTIVES`, to which a user may add.

    Returns:
        A function (outputs, target, temperature) -> mean loss over images.

    Raises:
        InputError: no objective has that name.

    Example:
        >>> from speedysnn.finetune.objectives import OBJECTIVES, objective
        >>> list(OBJECTIVES)
        ['kl', 'mse', 'labels']
        >>> objective("hinge")
        Traceback (most recent call last):
            ...
        speedysnn.errors.InputError: objective: expected one of kl, mse, labels, got 'hinge'
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name]


def loss_of(config: Config, own: Objective | None = None) -> Objective:
    """Make the loss of a run.

    Args:
        config: the settings, which name the objective and the labels' weight.
        own: an objective in place of the named one.

    Returns:
        The objective, with the labels' cross-entropy where they have a weight.
    """
    loss_fn = own or objective(config.objective)
    return beside_labels(loss_fn, config.label_weight) if config.label_weight else loss_fn


class Recorder:
    """An observer that keeps every layer's output averaged over its steps.

    Attributes:
        outputs: mean outputs by neuron name, (B, ...).
    """

    def __init__(self) -> None:
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, tap: LayerRecord) -> None:
        """Keep one layer's mean output.

        Args:
            tap: what the layer received and emitted.
        """
        self.outputs[tap.name] = tap.mean_output()


def outputs_and_layers(
    snn: SpikingNetwork, inputs: Sequence[Tensor], reading: Reading | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """Run a batch and keep every layer's mean output.

    Args:
        snn: the network.
        inputs: one batch, (B, ...) each.
        reading: "analog", "quantized" or "spiking"; by default the present one.

    Returns:
        The outputs, and every neuron's mean output by name.
    """
    recorder = Recorder()
    with snn.reading(reading or snn.present_reading):
        out = snn(*inputs, observer=recorder)
    return out, recorder.outputs


def powers(source: Mapping[str, Tensor]) -> Tensor:
    """Sum the squares of every layer's activation over a batch.

    Args:
        source: activations by neuron name, (B, ...) each.

    Returns:
        One sum a layer, (layers,).
    """
    sums = [x.square().sum().clamp_min(torch.finfo(x.dtype).tiny) for x in source.values()]
    return torch.stack(sums) if sums else torch.zeros(0)


def layer_distance(ours: Mapping[str, Tensor], source: Mapping[str, Tensor], total: Tensor | None = None) -> Tensor:
    """Measure how far the layers' mean outputs are from the source's activations.

    distance = (1/L) sum_l sum (r_l - a_l)^2 / sum a_l^2, r the mean output and a the activation of L layers: the mean
    noise-to-signal power ratio, where 0.1 stands for an SQNR of 10 dB.

    Args:
        ours: mean outputs by neuron name, (B, ...) each.
        source: the source's activations by neuron name, (B, ...) each.
        total: the denominators, (L,), of the whole batch where these images are a part of it.

    Returns:
        One number, 0 where all layers agree.

    Example:
        >>> import torch
        >>> from speedysnn.finetune.objectives import layer_distance
        >>> source = {"relu1": torch.tensor([[1.0, 0.0]]), "relu2": torch.tensor([[2.0]])}
        >>> float(layer_distance({"relu1": torch.tensor([[1.0, 0.5]]), "relu2": torch.tensor([[1.0]])}, source))
        0.25
    """
    total = powers(source) if total is None else total
    return torch.stack([(ours[name] - x).square().sum() for name, x in source.items()]).div(total).mean()
