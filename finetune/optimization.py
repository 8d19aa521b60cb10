"""Which parameters train and how they move: groups, optimizer, learning rate, running average, rounded weights."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from speedysnn.errors import InputError, TrainingError
from speedysnn.finetune.batch_norm import fold_into
from speedysnn.finetune.config import GROUPS, Config
from speedysnn.integer import rounded_weights, to_integer
from speedysnn.network import SpikingNetwork

Groups = Mapping[str, Mapping[str, nn.Parameter]]
_SMALLEST_SCALE = 1e-2  # of biases that are all zero


def grouped(snn: SpikingNetwork) -> dict[str, dict[str, nn.Parameter]]:
    """Sort a network's parameters into the four groups that `Config.train` names.

    Args:
        snn: the network.

    Returns:
        Parameters by group, then by name.

    Example:
        >>> import torch
        >>> from speedysnn import convert
        >>> from speedysnn.finetune.optimization import grouped
        >>> ann = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> snn = convert.to_spiking(ann, torch.rand(16, 8), timesteps=4)
        >>> {group: len(members) for group, members in grouped(snn).items()}
        {'thresholds': 1, 'v_init': 1, 'biases': 2, 'weights': 2}
    """
    out: dict[str, dict[str, nn.Parameter]] = {group: {} for group in GROUPS}
    for name, parameter in snn.named_parameters():
        out[group_of(name)][name] = parameter
    return out


def group_of(name: str) -> str:
    """Say which of the four groups a parameter belongs to.

    Args:
        name: of the parameter, as its module names it.

    Returns:
        "thresholds", "v_init", "biases" or "weights".
    """
    last = name.rsplit(".", 1)[-1]
    known = {"log_threshold": "thresholds", "log_amplitude": "thresholds", "v_init": "v_init", "bias": "biases"}
    return known.get(last, "weights")


def scale_of(group: str, parameter: Tensor) -> float:
    """Measure a parameter's own scale, to which a relative learning rate refers.

    It is the root mean square of weights and biases, and 1 for log thresholds and v_init, which have a scale already.

    Args:
        group: what `group_of` gave.
        parameter: its values.

    Returns:
        A positive number.

    Example:
        >>> import torch
        >>> from speedysnn.finetune.optimization import scale_of
        >>> scale_of("weights", torch.tensor([3.0, -4.0])), scale_of("thresholds", torch.tensor([3.0]))
        (3.535533905029297, 1.0)
    """
    if group in ("thresholds", "v_init") or not parameter.numel():
        return 1.0
    return max(float(parameter.detach().square().mean().sqrt()), _SMALLEST_SCALE)


@contextmanager
def trainable(snn: SpikingNetwork, config: Config) -> Iterator[dict[str, dict[str, nn.Parameter]]]:
    """Turn gradients on for the chosen groups and off for all others; every flag comes back afterwards.

    Args:
        snn: the network.
        config: the settings, which name the groups.

    Yields:
        The chosen parameters by group and name.

    Raises:
        TrainingError: the network has no parameter in these groups.
    """
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


def scales_of(groups: Groups, config: Config) -> dict[str, float]:
    """Measure the scales of the parameters whose learning rates are relative to them.

    Args:
        groups: parameters by group and name.
        config: the settings, which say whose rates are relative.

    Returns:
        By parameter name what `scale_of` gives; parameters with an absolute rate are left out.
    """
    return {
        name: scale_of(group, parameter)
        for group, members in groups.items()
        if config.relative(group)
        for name, parameter in members.items()
    }


def optimizer(
    groups: Groups, config: Config, factor: float, scales: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Make Adam with decoupled decay of the weights, and a rate for each group or for each parameter in its scale.

    Args:
        groups: parameters by group and name.
        config: the settings, which name the rates.
        factor: on all rates.
        scales: what `scales_of` gave when the stage began; a parameter without one has the rate of its group.

    Returns:
        The optimizer, at the peak rates.
    """
    alike: dict[tuple[str, float], list[nn.Parameter]] = {}
    for group in GROUPS:
        for name, parameter in groups.get(group, {}).items():
            alike.setdefault((group, (scales or {}).get(name, 1.0)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": members,
                "lr": config.rate(group) * factor * scale,
                "initial_lr": config.rate(group) * factor * scale,
                "weight_decay": config.weight_decay if group == "weights" else 0.0,
            }
            for (group, scale), members in alike.items()
        ]
    )


def keep_in_range(snn: SpikingNetwork) -> None:
    """Clamp every v_init to 0..1; outside of it the spike count of constant drive is no longer the quantizer's.

    Args:
        snn: the network.
    """
    with torch.no_grad():
        for neuron in snn.neurons.values():
            neuron.v_init.clamp_(0, 1)


