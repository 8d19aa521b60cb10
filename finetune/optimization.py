"""Which parameters train and how they move: groups, optimizer, learning rate, running average."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from speedysnn.errors import TrainingError
from speedysnn.finetune.config import GROUPS, Config
from speedysnn.network import SpikingNetwork

_BIASES = ("bias",)


def grouped(snn: SpikingNetwork) -> dict[str, dict[str, nn.Parameter]]:
    """All parameters by group and name.

    Returns:
        Parameters by group, then by name.
    """
    out: dict[str, dict[str, nn.Parameter]] = {group: {} for group in GROUPS}
    for name, parameter in snn.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last == "log_threshold":
            group = "thresholds"
        elif last == "v_init":
            group = "v_init"
        else:
            group = "biases" if last in _BIASES else "weights"
        out[group][name] = parameter
    return out


@contextmanager
def trainable(snn: SpikingNetwork, config: Config) -> Iterator[dict[str, dict[str, nn.Parameter]]]:
    """The chosen groups with gradients on and all others off; every flag comes back afterwards."""
    flags = {parameter: parameter.requires_grad for parameter in snn.parameters()}
    groups = {group: members for group, members in grouped(snn).items() if group in config.train and members}
    chosen = {parameter for members in groups.values() for parameter in members.values()}
    if not chosen:
        raise TrainingError(f"nothing to train: the network has no {', '.join(config.train)}")
    try:
        for parameter in flags:
            parameter.requires_grad_(parameter in chosen)
        yield groups
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


def optimizer(groups: dict[str, dict[str, nn.Parameter]], config: Config, factor: float) -> torch.optim.Optimizer:
    """Adam with one parameter group a group, in a fixed order; decay on weights only.

    Returns:
        The optimizer, at the peak rates.
    """
    return torch.optim.AdamW(
        [
            {
                "params": list(groups[group].values()),
                "lr": config.rate(group) * factor,
                "initial_lr": config.rate(group) * factor,
                "weight_decay": config.weight_decay if group == "weights" else 0.0,
            }
            for group in GROUPS
            if group in groups
        ]
    )


def keep_in_range(snn: SpikingNetwork) -> None:
    """v_init stays a fraction of theta: outside 0..1 the count would leave the quantizer's."""
    with torch.no_grad():
        for neuron in snn.neurons.values():
            neuron.v_init.clamp_(0, 1)


def bad_gradients(snn: SpikingNetwork) -> Sequence[str]:
    """Names of parameters whose gradient is NaN or infinite.

    Returns:
        The names, none where all is well.
    """
    given = {name: parameter.grad for name, parameter in snn.named_parameters() if parameter.grad is not None}
    if not given or bool(nn.utils.get_total_norm(list(given.values())).isfinite()):  # a GPU is waited for once
        return []
    return [name for name, grad in given.items() if not bool(grad.isfinite().all())]


def rate_factor(progress: float, warmup: float) -> float:
    """What a peak learning rate is multiplied by: a linear rise, then a cosine to zero.

    Args:
        progress: how much of the stage is done, 0 to 1.
        warmup: share of the stage in which the rate rises.

    Returns:
        A factor from 0 to 1.
    """
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1e-9, 1 - warmup)))


def rate_schedule(
    optimizer: torch.optim.Optimizer, epoch: int, epochs: int, batches: int, warmup: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rates of an epoch's steps; they depend on the step's number alone, so resuming needs no state.

    Args:
        optimizer: what `optimizer` made.
        epoch: number of the epoch in its stage, from 0.
        epochs: epochs of the stage.
        batches: steps of an epoch.
        warmup: share of the stage in which the rate rises.

    Returns:
        A scheduler that stands at the epoch's first step.
    """

    def factor(step: int) -> float:
        return rate_factor((step // batches + step % batches / batches) / epochs, warmup)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor, last_epoch=epoch * batches - 1)


class Average:
    """A running average of a network's state, held by torch's `AveragedModel`.

    m <- d m + (1 - d) p after every step n, d = min(decay, (1 + n) / (10 + n)) (Polyak and Juditsky 1992); thresholds
    are averaged as log theta.
    """

    def __init__(self) -> None:
        self._model: AveragedModel | None = None
        self._decay = 0.0

    @property
    def values(self) -> dict[str, Tensor]:
        """Averages by name of parameter or buffer; empty where no step was averaged."""
        return {} if self._model is None else _floating(self._model.module)

    @property
    def steps(self) -> int:
        """How many steps were averaged: n."""
        return 0 if self._model is None else int(self._model.n_averaged)

    @classmethod
    def restored(cls, module: nn.Module, values: Mapping[str, Tensor], steps: int) -> "Average":
        """An average that goes on from what an earlier process kept.

        Args:
            module: the network.
            values: what `values` gave, empty for no average.
            steps: what `steps` gave.

        Returns:
            The average, on the network's device.
        """
        average = cls()
        if values:
            model = average._start(module)
            model.module.load_state_dict(values, strict=False)
            model.n_averaged.fill_(steps)
        return average

    @torch.no_grad()
    def update(self, module: nn.Module, decay: float) -> None:
        """Take in the present state; with decay 0 no average is kept, and the state is judged as it is.

        Args:
            module: the network after a step.
            decay: most that the average keeps of itself in a step.
        """
        if not decay:
            return
        self._decay = decay
        (self._model or self._start(module)).update_parameters(module)

    def _start(self, module: nn.Module) -> AveragedModel:
        self._model = AveragedModel(module, multi_avg_fn=self._move, use_buffers=True)
        return self._model

    def _move(self, averages: Sequence[Tensor], present: Sequence[Tensor], averaged: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # counters; they are as the network has them
            torch._foreach_copy_(list(averages), list(present))
            return
        step = int(averaged) + 1
        torch._foreach_lerp_(list(averages), list(present), 1 - min(self._decay, (1 + step) / (10 + step)))

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module holds the average; its own state comes back afterwards.

        Args:
            module: the network.
        """
        values = self.values
        present = _floating(module) if values else {}
        own = {name: value.clone() for name, value in present.items()}
        with torch.no_grad():
            try:
                for name, value in present.items():
                    value.copy_(values[name])
                yield
            finally:
                for name, value in present.items():
                    value.copy_(own[name])


def _floating(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.state_dict().items() if value.is_floating_point()}
