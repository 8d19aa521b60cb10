"""Scores of mixed readings on some images, and what one reading has gained over another.

Three passes (analog, spiking, quantized) stop at every layer; there one branch for each mode and change leaves the pass
and runs to the output. A `Score` sums a branch's output against the analog reading's.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from speedysnn.analysis.output_metrics import OutputSums, classes, flat
from speedysnn.analysis.reference import run
from speedysnn.analysis.sensitivity import Fork, MixedRun
from speedysnn.analysis.sensitivity.changes import Change
from speedysnn.analysis.theory.quantization import decibels
from speedysnn.data.batches import Batch
from speedysnn.execution.observers import LayerRecord
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Reading
from speedysnn.torch_utils import hand_back


class Score:
    """Sums of one mixed reading's outputs against the analog reading's; `each` holds every image's own noise."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.each: list[float] = []
        self.classified = self.agreed = self.labelled = self.correct = 0

    def update(self, analog: Any, out: Any, labels: Tensor | None) -> None:
        """Add the outputs of one pass."""
        reference, chosen, answer = flat(analog), classes(analog), classes(out)
        self.add(reference, flat(out))
        if chosen is None or answer is None:
            return
        self.classified += len(answer)
        self.agreed += int((answer == chosen).sum())
        if labels is not None:
            self.labelled += len(answer)
            self.correct += int((answer == labels).sum())

    def add(self, reference: Tensor, values: Tensor) -> None:
        """Add the powers of a layer's or an output's values, both of one shape."""
        own = reference.double()
        self.signal += float((own * own).sum())
        each = (values.double() - own).square().flatten(1).sum(1)
        self.noise += float(each.sum())
        self.each += each.tolist()

    def merge(self, other: "Score") -> None:
        """Add what another pass over other images has summed."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def figures(self) -> dict[str, float | None]:
        """Compute sqnr_db = 10 log10(sum y^2 / sum (y' - y)^2), agreement and accuracy; None where not measured."""
        return {
            "sqnr_db": decibels(self.signal, self.noise),
            "agreement": self.agreed / self.classified if self.classified else None,
            "accuracy": self.correct / self.labelled if self.labelled else None,
        }


def gained(before: Score, after: Score) -> tuple[float, float]:
    """Decibels gained by a change on the same images, 10 log10(B / A), and their standard error.

    With b_i and a_i the noise of image i and B, A their sums, the delta method gives the variance of the logarithm as
    n/(n-1) sum (b_i/B - a_i/A)^2. No noise on both sides is no gain; what is undefined is NaN.
    """
    if before.noise == 0:
        return (-math.inf if after.noise > 0 else after.noise), math.nan
    if not after.noise > 0:
        return decibels(before.noise, after.noise), math.nan
    images = len(before.each)
    spread = sum((b / before.noise - a / after.noise) ** 2 for b, a in zip(before.each, after.each, strict=True))
    error = math.sqrt(images / (images - 1) * spread) if images > 1 else math.nan
    return decibels(before.noise, after.noise), 10 / math.log(10) * error


def expected_by_rank(before: Score, after: Sequence[Score], folds: int = 5) -> list[float]:
    """Decibels that the change at each rank gains on images that did not rank it, best first.

    The measured gain of the best of many changes is too high, since chance helped to choose it. Here changes are ranked
    on all folds but one and measured on that one, for each fold in turn; with c(r, f) the change of rank r without fold
    f, the figure is 10 log10(sum b / sum_f sum_{i in f} a_i[c(r, f)]). Image i belongs to fold i mod `folds`. NaN with
    fewer than two images.
    """
    noise = np.array([score.each for score in after], dtype=np.float64)
    images = len(before.each)
    parts = min(folds, images)
    if parts < 2 or noise.size == 0:
        return [math.nan] * len(after)
    fold = np.arange(images) % parts
    reached = np.zeros(len(after))
    for part in range(parts):
        order = np.argsort(np.nan_to_num(noise[:, fold != part].sum(1), nan=np.inf), kind="stable")
        reached += noise[order][:, fold == part].sum(1)
    return [decibels(before.noise, float(value)) for value in reached]


Key = tuple[str, str]


@dataclass(frozen=True)
class Measured:
    """What was measured on some images.

    Attributes:
        scores: (mode or change, layer) -> sums; a change in the quantized reading is called "twin CHANGE";
            a reading of all layers has the layer "".
        outputs: of the analog, quantized and spiking reading.
        labels: the images' classes, where known.
        spikes: events of the spiking reading.
    """

    scores: dict[Key, Score]
    outputs: tuple[Any, Any, Any]
    labels: Tensor | None
    spikes: OutputSums


def measured(
    snn: SpikingNetwork, modes: Sequence[str], changes: Sequence[Change], piece: Batch, *, tight: bool = False
) -> Measured:
    """Measure all modes and changes on some images; with `tight`, freed memory is handed back layer by layer."""
    counted = OutputSums()

    def count(tap: LayerRecord) -> None:
        counted.add_spikes(tap, tap.events())

    analog = run(snn, "analog", piece.inputs)
    outs = analog, run(snn, "quantized", piece.inputs), run(snn, "spiking", piece.inputs, count)
    branches = _Branches(snn, modes, changes, piece, analog, tight)
    branches.all_layers(outs)
    branches.from_source()
    branches.from_spikes()
    branches.from_twin()
    return Measured(branches.scores, outs, piece.labels, counted)


class _Branches:
    """Runs the branches of one piece of the images and keeps their scores."""

    def __init__(
        self, snn: SpikingNetwork, modes: Sequence[str], changes: Sequence[Change], piece: Batch, analog: Any,
        tight: bool,
    ) -> None:  # fmt: skip
        self.tight = tight
        self.modes, self.piece, self.analog, self.run = frozenset(modes), piece, analog, MixedRun(snn)
        self.changes = {name: [change for change in changes if change.layer == name] for name in snn.neurons}
        self.scores: dict[Key, Score] = {}
        self.activations: dict[str, Tensor] = {}

    def all_layers(self, outputs: Sequence[Any]) -> None:
        """Score the outputs of all layers in one reading, under the layer name ""."""
        for name, out in zip(("analog", "quantized", "spiking"), outputs, strict=True):
            self._at_output(name, "", out)

    def from_source(self) -> None:
        """Score branches of the analog pass: the layer's own noise alone, at the output and at the layer."""
        for fork in self._forks("analog", {"local", "isolated", "cumulative"}):
            name, source = fork.node.name, fork.emitted.tensor
            if "cumulative" in self.modes:
                self.activations[name] = source
            if not self.modes & {"local", "isolated"}:
                continue
            spikes = self.run.emit(name, fork.drive, "spiking")
            if "local" in self.modes:
                self._at_layer("local", name, source, self.run.mean(spikes))
            if "isolated" in self.modes:
                self._at_output("isolated", name, self.run.outputs(fork, spikes, "analog"))

    def from_spikes(self) -> None:
        """Score branches of the spiking pass: all that follows analog, the layer alone analog, the layer changed."""
        for fork in self._forks("spiking", {"cumulative", "prefix", "leave_one_out"}):
            name = fork.node.name
            if "cumulative" in self.modes:
                self._at_layer("cumulative", name, self.activations.pop(name), self.run.mean(fork.emitted))
            if "prefix" in self.modes:
                self._at_output("prefix", name, self.run.outputs(fork, fork.emitted, "analog"))
            if "leave_one_out" in self.modes:
                analog = self.run.emit(name, fork.drive, "analog")
                self._at_output("leave_one_out", name, self.run.outputs(fork, analog, "spiking"))
            for change in self.changes[name]:
                changed = self.run.with_neuron(name, change.neuron)
                emitted = changed.emit(name, fork.drive, "spiking")
                self._at_output(change.kind, name, changed.outputs(fork, emitted, "spiking"))

    def from_twin(self) -> None:
        """Score branches of the quantized pass: the layer changed."""
        for fork in self._forks("quantized", set()):
            name = fork.node.name
            for change in self.changes[name]:
                emitted = self.run.with_neuron(name, change.twin).emit(name, fork.drive, "quantized")
                self._at_output(f"twin {change.kind}", name, self.run.outputs(fork, emitted, "quantized"))

    def _forks(self, reading: Reading, modes: set[str]) -> Iterator[Fork]:
        """Run a pass that stops at every layer, where one of the modes or a change needs it."""
        if self.modes & modes or (reading != "analog" and any(self.changes.values())):
            for fork in self.run.forks(self.piece.inputs, reading):
                if self.tight:
                    hand_back()
                yield fork

    def _at_output(self, mode: str, layer: str, out: Any) -> None:
        self.scores.setdefault((mode, layer), Score()).update(self.analog, out, self.piece.labels)

    def _at_layer(self, mode: str, layer: str, source: Tensor, reached: Tensor) -> None:
        self.scores.setdefault((mode, layer), Score()).add(source, reached)