def bad_gradients(snn: SpikingNetwork) -> Sequence[str]:
    """Name the parameters whose gradient is NaN or infinite.

    Args:
        snn: the network.

    Returns:
        The names, none where all is well.
    """
    given = {name: parameter.grad for name, parameter in snn.named_parameters() if parameter.grad is not None}
    if not given or bool(nn.utils.get_total_norm(list(given.values())).isfinite()):  # a GPU is waited for once
        return []
    return [name for name, grad in given.items() if not bool(grad.isfinite().all())]


def rate_factor(progress: float, warmup: float) -> float:
    """Compute the factor on the peak learning rates: a linear rise, then a cosine to zero.

    factor = p / w while p < w, but at least 0.02; then (1 + cos(pi (p - w) / (1 - w))) / 2.

    Args:
        progress: p, how much of the stage is done, 0 to 1.
        warmup: w, share of the stage in which the rate rises.

    Returns:
        A factor from 0 to 1.

    Example:
        >>> from speedysnn.finetune.optimization import rate_factor
        >>> [round(rate_factor(progress, warmup=0.2), 3) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.02, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1e-9, 1 - warmup)))


def rate_schedule(
    optimizer: torch.optim.Optimizer, epoch: int, epochs: int, batches: int, warmup: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Schedule the learning rates of an epoch; they depend on the step's number alone, so resuming needs no state.

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

    m <- d m + (1 - d) p after every step n, d = min(decay, (1 + n) / (10 + n)) (Polyak and Juditsky 1992). Thresholds
    and amplitudes are averaged by their logarithms.

    Example:
        >>> import torch
        >>> from speedysnn.finetune.optimization import Average
        >>> layer, average = torch.nn.Linear(1, 1, bias=False), Average()
        >>> for value in (0.0, 1.0):
        ...     _ = torch.nn.init.constant_(layer.weight, value)
        ...     average.update(layer, decay=0.5)
        >>> average.steps, float(average.values["weight"])
        (2, 0.75)
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
        """Make an average that goes on from what an earlier process kept.

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
            decay: largest share of the average that a step keeps.
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
        """Let the module hold the average; its own state comes back afterwards.

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


@dataclass(frozen=True)
class Rounding:
    """Weights of few bits while a network trains: what runs has them rounded, what an optimizer moves has not.

    The gradient by a rounded weight is taken as that by the weight itself: straight through.

    Attributes:
        bits: of a weight, sign included; None rounds nothing.
        events: whether inputs are events, whose counts the first layer's scale is made for.
    """

    bits: int | None = None
    events: bool = False

    def check(self, snn: SpikingNetwork) -> None:
        """Refuse a network whose weights cannot be rounded.

        Raises:
            InputError: weights that are computed from others, or that two layers share.
            ConversionError: parts that have no integer form, all of them.
        """
        if self.bits is None:
            return
        to_integer(snn, self.bits, events=self.events)
        weights = {name: snn.tensors(name)["weight"] for name in rounded_weights(snn, self.bits, events=self.events)}
        owned = Counter(id(p) for layer in snn.layers.values() for p in layer.parameters(recurse=False))
        if odd := [name for name, weight in weights.items() if owned[id(weight)] != 1]:
            raise InputError(
                f"weight_bits: expected layers that own their weights, got {', '.join(odd)}, whose weights are pruned, "
                "parametrized, wrapped or shared; make that permanent first, or train without weight_bits"
            )

    @contextmanager
    def seen(self, snn: SpikingNetwork, folded: SpikingNetwork | None = None) -> Iterator[None]:
        """Let the network run with rounded weights; the weights before rounding come back afterwards.

        With batch-norm in place W' = W R(V) / V, where V is the weight with batch-norm folded into it by the running
        statistics and R rounds as `to_integer` does: what the folded network gives to a chip.

        Args:
            snn: the network, with batch-norm in place or without.
            folded: the network that batch-norm was put into, whose weights are written anew; None without batch-norm.
        """
        if self.bits is None:
            yield
            return
        if folded is not None:
            fold_into(snn, folded)
        weights, plain = dict[Tensor, Tensor](), folded or snn
        for name, value in rounded_weights(plain, self.bits, events=self.events).items():
            weight, own = snn.tensors(name)["weight"], plain.tensors(name)["weight"].detach()
            weights[weight] = value if folded is None else _unfolded(weight.detach(), own, value.to(own.device))
        before = {weight: weight.detach().clone() for weight in weights}
        try:
            _write(weights)
            yield
        finally:
            _write(before)


def _unfolded(weight: Tensor, folded: Tensor, value: Tensor) -> Tensor:
    """W R(V) / V; weights that batch-norm sets to 0 stay."""
    wide, own = folded.to(torch.float64), weight.to(torch.float64)
    return torch.where(wide == 0, own, own * (value / torch.where(wide == 0, 1.0, wide)))


@torch.no_grad()
def _write(values: Mapping[Tensor, Tensor]) -> None:
    for tensor, value in values.items():
        tensor.copy_(value)


def _floating(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.state_dict().items() if value.is_floating_point()}
