"""Which parameters train and how they move: groups, optimizer, learning rate, running average."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from speedysnn.errors import TrainingError
from speedysnn.finetune.config import GROUPS, Config
from speedysnn.network import SpikingNetwork

_BIASES = ("bias",)


def grouped(snn: SpikingNetwork) -> dict[str, dict[str, nn.Parameter]]:
    """All parameters by group and name."""
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
    """Adam with one parameter group a group, in a fixed order; decay on weights only."""
    return torch.optim.AdamW(
        [
            {
                "params": list(groups[group].values()),
                "lr": config.rate(group) * factor,
                "peak": config.rate(group) * factor,
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
    """Names of parameters whose gradient is NaN or infinite."""
    given = {name: parameter.grad for name, parameter in snn.named_parameters() if parameter.grad is not None}
    if not given or bool(nn.utils.get_total_norm(list(given.values())).isfinite()):  # a GPU is waited for once
        return []
    return [name for name, grad in given.items() if not bool(grad.isfinite().all())]


@dataclass
class Average:
    """m <- d m + (1 - d) p after every step n, d = min(decay, (1 + n) / (10 + n)) (Polyak and Juditsky 1992).

    Attributes:
        values: m, by name of parameter or buffer; thresholds are averaged as log theta.
        steps: n.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    @torch.no_grad()
    def update(self, module: nn.Module, decay: float) -> None:
        """Take in the present state; with decay 0 no average is kept, and the state is judged as it is."""
        if not decay:
            return
        self.steps += 1
        share = 1 - min(decay, (1 + self.steps) / (10 + self.steps))
        present = _floating(module)
        if not self.values:
            self.values = {name: value.clone() for name, value in present.items()}
        torch._foreach_lerp_([self.values[name] for name in present], list(present.values()), share)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module holds the average; its own state comes back afterwards."""
        present = _floating(module) if self.values else {}
        own = {name: value.clone() for name, value in present.items()}
        with torch.no_grad():
            try:
                for name, value in present.items():
                    value.copy_(self.values[name])
                yield
            finally:
                for name, value in present.items():
                    value.copy_(own[name])


def _floating(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.state_dict().items() if value.is_floating_point()}
