"""Corrections after the thresholds: what the spiking reading gets wrong on average is put right, layer by layer.

One pass walks the graph in order, so that a layer is corrected for what the corrected layers before it emit. With z the
source's drive of a channel, z' what its neuron integrates (the mean over time), and g = mean output - mean activation:

    moments:    a = std(z) / std(z'), b = mean(z) - a mean(z');  theta <- theta / a, offset <- b / a, A stays
    bias:       offset <- offset - g
    potential:  v_init <- clip(v_init - T g / A, 0, 1)

A neuron that fires against theta / a and emits A = theta gives what it would give for the drive a z' + b. The analog
reading knows none of this, so it stays the source network. Half of the images choose a change and the other half check
it: a channel keeps its change of the moments only where they come nearer to the source's, of bias or potential only
where its squared error falls, and the whole correction is taken back where the network then answers fewer of the
checked images as its source does.

Moments are not judged by the squared error, as matching the standard deviation raises it: of all maps of the drive the
least squared error has the one that shrinks, and that shrinkage multiplies with depth. On EfficientNet-Lite0 (200
held-out training images, T = 4, quantized, 27.5 % without a correction) moments reach 48.5 % without a check, 48.0 %
with the one above, and 33 % where a channel keeps its change only if its squared error falls.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from speedysnn.calibration import CLIP, GIVEN
from speedysnn.convert.matching import MAX_IMAGES, ImageWalk
from speedysnn.data.batches import Batch, drawn, iter_batches, over_steps
from speedysnn.display import track
from speedysnn.errors import DataError, InputError, SpeedySNNError
from speedysnn.network import SpikingNetwork, time_of
from speedysnn.neurons.parameters import Reading
from speedysnn.settings import repeatable
from speedysnn.torch_utils import compare_outputs, float_type, worse

DEFAULT = "moments"  # of `to_spiking`: what reports/corrections finds best on held-out images
FEWEST = 16  # images below which the halves say too little of a channel for a default to go by
CHANGES = ("moments", "bias", "potential")
KINDS = ("none", *CHANGES, "moments+bias", "moments+potential", "bias+potential", "moments+bias+potential")


@repeatable
def apply_correction(snn: SpikingNetwork, calibration: object, kind: str, *, progress: bool = False) -> SpikingNetwork:
    """Correct a network in place for its present T, delay and spikes; an earlier correction is taken back first.

    "moments" matches mean and standard deviation of every channel's drive, "bias" and "potential" its mean output; see
    the module. What was done stands in `snn.provenance["correction"]`, in each activation's unit: by change and layer
    the error before and after on the checked images and how many channels were left alone, whether the whole was taken
    back, and a sentence ("said"). `recalibrate` and `uncorrect` take it back.

    Args:
        snn: the network, changed in place.
        calibration: a loader, a dataset, a tensor (N, ...) or an iterable of batches; labels are ignored. 256 images
            are drawn from all of it, the same in every call, and fewer are used where the values that cross between
            blocks would exceed 2 GiB. Events of T steps stay events, others are corrected as their mean.
        kind: "moments", "bias", "potential", several of them in this order joined by "+", or "none".
        progress: show progress.

    Returns:
        The same network.

    Raises:
        InputError: another kind.
        DataError: no data, NaN, or the wrong shape.

    Reference: li2021

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4, correct="none")
        >>> done = convert.apply_correction(snn, images, "moments").provenance["correction"]
        >>> done["kind"], done["chosen_on"], done["checked_on"]
        ('moments', 32, 32)
        >>> layer = done["passes"]["moments"]["3"]
        >>> layer["error_after"] <= layer["error_before"]
        True
    """
    check_kind(kind)
    sample, ranks = Sample(MAX_IMAGES), [len(shape) + 1 for shape in snn.input_shapes]
    for batch in iter_batches(_spread(calibration), events="steps", ranks=ranks, dtype=float_type(snn)):
        if len(batch.inputs) == len(ranks):
            batch = Batch(tuple(_as_they_run(snn, x, rank) for x, rank in zip(batch.inputs, ranks, strict=True)))
        dims = [x.ndim - rank for x, rank in zip(batch.inputs, ranks, strict=False)]
        sample.add(batch, [min(max(dim, 0), 1) for dim in dims])
    return correct_on(snn, sample.inputs(), kind, progress=progress)


def correct_on(
    snn: SpikingNetwork,
    inputs: Sequence[Tensor],
    kind: str,
    *,
    reading: Reading | None = None,
    keep: Collection[str] = (),
    progress: bool = False,
) -> SpikingNetwork:
    """`apply_correction` on given images, one tensor (B, ...) an input; `reading` None is the network's own.

    Moments are not matched in the layers named by `keep`, whose theta stays what it is.
    """
    snn.uncorrect()
    snn.provenance.pop("correction_removed", None)
    if kind == "none":
        return snn
    start = _settings(snn, kind)
    with torch.no_grad():
        walk = _walk(snn, inputs, reading)
        before = walk.answers()
        passes: dict[str, Any] = {change: {} for change in kind.split("+")}
        for block in track(walk.blocks, f"correct ({kind})", enabled=progress, total=len(walk.blocks)):
            for name in block.neurons:
                for change, layers in passes.items():
                    if change != "moments" or name not in keep:
                        layers[name] = walk.correct(block, name, change)
            walk.advance(block)
        after, source = walk.results()
    output = {"before": compare_outputs(before, source), "after": compare_outputs(after, source)}
    record = {"kind": kind, "images": walk.images, "chosen_on": walk.chosen, "checked_on": walk.checked,
              "reading": walk.reading, "passes": passes, "output": output,
              "taken_back": worse(**output), "tuned_runs": len(snn.provenance.get("finetuned", []))}  # fmt: skip
    record |= {"said": what_was_done(record), **time_of(snn)}
    snn.provenance["correction"] = {**record, "taken_back": False, **start}
    if record["taken_back"]:
        snn.uncorrect()
        snn.provenance["correction"] = record
    snn.reset()
    return snn


def correct_converted(snn: SpikingNetwork, sample: "Sample", kind: str, *, progress: bool = False) -> SpikingNetwork:
    """The correction at the end of a conversion; "moments", its default, leaves alone what it could only spoil.

    Layers whose theta was given as a value or is a trained clip keep it. With fewer than `FEWEST` images, or where all
    layers keep theirs, nothing is corrected, and the record's sentence says so.

    Args:
        snn: the network, changed in place.
        sample: the images.
        kind: as in `apply_correction`, not "none".
        progress: show progress.

    Returns:
        The same network.
    """
    keep, why = thetas_that_stay(snn), ""
    if kind == "moments" and sample.there < FEWEST:
        why = f"expected at least {FEWEST} calibration images, got {sample.there}"
    elif kind == "moments" and len(keep) == len(snn.neurons):
        why = "every theta was given or is a trained clip"
    if not why:
        return correct_on(snn, sample.inputs(), kind, keep=keep, progress=progress)
    said = f"correction: no moments matched, {why}; convert.apply_correction matches them all the same"
    snn.provenance["correction"] = {"kind": kind, "timesteps": snn.timesteps, "taken_back": True, "said": said}
    return snn


def thetas_that_stay(snn: SpikingNetwork) -> set[str]:
    """Name the layers whose theta was given as a value or is the clip that the source was trained with.

    Args:
        snn: the network.

    Returns:
        Names of layers.
    """
    learned = {node.name for node in snn.graph.neurons if node.attrs.get("learned")}
    return {name for name, rule in snn.calibration.rules.items() if rule == GIVEN or (rule == CLIP and name in learned)}


def what_was_done(record: dict[str, Any]) -> str:
    """Say in a sentence what a correction kept and what it took back.

    Args:
        record: `snn.provenance["correction"]`.

    Returns:
        The sentence.

    Example:
        >>> from speedysnn.convert.correct import what_was_done
        >>> layers = {"relu1": {"channels": 8, "left_alone": 2}}
        >>> scores = {"before": {"agreement": 0.5}, "after": {"agreement": 0.75}}
        >>> what_was_done({"passes": {"bias": layers}, "output": scores, "checked_on": 64, "taken_back": False})
        'correction: bias kept in 6 of 8 channels; agreement with the source on 64 checked images 0.5 -> 0.75'
    """
    before, after = record["output"]["before"], record["output"]["after"]
    words = []
    for change, layers in record["passes"].items():
        channels = sum(row["channels"] for row in layers.values())
        kept = channels - sum(row["left_alone"] for row in layers.values())
        words.append(f"{change} kept in {kept} of {channels} channels")
    key, measure = (("agreement", "agreement with the source") if before["agreement"] is not None
                    else ("error", "relative squared error of the output"))  # fmt: skip
    found = f"{measure} on {record['checked_on']} checked images {before[key]:.3g} -> {after[key]:.3g}"
    end = "; the whole was taken back, since the output became worse" if record["taken_back"] else ""
    return f"correction: {', '.join(words)}; {found}{end}"


def check_kind(kind: str) -> None:
    """Refuse a kind of correction that is not in `KINDS`.

    Raises:
        InputError: it is another.
    """
    if kind not in KINDS:
        raise InputError(f"correct: expected one of {', '.join(map(repr, KINDS))}, got {kind!r}")


class Sample:
    """So many images of a stream, each as likely as any other: sorted data have all their classes in it.

    Image i (from 0) of n is kept with probability room / n (Vitter's algorithm R, with a fixed seed), so that the
    choice is the same in every call and for every size of batches. Images of another shape than the first are passed
    over.

    Args:
        room: images that are kept.
    """

    def __init__(self, room: int) -> None:
        self.room, self.there, self._drawn = room, 0, np.random.default_rng(0)
        self._kept: list[tuple[Tensor, ...]] = []

    def passing(self, batches: Iterable[Batch], events: bool = False) -> Iterator[Batch]:
        """Yield the batches, events (T, B, ...) as their mean over time, and keep some of their images as they are."""
        for batch in batches:
            if self.room:
                self.add(batch, [int(events)] * len(batch.inputs))
            yield over_steps(batch) if events else batch

    def add(self, batch: Batch, dims: Sequence[int]) -> None:
        """Take in a batch whose images are counted by the given dimension of each input."""
        for i in range(batch.inputs[0].shape[dims[0]]):
            place = self.there if self.there < self.room else int(self._drawn.integers(self.there + 1))
            if place < self.room:
                image = tuple(x.narrow(dim, i, 1).clone() for x, dim in zip(batch.inputs, dims, strict=True))
                if self._kept and [x.shape for x in image] != [x.shape for x in self._kept[0]]:
                    continue
                self._dims = list(dims)
                self._kept[place : place + 1] = [image]
            self.there += 1

    def inputs(self) -> list[Tensor]:
        """The images: one tensor for each input, (B, ...) or events (T, B, ...)."""
        columns = zip(*self._kept, strict=True)
        return [torch.cat(images, dim) for images, dim in zip(columns, self._dims, strict=True)]


def _spread(calibration: object) -> object:
    """Of a dataset or tensor that says how long it is only the images that will be used, drawn from all of it."""
    if isinstance(calibration, Tensor):
        count = calibration.shape[0] if calibration.ndim else 0
    elif isinstance(calibration, Dataset) and not isinstance(calibration, IterableDataset):
        count = len(calibration) if isinstance(calibration, Sized) else 0
    else:
        return calibration
    if count <= MAX_IMAGES:
        return calibration
    some = drawn(count, MAX_IMAGES)
    return calibration[some] if isinstance(calibration, Tensor) else Subset(calibration, some)


def _as_they_run(snn: SpikingNetwork, x: Tensor, rank: int) -> Tensor:
    """Events of another number of steps than T as their mean; everything else as it is."""
    return x.float().mean(0) if x.ndim == rank + 1 and x.shape[0] != snn.timesteps else x


def _walk(snn: SpikingNetwork, inputs: Sequence[Tensor], reading: Reading | None) -> ImageWalk:
    """The walk, or an error that says that the images do not fit the network."""
    try:
        return ImageWalk(snn, inputs, reading)
    except (SpeedySNNError, RuntimeError, ValueError, IndexError) as err:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise DataError(f"calibration data: the network does not run on images {shapes}: {err}") from None


def _settings(snn: SpikingNetwork, kind: str) -> dict[str, Any]:
    """What `uncorrect` needs to take a correction back, and no more: it goes into the network's file."""
    names = ("log_threshold", "log_amplitude", "offset", *(("v_init",) if "potential" in kind else ()))
    found = {name: {layer: getattr(neuron, name) for layer, neuron in snn.neurons.items()} for name in names}
    return {name: {layer: x.detach().tolist() for layer, x in values.items() if x is not None}
            for name, values in found.items()}  # fmt: skip
