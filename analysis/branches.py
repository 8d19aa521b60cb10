"""The mixed readings of some images: three passes that stop at every layer, and one branch a mode, change and layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from speedysnn.analysis.change import Change
from speedysnn.analysis.handing_back import hand_back
from speedysnn.analysis.mixed import Fork, MixedRun
from speedysnn.analysis.outputs import OutputSums
from speedysnn.analysis.readings import run
from speedysnn.analysis.score import Score
from speedysnn.data import Batch
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Reading
from speedysnn.tap import Tap

Key = tuple[str, str]


@dataclass(frozen=True)
class Measured:
    """What some images gave.

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
    """All modes and changes on some images; with `tight`, what is freed is handed back layer by layer."""
    counted = OutputSums()

    def count(tap: Tap) -> None:
        counted.add_spikes(tap, tap.events())

    analog = run(snn, "analog", piece.inputs)
    outs = analog, run(snn, "quantized", piece.inputs), run(snn, "spiking", piece.inputs, count)
    branches = _Branches(snn, modes, changes, piece, analog, tight)
    branches.whole(outs)
    branches.from_source()
    branches.from_spikes()
    branches.from_twin()
    return Measured(branches.scores, outs, piece.labels, counted)


class _Branches:
    """Scores of one piece."""

    def __init__(
        self, snn: SpikingNetwork, modes: Sequence[str], changes: Sequence[Change], piece: Batch, analog: Any,
        tight: bool,
    ) -> None:  # fmt: skip
        self.tight = tight
        self.modes, self.piece, self.analog, self.run = frozenset(modes), piece, analog, MixedRun(snn)
        self.changes = {name: [change for change in changes if change.layer == name] for name in snn.neurons}
        self.scores: dict[Key, Score] = {}
        self.activations: dict[str, Tensor] = {}

    def whole(self, outputs: Sequence[Any]) -> None:
        """All layers in one reading, under the layer name ""."""
        for name, out in zip(("analog", "quantized", "spiking"), outputs, strict=True):
            self._at_output(name, "", out)

    def from_source(self) -> None:
        """Analog up to the layer: its own noise alone, at the output and at itself."""
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
        """Spikes up to the layer: what follows analog, the layer alone analog, the layer changed."""
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
        """Quantized up to the layer: the layer changed."""
        for fork in self._forks("quantized", set()):
            name = fork.node.name
            for change in self.changes[name]:
                emitted = self.run.with_neuron(name, change.twin).emit(name, fork.drive, "quantized")
                self._at_output(f"twin {change.kind}", name, self.run.outputs(fork, emitted, "quantized"))

    def _forks(self, reading: Reading, modes: set[str]) -> Iterator[Fork]:
        """A pass, where one of the modes or a change needs it."""
        if self.modes & modes or (reading != "analog" and any(self.changes.values())):
            for fork in self.run.forks(self.piece.inputs, reading):
                if self.tight:
                    hand_back()
                yield fork

    def _at_output(self, mode: str, layer: str, out: Any) -> None:
        self.scores.setdefault((mode, layer), Score()).update(self.analog, out, self.piece.labels)

    def _at_layer(self, mode: str, layer: str, source: Tensor, reached: Tensor) -> None:
        self.scores.setdefault((mode, layer), Score()).add(source, reached)
