"""Every converter on one network: what it answers and how often its neurons fire, at each T.

A contestant is built from the trained network and the calibration batches alone. Peers run through their own converters,
neurons and read-outs as their documentation says; nothing of theirs is replaced, only observed by hooks.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from networks import Subject
from torch import Tensor, nn

from speedysnn import analysis, convert
from speedysnn.bench.simulators import installed
from speedysnn.network import SpikingNetwork

os.environ.setdefault("TQDM_DISABLE", "1")

NO_FLOOR = -1e6


class Stepped(Protocol):
    """A converted network of a peer."""

    neurons: int

    def __call__(self, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Outputs of every step (B, T, classes), and spikes of every step over all images and neurons (T,)."""


@dataclass(frozen=True)
class Contestant:
    """A way to convert.

    Attributes:
        name: as in the tables.
        package: which has it.
        make: the converted network.
        spikes: "binary", or "multi" where a neuron may fire several times in one step.
        start: first step that is read out, given the network, the subject and T; None reads all.
    """

    name: str
    package: str
    make: Callable[[Subject], Stepped]
    spikes: str = "binary"
    start: Callable[[Any, Subject, int], int] | None = None


class Jelly:
    """A network of SpikingJelly's converter, stepped as its examples do."""

    def __init__(self, recipe: Any, model: nn.Module) -> None:
        from loguru import logger
        from spikingjelly.activation_based import ann2snn, functional, neuron

        logger.disable("spikingjelly")
        self.functional, self.net = functional, ann2snn.Converter(recipe).convert(model).eval()
        functional.set_step_mode(self.net, "s")
        self.cells = [module for module in self.net.modules() if isinstance(module, neuron.BaseNode)]
        self.neurons = 0

    def __call__(self, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """As in `Stepped`."""
        counts, sizes = torch.zeros(steps), dict[int, int]()

        def count(cell: nn.Module, _: Any, out: Tensor) -> None:
            counts[step] += out.sum()
            sizes[id(cell)] = out[0].numel()

        handles = [cell.register_forward_hook(count) for cell in self.cells]
        self.functional.reset_net(self.net)
        outputs = []
        for step in range(steps):  # noqa: B007, the hook reads it
            outputs.append(self.net(x))
        for handle in handles:
            handle.remove()
        self.neurons = sum(sizes.values())
        return torch.stack(outputs, 1), counts

    def mean(self, x: Tensor, steps: int, mode: str) -> Tensor:
        """The mean output, all steps in one call (mode "m") or one by one ("s"), without hooks: what is timed."""
        self.functional.set_step_mode(self.net, mode)
        self.functional.reset_net(self.net)
        if mode == "m":
            out: Tensor = self.net(x.expand(steps, *x.shape)).mean(0)
        else:
            out = sum(self.net(x) for _ in range(steps)) / steps
        self.functional.set_step_mode(self.net, "s")
        return out


def jelly(**options: Any) -> Callable[[Subject], Jelly]:
    """RateCodingRecipe with these options."""

    def make(subject: Subject) -> Jelly:
        from spikingjelly.activation_based import ann2snn

        return Jelly(ann2snn.RateCodingRecipe(subject.calibration, **options), subject.model)

    return make


def balanced(passes: int, parts: int) -> Callable[[Subject], Jelly]:
    """LocalThresholdBalancingRecipe, whose thresholds rise a little at every batch.

    Its ImageNet example takes hundreds of batches, so the same images are given again in smaller ones: `parts` of each
    batch, `passes` times over.
    """

    def make(subject: Subject) -> Jelly:
        from spikingjelly.activation_based import ann2snn

        small = [part for batch in subject.calibration for part in batch.split(max(1, len(batch) // parts))]
        return Jelly(ann2snn.LocalThresholdBalancingRecipe(small * passes), subject.model)

    return make


def delayed(peer: Jelly, subject: Subject, steps: int) -> int:
    """The first step read out, by SpikingJelly's own estimate on the calibration batches."""
    from spikingjelly.activation_based import ann2snn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it warns where T is too short and falls back
        found = ann2snn.estimate_delay_start(peer.net, subject.calibration, "cpu", steps)
    return int(found) if found < steps else 0


class Scaled(nn.Module):
    """x times a factor: weights normalised by an activation's percentile, written beside them."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x * self.factor


class Sinabs:
    """A network of sinabs' from_model: time within the batch, (B T, ...)."""

    def __init__(self, model: nn.Module, batch: int, multi: bool, floor: float) -> None:
        import sinabs.layers
        from sinabs.activation import MultiSpike, SingleSpike
        from sinabs.from_torch import from_model

        spike_fn = MultiSpike if multi else SingleSpike
        self.net = from_model(model, batch_size=batch, spike_fn=spike_fn, min_v_mem=floor).eval()
        self.cells = [m for m in self.net.spiking_model.modules() if isinstance(m, sinabs.layers.StatefulLayer)]
        self.neurons = 0

    def __call__(self, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """As in `Stepped`."""
        counts, sizes = torch.zeros(steps), dict[int, int]()

        def count(cell: nn.Module, _: Any, out: Tensor) -> None:
            counts.add_(out.view(len(x), steps, -1).sum((0, 2)))
            sizes[id(cell)] = out[0].numel()

        handles = [cell.register_forward_hook(count) for cell in self.cells]
        outputs = self.all_steps(x, steps)
        for handle in handles:
            handle.remove()
        self.neurons = sum(sizes.values())
        return outputs, counts

    def all_steps(self, x: Tensor, steps: int) -> Tensor:
        """Outputs (B, T, classes), from a state of zeros."""
        from sinabs.utils import set_batch_size

        self.net.reset_states()
        set_batch_size(self.net, len(x))
        for cell in self.cells:
            for name, _ in list(cell.named_buffers()):
                setattr(cell, name, torch.zeros(0))
        out: Tensor = self.net.spiking_model(x.repeat_interleave(steps, 0))
        return out.view(len(x), steps, -1)


def sinabs(multi: bool, percentile: float | None, floor: float = -1.0) -> Callable[[Subject], Sinabs]:
    """from_model as it is, or on the network with every activation normalised by a percentile beforehand.

    `floor` is the membrane's lower bound, their default -1; far below, the neuron is the plain soft-reset one.
    """

    def make(subject: Subject) -> Sinabs:
        import copy

        model = copy.deepcopy(subject.model)
        if percentile is not None:
            normalise(model, subject.calibration, percentile)
        return Sinabs(model, subject.batch, multi, floor)

    return make


def normalise(model: nn.Module, calibration: list[Tensor], percentile: float) -> None:
    """ReLU(z) becomes s ReLU(z / s), s the percentile of all its values: the same network, of activations near 1."""
    relus = {name: module for name, module in model.named_modules() if isinstance(module, nn.ReLU)}
    kept: dict[str, list[Tensor]] = {name: [] for name in relus}
    share = max(1, sum(len(part) for part in calibration) // 128)

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, out: kept[name].append(out[::share].flatten().clone())

    handles = [module.register_forward_hook(keep(name)) for name, module in relus.items()]
    with torch.no_grad():
        for part in calibration:
            model(part)
    for handle in handles:
        handle.remove()
    for name in relus:
        values = torch.cat(kept[name]).sort().values
        scale = float(values[min(len(values) - 1, round(percentile / 100 * (len(values) - 1)))])
        parent, _, leaf = name.rpartition(".")
        wrapped = nn.Sequential(Scaled(1 / scale), nn.ReLU(), Scaled(scale))
        setattr(model.get_submodule(parent) if parent else model, leaf, wrapped)


def peers(subject: Subject) -> Iterator[Contestant]:
    """What is installed; the options are those of the packages' own documents and examples."""
    if installed("spikingjelly"):
        half = {"channel_wise": True, "half_threshold": True}
        yield Contestant("SJ Max", "spikingjelly", jelly(mode="Max"))
        yield Contestant("SJ 99.9 %", "spikingjelly", jelly(mode="99.9%"))
        yield Contestant("SJ 99 %", "spikingjelly", jelly(mode="99%"))
        yield Contestant("SJ channel 99.9 %, half threshold", "spikingjelly", jelly(mode="99.9%", **half), start=delayed)
        if subject.max_pool:
            options = {"mode": "99.9%", "pre_spike_maxpool": True, **half}
            yield Contestant("SJ channel 99.9 %, half threshold, pre-spike pool", "spikingjelly", jelly(**options))
        yield Contestant("SJ LTB", "spikingjelly", balanced(1, 1), start=delayed)
        yield Contestant("SJ LTB, small batches three times", "spikingjelly", balanced(3, 10), start=delayed)
    if installed("sinabs"):
        yield Contestant("sinabs", "sinabs", sinabs(True, None), "multi")
        yield Contestant("sinabs, normalised", "sinabs", sinabs(True, 99.9), "multi")
        yield Contestant("sinabs, normalised, no floor", "sinabs", sinabs(True, 99.9, NO_FLOOR), "multi")
        yield Contestant("sinabs, normalised, single spike", "sinabs", sinabs(False, 99.9))
        yield Contestant("sinabs, normalised, single spike, no floor", "sinabs", sinabs(False, 99.9, NO_FLOOR))


# spikes, delay, correction
OURS: tuple[tuple[str, int, str], ...] = (
    ("binary", 0, "none"), ("binary", 1, "none"), ("binary", 0, "bias"), ("binary", 1, "bias"), ("ternary", 0, "none"),
    ("ternary", 1, "none"), ("graded:15", 0, "none"),
)  # fmt: skip


def own(subject: Subject) -> SpikingNetwork:
    """Ours: thresholds "mse", one a channel, nothing tuned."""
    return convert.to_spiking(subject.model, subject.calibration, timesteps=4, threshold="mse", granularity="channel",
                              correct="none")  # fmt: skip


def own_rows(subject: Subject, snn: SpikingNetwork, only: str) -> Iterator[dict[str, Any]]:
    """Ours at each T, thresholds chosen again for it from the calibration's histograms; `only` is part of the name."""
    names = [f"speedysnn {spikes}, delay {delay}" + (f", {correct} corrected" * (correct != "none"))
             for spikes, delay, correct in OURS]  # fmt: skip
    for name, (spikes, delay, correct) in zip(names, OURS, strict=True):
        for steps in subject.steps if only in name else ():
            snn.timesteps = steps
            snn.set_spikes(spikes)
            snn.set_delay(delay)
            snn.recalibrate()
            convert.apply_correction(snn, subject.calibration, correct)
            found = analysis.evaluate(snn, (subject.images, subject.labels))
            kind = "multi" if spikes.startswith("graded") else spikes
            yield {"contestant": name, "package": "speedysnn", "spikes": kind,
                   "timesteps": steps, "read_from": 0, "latency": found.latency, "accuracy": found.accuracy,
                   "ann_accuracy": found.analog_accuracy, "logit_error": found.logit_error,
                   "spikes_per_neuron": found.spikes_per_neuron, "neurons": found.neurons}  # fmt: skip


def peer_rows(subject: Subject, contestant: Contestant, peer: Stepped) -> Iterator[dict[str, Any]]:
    """A peer at each T: one run of the longest, whose running means are what a shorter run answers."""
    longest = subject.steps[-1]
    parts, counts, source = [], torch.zeros(longest, dtype=torch.float64), []
    with torch.no_grad():
        for x in subject.images.split(subject.batch):
            out, spikes = peer(x, longest)
            parts.append(out.double())
            source.append(subject.model(x).double())
            counts += spikes.double()
    outputs, ann = torch.cat(parts), torch.cat(source)
    per_neuron = counts.cumsum(0) / (len(ann) * peer.neurons)
    for delay in (None, contestant.start) if contestant.start else (None,):
        for steps in subject.steps:
            begin = delay(peer, subject, steps) if delay else 0
            mean = outputs[:, begin:steps].mean(1)
            yield {"contestant": contestant.name + (", delayed read-out" if delay else ""),
                   "package": contestant.package, "spikes": contestant.spikes, "timesteps": steps, "read_from": begin,
                   "latency": steps, "accuracy": float((mean.argmax(1) == subject.labels).double().mean()),
                   "ann_accuracy": float((ann.argmax(1) == subject.labels).double().mean()),
                   "logit_error": float((mean - ann).norm() / ann.norm()),
                   "spikes_per_neuron": float(per_neuron[steps - 1]), "neurons": peer.neurons}  # fmt: skip
