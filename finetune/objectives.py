"""What the network is trained towards: the teacher's logits, or labels."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from speedysnn.errors import InputError

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
    """Cross-entropy with class labels; shapes (B, classes) and (B,)."""
    return F.cross_entropy(logits, target)


OBJECTIVES: dict[str, Objective] = {"kl": kl, "mse": mse, "labels": labels}


def objective(name: str) -> Objective:
    """The named objective.

    Raises:
        InputError: no objective has that name.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name]
