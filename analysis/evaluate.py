"""evaluate: accuracy, agreement and spikes of a network, beside its source and its quantized reading.

`sweep` gives accuracy and SQNR against T, with theta as it is and with theta chosen again for each T.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from speedysnn.analysis.output_metrics import OutputSums, classes, settings
from speedysnn.analysis.reference import Reference, batch_dims, images_in, leaves, part, pass_size, passes, run
from speedysnn.data.batches import Batch
from speedysnn.display import Done, counting, no_progress, plain, scaled
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork
from speedysnn.settings import execution

PRECISIONS = ("float32", "bfloat16")
SWEEP = ("timesteps", "theta", "delay", "latency", "spikes", "images", "accuracy", "twin_accuracy", "analog_accuracy",
         "agreement", "twin_agreement", "sqnr_db", "twin_sqnr_db", "temporal_gap_db", "logit_error", "twin_logit_error",
         "spikes_per_neuron", "spikes_per_inference")  # fmt: skip
Settings = dict[str, list[Tensor | None]]
Case = tuple[int, str]


@dataclass(frozen=True)
class Evaluation:
    """What a network answers and what it costs; fields as in `speedysnn.analysis.OUTPUTS`.

    Fractions lie in 0..1; None stands for not measured (no labels, or an output that is not (B, classes)).

    Attributes:
        precision: of the spiking reading.
        float32_accuracy: of the spiking reading in float32, where `precision` is another; the difference is its cost.
        float32_agreement: share of images with the class that float32 gives, likewise.
        execution: the settings that decide in which order numbers were summed; see `speedysnn.settings.execution`.

    Example:
        >>> from speedysnn import analysis, convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "test", limit=40)
        >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
        >>> analysis.evaluate(snn, images).to_json()["images"]
        40
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
    precision: str = "float32"
    float32_accuracy: float | None = None
    float32_agreement: float | None = None
    execution: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give the fields as strict JSON data.

        Returns:
            Values by name; infinities are words, undefined values None.
        """
        return {name: plain(value) for name, value in asdict(self).items()}


class PrecisionSums:
    """How often float32 answers right, and how often another precision gives the same class."""

    def __init__(self) -> None:
        self.classified = self.labelled = self.correct = self.agreed = 0

    def update(self, exact: Any, reduced: Any, labels: Tensor | None) -> None:
        """Add the outputs of one pass.

        Args:
            exact: outputs in float32.
            reduced: outputs for the same images in the other precision.
            labels: classes, or None.
        """
        right, chosen = classes(exact), classes(reduced)
        if right is None or chosen is None:
            return
        self.classified += len(right)
        self.agreed += int((right == chosen).sum())
        if labels is not None:
            self.labelled += len(right)
            self.correct += int((right == labels.to(right.device)).sum())

    def figures(self) -> dict[str, Any]:
        """Compute both fractions.

        Returns:
            `float32_accuracy` and `float32_agreement`, None where nothing was classified or labelled.
        """
        return {
            "float32_accuracy": self.correct / self.labelled if self.labelled else None,
            "float32_agreement": self.agreed / self.classified if self.classified else None,
        }


def evaluate(
    snn: SpikingNetwork,
    data: Any,
    *,
    source: nn.Module | None = None,
    limit: int | None = None,
    precision: str = "float32",
    progress: bool = False,
) -> Evaluation:
    """Run every image through the analog, quantized and spiking readings and compare the outputs.

    Args:
        snn: the network; it is left as it is.
        data: as in `measure_noise`.
        source: what to compare with, as in `measure_noise`.
        limit: stop after this many images.
        precision: "float32", or "bfloat16": the spiking reading under autocast, its neurons' state in float32; it then
            runs in float32 too, to say what that costs. The other readings stay in float32.
        progress: show progress.

    Returns:
        Accuracies, agreement, SQNR and spikes.

    Raises:
        InputError: an option out of range, or a source that does not fit.
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> from speedysnn import analysis, convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "test", limit=40)
        >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
        >>> found = analysis.evaluate(snn, images)
        >>> found.images, found.timesteps, found.accuracy > 0.8
        (40, 4, True)
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    reference, sums = Reference.of(snn, source), OutputSums()
    reduced = None if precision == "float32" else PrecisionSums()
    batches = passes(snn, data, pass_size(snn), limit=limit)
    with torch.no_grad(), counting("evaluating", total=batches.images, enabled=progress) as done:
        for batch in batches:
            analog = reference.analog(batch.inputs)
            done(images_in(snn, batch.inputs) / 3)
            score(snn, analog, batch, sums, reduced, scaled(done, 2 / 3))
    lost = {} if reduced is None else reduced.figures()
    return Evaluation(
        reference=reference.outputs, precision=precision, execution=execution(),
        **settings(snn), **sums.figures(), **lost,
    )  # fmt: skip


