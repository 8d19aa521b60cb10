"""What a network is trained towards: a teacher's outputs, labels, both, and the source's layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn.errors import InputError
from speedysnn.finetune.config import Config
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Reading
from speedysnn.tap import Tap

Objective = Callable[[Tensor, Tensor, float], Tensor]


def kl(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """tau^2 KL(softmax(teacher/tau) || softmax(logits/tau)), mean over images; shapes (B, classes)."""
    target = F.log_softmax(teacher / temperature, dim=1)
    ours = F.log_softmax(logits / temperature, dim=1)
    return F.kl_div(ours, target, reduction="batchmean", log_target=True) * temperature**2


def mse(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean squared difference of the outputs; any shape, so that it serves regression too."""
    return F.mse_loss(logits, teacher)


def labels(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Cross-entropy with class labels (B,), or with mixtures of two (B, 3), see `columns`; logits (B, classes).

    Raises:
        InputError: the outputs are not one number a class, or a label is none of their classes.
    """
    classes = target if target.ndim == 1 else target[:, :2]
    low, high = int(classes.min()), int(classes.max())
    if logits.ndim != 2 or low < 0 or high >= logits.shape[1]:
        raise InputError(
            f"labels: expected classes 0..{logits.shape[-1] - 1} for outputs (B, ...) of {tuple(logits.shape[1:])}, "
            f"got {low}..{high}; take a network with as many outputs as classes"
        )
    if target.ndim == 1:
        return F.cross_entropy(logits, target)
    first, second = (F.cross_entropy(logits, target[:, i].long(), reduction="none") for i in (0, 1))
    return torch.lerp(second, first, target[:, 2].to(logits.dtype)).mean()


def columns(target: Tensor, partner: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """(B, 3): class, class of the image it is mixed with, weight of the first; without a partner the class itself."""
    second = target if partner is None else partner
    share = torch.ones(target.shape, device=target.device) if weight is None else weight
    return torch.stack([target.float(), second.float(), share.to(target.device).float()], 1)


def beside(answers: Tensor, target: Tensor) -> Tensor:
    """(B, classes + 3): a teacher's answers (B, classes) and the columns of the labels (B,) or (B, 3).

    Raises:
        InputError: the answers are not one number a class.
    """
    if answers.ndim != 2:
        raise InputError(f"label_weight: expected outputs (B, classes), the teacher's are {tuple(answers.shape)}")
    return torch.cat([answers, columns(target) if target.ndim == 1 else target], 1)


def answers_of(target: Tensor, ours: Tensor) -> Tensor:
    """The teacher's answers alone, of the shape of ours; any shape where no labels stand beside them."""
    return target[:, : ours.shape[1]] if target.ndim == ours.ndim == 2 else target


def beside_labels(aim: Objective, weight: float) -> Objective:
    """(1 - a) aim + a cross-entropy with the labels, a the weight (Hinton et al. 2015, arXiv:1503.02531).

    Its targets are those of `beside`.
    """

    def both(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
        teacher = (1 - weight) * aim(logits, answers_of(target, logits), temperature)
        return teacher + weight * labels(logits, target[:, logits.shape[1] :], temperature)

    return both


OBJECTIVES: dict[str, Objective] = {"kl": kl, "mse": mse, "labels": labels}


def objective(name: str) -> Objective:
    """The named objective.

    Raises:
        InputError: no objective has that name.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name]


def aim_of(config: Config, own: Objective | None = None) -> Objective:
    """What a run is trained towards: the objective named in its settings or the user's own, and the labels beside."""
    aim = own or objective(config.objective)
    return beside_labels(aim, config.label_weight) if config.label_weight else aim


class Recorder:
    """An observer that keeps every neuron's mean output, (B, ...) by name."""

    def __init__(self) -> None:
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, tap: Tap) -> None:
        """Keep one neuron's output, averaged over its steps."""
        self.outputs[tap.name] = mean_output(tap)


def mean_output(tap: Tap) -> Tensor:
    """A neuron's output averaged over its steps, (B, ...)."""
    out = tap.output
    return out if tap.static_output else out.view(tap.neuron.timesteps, -1, *out.shape[1:]).mean(0)


def outputs_and_layers(
    snn: SpikingNetwork, inputs: Sequence[Tensor], reading: Reading | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """(output, every neuron's mean output) for a batch, in the present reading or the one given."""
    recorder = Recorder()
    with snn.reading(reading or snn.present_reading):
        out = snn(*inputs, observer=recorder)
    return out, recorder.outputs


def powers(source: Mapping[str, Tensor]) -> Tensor:
    """Sum of squares of every layer's source activation over the batch, (layers,)."""
    sums = [x.square().sum().clamp_min(torch.finfo(x.dtype).tiny) for x in source.values()]
    return torch.stack(sums) if sums else torch.zeros(0)


def layer_distance(ours: Mapping[str, Tensor], source: Mapping[str, Tensor], total: Tensor | None = None) -> Tensor:
    """Mean over layers of sum (r - a)^2 / sum a^2; r mean output, a source activation, both (B, ...).

    `total` holds the denominators of the whole batch where these images are a part of it. The distance is the mean
    noise-to-signal power ratio: 0.1 stands for an SQNR of 10 dB.
    """
    total = powers(source) if total is None else total
    return torch.stack([(ours[name] - x).square().sum() for name, x in source.items()]).div(total).mean()
