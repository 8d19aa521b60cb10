"""Stop a run that goes wrong, and say where: NaN, infinity, or a loss that runs away."""

import math
from typing import Any

from speedysnn.errors import TrainingError
from speedysnn.finetune.parameters import bad_gradients
from speedysnn.network import SpikingNetwork

_AWAY = 10.0


def check_loss(snn: SpikingNetwork, loss: float, place: Any, *, whole: bool = False) -> None:
    """Refuse a loss or a gradient that is not finite, and a whole epoch's loss ten times that of the stage's first.

    Raises:
        TrainingError: naming the stage, the epoch and the layer.
    """
    here = f"{place.stage.kind} stage, epoch {place.epoch + 1}"
    kept = "The best state so far is kept in the network; lower the learning rate, or set clip"
    bad = bad_gradients(snn)
    if not math.isfinite(loss) or bad:
        where = f"; first in the gradient of {bad[0]}" if bad else ""
        raise TrainingError(f"{here}: the loss or a gradient is NaN or infinite{where}. {kept}")
    first = place.first_loss
    if whole and first is not None and loss > _AWAY * max(first, 1e-6):
        raise TrainingError(
            f"{here}: the loss runs away: {loss:.4g} after {first:.4g} in the stage's first epoch; the largest "
            f"gradient is that of {_steepest(snn)}. {kept}"
        )


def _steepest(snn: SpikingNetwork) -> str:
    norms = {name: float(p.grad.norm()) for name, p in snn.named_parameters() if p.grad is not None}
    return max(norms, key=lambda name: norms[name], default="no parameter")
