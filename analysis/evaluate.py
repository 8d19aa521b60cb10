"""evaluate: accuracy, agreement and spikes of a network, beside its source and its quantized reading."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.analysis.images import images_in, part, pass_size, passes
from speedysnn.analysis.outputs import OutputSums, settings
from speedysnn.analysis.readings import Reference, leaves, run
from speedysnn.analysis.strict import plain
from speedysnn.data import Batch
from speedysnn.network import SpikingNetwork
from speedysnn.progress import track


@dataclass(frozen=True)
class Evaluation:
    """What a network answers and what it costs; fields as in `speedysnn.analysis.columns.OUTPUTS`.

    Fractions lie in 0..1; None stands for not measured (no labels, or an output that is not (B, classes)).
    """

    images: int
    accuracy: float | None
    twin_accuracy: float | None
    analog_accuracy: float | None
    agreement: float | None
    twin_agreement: float | None
    sqnr_db: float
    twin_sqnr_db: float
    temporal_gap_db: float
    logit_error: float
    twin_logit_error: float
    spikes_per_neuron: float | None
    spikes_per_inference: float | None
    neurons: int
    timesteps: int
    delay: int | str
    latency: int
    depth: int
    spikes: str
    reference: str
    reading: str = "spiking"

    def to_json(self) -> dict[str, Any]:
        """The fields as strict JSON data; infinities are words, undefined values null."""
        return {name: plain(value) for name, value in asdict(self).items()}


def evaluate(
    snn: SpikingNetwork,
    data: Any,
    *,
    source: nn.Module | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Run every image through the analog, quantized and spiking readings and compare the outputs.

    Args:
        snn: the network; it is left as it is.
        data: as in `measure_noise`.
        source: what to compare with, as in `measure_noise`.
        limit: stop after this many images.
        progress: show progress.

    Raises:
        InputError: an option out of range, or a source that does not fit.
        DataError: no data, NaN in it, or the wrong shape.
    """
    reference, sums = Reference.of(snn, source), OutputSums()
    with torch.no_grad():
        for batch in track(passes(snn, data, pass_size(snn), limit=limit), "evaluating", enabled=progress):
            score(snn, reference.analog(batch.inputs), batch, sums)
    return Evaluation(reference=reference.outputs, **settings(snn), **sums.figures())


def score(snn: SpikingNetwork, analog: Any, batch: Batch, sums: OutputSums) -> None:
    """Add one batch, cut into passes that fit T, to the sums; `analog` is the reference output of the whole batch."""
    count, size = images_in(snn, batch.inputs), pass_size(snn)
    reference = leaves(analog)
    for start in range(0, count, size):
        stop = min(count, start + size)
        piece = part(snn, batch, start, stop)
        twin, spiking = run(snn, "quantized", piece.inputs), run(snn, "spiking", piece.inputs, sums.count)
        sums.update(_between(reference, start, stop), twin, spiking, piece.labels)


def _between(tensors: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
    return [x[start:stop] for x in tensors]
