"""The network's outputs and spikes, summed over all images, and the table that says what each figure means.

`OutputSums` compares the quantized and the spiking outputs with the reference's. `OUTPUTS` describes the figures of
`NoiseReport.outputs`, of `Evaluation` and of a sweep.
"""

import math
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from speedysnn.analysis.noise import Column
from speedysnn.analysis.reference import leaves
from speedysnn.analysis.theory.quantization import decibels
from speedysnn.errors import InputError
from speedysnn.execution.observers import LayerRecord, any_order, needs_input
from speedysnn.network import SpikingNetwork

_COUNTS = ("images", "labelled", "classified", "spikes", "fired")
# The fields of `NoiseReport.outputs`, of `Evaluation` and of a sweep's columns.
OUTPUTS: dict[str, Column] = {
    "images": Column("images", "Images measured."),
    "reading": Column("name", "The reading that accuracy, agreement, SQNR and spikes belong to."),
    "reference": Column("words", "What the outputs are compared with."),
    "layer_reference": Column("words", "What the layers are compared with."),
    "timesteps": Column("steps", "T."),
    "delay": Column("steps", 'Look-ahead of every neuron, "full" for T, or "mixed".'),
    "latency": Column("steps", "From the first input to the last output.", False),
    "depth": Column("layers", "Neurons on the longest path."),
    "spikes": Column("name", "Spike kind."),
    "correction": Column("name", "Kind of correction that the network carries."),
    "theta": Column("name", '"fixed" or "recalibrated" for this T.'),
    "neurons": Column("neurons", "Neurons of the network."),
    "weight_bits": Column("bits", "Of a weight, where weights were rounded as for a chip."),
    "accuracy": Column(
        "fraction", "Spiking network, where labels are known.", True, "analog_accuracy", format="percent"
    ),
    "twin_accuracy": Column("fraction", "Quantized reading.", True, "analog_accuracy", format="percent"),
    "analog_accuracy": Column("fraction", "The source the network is compared with.", True, format="percent"),
    "agreement": Column(
        "fraction", "Images that spiking network and source classify alike.", True, "1", format="percent"
    ),
    "twin_agreement": Column(
        "fraction", "Images that quantized reading and source classify alike.", True, "1", format="percent"
    ),
    "sqnr_db": Column("dB", "Spiking output against the source's.", True, "twin_sqnr_db", format="decibels"),
    "twin_sqnr_db": Column("dB", "Quantized output against the source's.", True, "+inf", format="decibels"),
    "temporal_gap_db": Column("dB", "twin_sqnr_db - sqnr_db: what timing costs.", False, "0", format="decibels"),
    "logit_error": Column("ratio", "|spiking - source| / |source| of the outputs.", False, "0"),
    "twin_logit_error": Column("ratio", "|quantized - source| / |source| of the outputs.", False, "0"),
    "spikes_per_neuron": Column("events per neuron", "Of one inference, all layers.", False),
    "spikes_per_inference": Column("events", "Of one image, all layers.", False, format="decibels"),
    "precision": Column("name", "Of the spiking reading's arithmetic."),
    "float32_accuracy": Column("fraction", "The same in float32, where the precision is another.", True),
    "float32_agreement": Column("fraction", "Images that get the class of float32, likewise.", True, "1"),
    "tried": Column("rows", "Settings tried on some of the images: first the present one, then those that may help."),
    "execution": Column("settings", "What decides in which order numbers were summed; see speedysnn.settings."),
}  # fmt: skip


def flat(out: Any) -> Tensor:
    """Take all values of an output as one matrix.

    Args:
        out: a tensor, or nested tuples and dicts of tensors, batch first.

    Returns:
        (B, K) float64.
    """
    return torch.cat([leaf.flatten(1) if leaf.ndim > 1 else leaf[:, None] for leaf in leaves(out)], 1).double()


def classes(out: Any) -> Tensor | None:
    """Find the class of each image.

    Args:
        out: a network's output.

    Returns:
        (B,) where the first tensor is (B, classes), else None.
    """
    first = leaves(out)[0]
    return first.argmax(1) if first.ndim == 2 and first.shape[1] > 1 else None