def score(
    snn: SpikingNetwork, analog: Any, batch: Batch, sums: OutputSums, reduced: PrecisionSums | None = None,
    done: Done = no_progress,
) -> None:  # fmt: skip
    """Add one batch, cut into passes that fit T, to the sums.

    Args:
        snn: the network.
        analog: the reference output of the whole batch.
        batch: inputs and labels.
        sums: to add to.
        reduced: where given, the spiking reading runs in bfloat16 and in float32, and this compares the two.
        done: is called with the images read, of which either reading counts as a half.
    """
    count, size = images_in(snn, batch.inputs), pass_size(snn)
    reference = leaves(analog)
    for start in range(0, count, size):
        stop = min(count, start + size)
        piece = part(snn, batch, start, stop)
        twin = run(snn, "quantized", piece.inputs)
        done((stop - start) / 2)
        with nullcontext() if reduced is None else torch.autocast(piece.inputs[0].device.type, torch.bfloat16):
            spiking = run(snn, "spiking", piece.inputs, sums.count)
        if reduced is not None:
            reduced.update(run(snn, "spiking", piece.inputs), spiking, piece.labels)
        sums.update(_between(reference, start, stop), twin, spiking, piece.labels)
        done((stop - start) / 2)


def _between(tensors: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
    """Some images of every tensor."""
    return [x[start:stop] for x in tensors]


def sweep(
    snn: SpikingNetwork,
    data: Any,
    timesteps: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    recalibrate: bool | Literal["both"] = "both",
    limit: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Measure what accuracy and SQNR would be at other numbers of steps: one row a T and a way to choose theta.

    The data is read once, and the analog reading is run once for all T.

    Args:
        snn: the network; its T and thresholds are put back at the end, whatever happens.
        data: as in `measure_noise`, static inputs only.
        timesteps: the T to measure, in this order.
        recalibrate: False keeps theta and the conversion's correction ("fixed"), True chooses theta for each T from
            the stored histograms, uncorrected ("recalibrated", which undoes what training made of it), "both" gives
            both rows.
        limit: stop after this many images.
        progress: show progress.

    Returns:
        Columns as in `speedysnn.analysis.OUTPUTS`; None where not measured.

    Raises:
        InputError: an option out of range, events as input, or no histograms to recalibrate from.
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> from speedysnn import analysis, convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "test", limit=40)
        >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
        >>> table = analysis.sweep(snn, images, timesteps=(1, 4), recalibrate=False)
        >>> table["timesteps"].tolist(), bool(table["twin_sqnr_db"].is_monotonic_increasing)
        ([1, 4], True)
    """
    kinds = _kinds(snn, recalibrate)
    steps = list(dict.fromkeys(timesteps))
    if not steps:
        raise InputError("timesteps: expected at least one T, got none")
    batches = passes(snn, data, pass_size(snn, 1), limit=limit)
    bar = counting("sweeping", total=batches.images, enabled=progress)
    with torch.no_grad(), snn.preserved() as as_it_was, bar as done:
        cases = _cases(snn, steps, kinds, as_it_was)
        sums = {case: OutputSums() for case in cases}
        for batch in batches:
            if any(batch_dims(snn, batch.inputs)):
                raise InputError("sweep: events (T, B, ...) fix the number of steps; evaluate them at their own T")
            analog = run(snn, "analog", batch.inputs)
            for (steps_now, kind), found in cases.items():
                _apply(snn, steps_now, found)
                score(snn, analog, batch, sums[steps_now, kind], done=scaled(done, 1 / len(cases)))
        rows = []
        for (steps_now, kind), found in cases.items():
            _apply(snn, steps_now, found)
            rows.append({**settings(snn), **sums[steps_now, kind].figures(), "theta": kind})
    return pd.DataFrame(rows, columns=list(SWEEP))


def _kinds(snn: SpikingNetwork, recalibrate: bool | str) -> tuple[str, ...]:
    kinds = {False: ("fixed",), True: ("recalibrated",), "both": ("fixed", "recalibrated")}
    if recalibrate not in kinds:
        raise InputError(f'recalibrate: expected True, False or "both", got {recalibrate!r}')
    if recalibrate and not snn.calibration.histograms:
        raise InputError(
            "sweep: the network holds no histograms to recalibrate from; pass recalibrate=False, or convert it with "
            "calibration data"
        )
    return kinds[recalibrate]


def _cases(
    snn: SpikingNetwork, timesteps: Sequence[int], kinds: Sequence[str], as_it_was: Callable[[], None]
) -> dict[Case, Settings]:
    """What calibration and corrections have set in the neurons, in every case."""
    cases: dict[Case, Settings] = {}
    for steps in timesteps:
        for kind in kinds:
            as_it_was()
            snn.timesteps = steps
            cases[steps, kind] = _set_in(snn if kind == "fixed" else snn.recalibrate())
    return cases


def _set_in(snn: SpikingNetwork) -> Settings:
    """The logarithms of thresholds and of amplitudes that were set, v_init and offsets, by layer; copies."""
    named = {name: (n.log_threshold, n.log_amplitude, n.v_init, n.offset) for name, n in snn.neurons.items()}
    return {name: [None if x is None else x.detach().clone() for x in values] for name, values in named.items()}


def _apply(snn: SpikingNetwork, timesteps: int, settings: Settings) -> None:
    """Set T and what `_set_in` found."""
    if snn.timesteps != timesteps:
        snn.timesteps = timesteps
    for name, neuron in snn.neurons.items():
        theta, amplitude, v_init, offset = settings[name]
        assert theta is not None
        assert v_init is not None
        neuron.log_threshold.data, neuron.v_init.data, neuron.offset = theta, v_init, offset
        neuron.log_amplitude = None if amplitude is None else nn.Parameter(amplitude)