class OutputSums:
    """Running sums of two readings against the reference, and of the spikes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.images = self.labelled = self.classified = self.fired = 0
        self._spikes: int | Tensor = 0
        self.signal = 0.0
        self.noise = {"twin": 0.0, "spiking": 0.0}
        self.agreed = {"twin": 0, "spiking": 0}
        self.correct = {"analog": 0, "twin": 0, "spiking": 0}

    @any_order
    @needs_input("nothing")
    def count(self, tap: LayerRecord) -> None:
        """Add a layer's events and neurons, as an observer of the spiking pass; threads may call it at once.

        Args:
            tap: what the layer emitted.
        """
        fired = tap.events()
        with self._lock:
            self.add_spikes(tap, fired)

    @property
    def spikes(self) -> int:
        """Spike events so far."""
        return int(self._spikes)

    @spikes.setter
    def spikes(self, value: int) -> None:
        self._spikes = value

    def add_spikes(self, tap: LayerRecord, fired: int | Tensor) -> None:
        """Add a layer's events and the neurons that could have made them.

        Args:
            tap: what the layer emitted.
            fired: its events, which a GPU may still be counting.
        """
        self._spikes = self._spikes + fired
        self.fired += tap.neurons

    def merge(self, other: "OutputSums") -> None:
        """Add what was summed over other images.

        Args:
            other: its sums.
        """
        self.add_state(other.state())

    def update(self, analog: Any, twin: Any, spiking: Any, labels: Tensor | None) -> None:
        """Add the outputs of one pass.

        Args:
            analog: the reference's output.
            twin: the quantized reading's.
            spiking: the spiking reading's.
            labels: classes (B,), or None.

        Raises:
            InputError: the reference's output has another shape.
        """
        reference = flat(analog)
        chosen = classes(analog)
        self.images += len(reference)
        self.signal += float((reference**2).sum())
        self.classified += 0 if chosen is None else len(reference)
        self.labelled += 0 if labels is None or chosen is None else len(reference)
        if labels is not None and chosen is not None:
            self.correct["analog"] += int((chosen == labels.to(chosen.device)).sum())
        for name, out in (("twin", twin), ("spiking", spiking)):
            values = flat(out)
            reference = reference.to(values.device)
            if values.shape != reference.shape:
                raise InputError(
                    f"source: its output has {reference.shape[1]} values an image, the network's {values.shape[1]}"
                )
            self.noise[name] += float(((values - reference) ** 2).sum())
            answer = classes(out)
            if chosen is not None and answer is not None:
                self.agreed[name] += int((answer == chosen.to(answer.device)).sum())
                if labels is not None:
                    self.correct[name] += int((answer == labels).sum())

    def state(self) -> dict[str, Tensor]:
        """Give all sums as tensors, to send to another process.

        Returns:
            Tensors by name.
        """
        return {name: torch.tensor([getattr(self, name)], dtype=torch.int64) for name in _COUNTS} | {
            "signal": torch.tensor([self.signal], dtype=torch.float64),
            "noise": torch.tensor(list(self.noise.values()), dtype=torch.float64),
            "agreed": torch.tensor(list(self.agreed.values()), dtype=torch.int64),
            "correct": torch.tensor(list(self.correct.values()), dtype=torch.int64),
        }

    def add_state(self, state: Mapping[str, Tensor]) -> None:
        """Add another process's sums over other images.

        Args:
            state: as `state` gives it.
        """
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + int(state[name]))
        self.signal += float(state["signal"])
        for name, value in zip(self.noise, state["noise"].tolist(), strict=True):
            self.noise[name] += value
        for own, key in ((self.agreed, "agreed"), (self.correct, "correct")):
            for name, value in zip(own, state[key].tolist(), strict=True):
                own[name] += value

    def figures(self) -> dict[str, Any]:
        """Compute the figures so far.

        Returns:
            Values by the names of `OUTPUTS`; None where not measured.
        """
        sqnr = {name: decibels(self.signal, noise) for name, noise in self.noise.items()}
        gap = 0.0 if sqnr["twin"] == sqnr["spiking"] else sqnr["twin"] - sqnr["spiking"]
        return {
            "images": self.images,
            "accuracy": _share(self.correct["spiking"], self.labelled),
            "twin_accuracy": _share(self.correct["twin"], self.labelled),
            "analog_accuracy": _share(self.correct["analog"], self.labelled),
            "agreement": _share(self.agreed["spiking"], self.classified),
            "twin_agreement": _share(self.agreed["twin"], self.classified),
            "sqnr_db": sqnr["spiking"],
            "twin_sqnr_db": sqnr["twin"],
            "temporal_gap_db": gap,
            "logit_error": _error(self.noise["spiking"], self.signal),
            "twin_logit_error": _error(self.noise["twin"], self.signal),
            "neurons": self.fired // max(1, self.images),
            "spikes_per_neuron": self.spikes / self.fired if self.fired else None,
            "spikes_per_inference": self.spikes / self.images if self.images else None,
        }


def settings(snn: SpikingNetwork) -> dict[str, Any]:
    """Give what stands beside every accuracy: T, look-ahead, latency, depth and spike kind.

    Args:
        snn: the network.

    Returns:
        Values by the names of `OUTPUTS`; "mixed" where layers differ.
    """
    delays = {neuron.delay for neuron in snn.neurons.values()}
    kinds = {neuron.spikes for neuron in snn.neurons.values()}
    return {
        "timesteps": snn.timesteps,
        "delay": delays.pop() if len(delays) == 1 else "mixed",
        "latency": snn.latency,
        "depth": snn.depth,
        "spikes": kinds.pop() if len(kinds) == 1 else "mixed",
    }


def _share(part: int, whole: int) -> float | None:
    """A fraction; None of nothing."""
    return part / whole if whole else None


def _error(noise: float, signal: float) -> float:
    """Relative root mean square; NaN without signal."""
    return math.sqrt(noise / signal) if signal > 0 else math.nan
