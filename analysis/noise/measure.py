"""measure_noise: read every image analog, quantized and spiking, and say layer by layer where they differ and why.

`NoiseSums` holds the running sums behind it: over some of the images, or in some of the processes. What the verdict
may recommend is tried on some of the images that were measured, each setting on a copy that shares the weights.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from speedysnn.analysis.memory import MIB, Memory, check, planned
from speedysnn.analysis.noise.layer import LayerSums, row_of, table_columns
from speedysnn.analysis.noise.passes import SideBySide, direct_inputs, gathered, layer_shapes, require_alike
from speedysnn.analysis.noise.result import NoiseReport
from speedysnn.analysis.output_metrics import OutputSums, settings
from speedysnn.analysis.reference import (
    Passes,
    Reference,
    batch_dims,
    device_of,
    images_in,
    part,
    pass_size,
    passes,
    run,
)
from speedysnn.analysis.report import detail_of
from speedysnn.analysis.report.verdict import PRESENT, Setting, advise, settings_to_try
from speedysnn.convert.correct import FEWEST, Sample, correct_on
from speedysnn.data.batches import Batch
from speedysnn.display import counting
from speedysnn.errors import InputError
from speedysnn.execution import scheduling
from speedysnn.network import SpikingNetwork, correction_in_place
from speedysnn.settings import execution, repeatable

DETAILS = ("standard", "full")
_LEAST, _NARROW = 16, 32  # images a pass, the more where layers are small: two of three readings run them but once
MOST_TRIED = 4  # settings that are tried at most
_KEPT_MIB, _KEPT_SHARE = 128.0, 0.25  # of the images kept for it: at most so much, and that share of `memory_mib`
TRIED = ("setting", "images", "agreement", "sqnr_db", "latency", "spikes_per_neuron")  # what each row tells


class NoiseSums:
    """The running sums behind `measure_noise`, over some of the images; sums of several processes add up.

    `sums = NoiseSums(snn).add(shard)`, then `sums.gather()` in every process of torch.distributed (accelerate), or
    `sums.add_state(other.state())` however the tensors travelled; `sums.report()` is that of all images. Memory does
    not grow with the images.

    Args:
        snn, source, detail, memory_mib, seed, weight_bits: as in `measure_noise`; the same in every process, the limit
            each process's own.

    Raises:
        InputError: an option out of range, or a source that does not fit.

    Example:
        >>> from speedysnn import analysis, convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "test", limit=40)
        >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
        >>> here, there = (analysis.NoiseSums(snn).add(images, limit=count) for count in (30, 10))
        >>> here.add_state(there.state())
        >>> here.report().outputs["images"]
        40
    """

    def __init__(
        self,
        snn: SpikingNetwork,
        source: nn.Module | None = None,
        *,
        detail: str = "standard",
        memory_mib: float | None = None,
        seed: int = 0,
        weight_bits: int | None = None,
    ) -> None:
        if detail not in DETAILS:
            raise InputError(f"detail: expected one of {', '.join(map(repr, DETAILS))}, got {detail!r}")
        check(memory_mib, seed)
        self.snn, self.reference = snn, Reference.of(snn, source)
        self._full, self._limit, self._seed = detail == "full", memory_mib, seed
        self.memory: Memory | None = None
        self.outputs, self.layers = OutputSums(), self._empty()
        self._execution, self._bits = dict[str, str](), weight_bits

    def _empty(self) -> dict[str, LayerSums]:
        """New sums of every layer."""
        own = {} if self.memory is None else self.memory.layers
        return {name: LayerSums(name, neuron, self._full, own.get(name)) for name, neuron in self.snn.neurons.items()}

    def _plan(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Decide once, by the layers' shapes, what is held; every process samples the same neurons."""
        snn, device = self.snn, device_of(self.snn)
        least = _NARROW if 4 * snn.width * _NARROW <= scheduling.LEAST_BYTES else _LEAST
        images = snn.images_per_pass or max(least, scheduling.images_per_pass(snn.width, snn.timesteps, device))
        alone = device.type != "cpu" or self.reference.module is not None  # a user's module may not run in two threads
        self.memory = planned(
            shapes, snn.neurons, full=self._full, limit_mib=self._limit, seed=self._seed, images=images,
            at_once=1 if alone else torch.get_num_threads(), width=snn.width,
            item=max((p.element_size() for p in snn.parameters()), default=4),
        )  # fmt: skip
        before, self.layers = self.layers, self._empty()
        for name, layer in before.items():
            self.layers[name].add_state(layer.state())

    def _follow(self) -> "NoiseSums":
        """Take over the plan of sums that came from elsewhere."""
        if self.memory is None and all(layer.sums for layer in self.layers.values()):
            self._plan({name: layer.shape for name, layer in self.layers.items()})
        return self

    @repeatable
    def add(self, data: Any, *, batch_size: int = 32, limit: int | None = None, progress: bool = False) -> "NoiseSums":
        """Measure these images too, all or none.

        Args:
            data, batch_size, limit, progress: as in `measure_noise`.

        Returns:
            These sums.

        Raises:
            DataError: no data, NaN in it, or the wrong shape.
        """
        return self._read(passes(self.snn, data, pass_size(self.snn), batch_size=batch_size, limit=limit), progress)

    def _read(self, chunks: Passes, progress: bool, kept: "_Kept | None" = None) -> "NoiseSums":
        self._execution = execution()
        readings: SideBySide | None = None
        with torch.no_grad(), counting("measuring noise", total=chunks.images, enabled=progress) as done:
            for batch in chunks:
                if self.memory is None:
                    self._plan(layer_shapes(self.snn, batch))
                assert self.memory is not None
                readings = readings or SideBySide(self.snn, self.reference, self.memory, self.layers, self._bits)
                readings.read(batch, done)
                if kept is not None:
                    kept.snn = readings.snn
                    kept.add(batch)
        if readings is not None:
            readings.put_together(self.layers, self.outputs)
        return self

    def state(self) -> dict[str, Tensor]:
        """Give all sums as tensors, to send to another process.

        Returns:
            Tensors by "/name" for the outputs and "layer/name" for the layers; counts are whole numbers, the rest
            is float64.
        """
        out = {f"/{name}": value for name, value in self.outputs.state().items()}
        for layer, sums in self.layers.items():
            out.update({f"{layer}/{name}": value for name, value in sums.state().items()})
        return out

    def add_state(self, state: Mapping[str, Tensor]) -> None:
        """Add what another process summed over other images.

        Args:
            state: as `state` gives it.

        Raises:
            InputError: those sums are of another network, of images of another size, or of another sample of neurons.
        """
        given: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            layer, _, name = key.rpartition("/")
            given.setdefault(layer, {})[name] = value
        if unknown := given.keys() - self.layers.keys() - {""}:
            raise InputError(f"add_state: expected sums of the same network, got a layer {min(unknown)!r}")
        self.outputs.add_state(given[""])
        for layer, own in self.layers.items():
            own.add_state(given.get(layer, {}))
        self._follow()

    def gather(self) -> "NoiseSums":
        """Put together the sums of all processes, in each of them; the figures are those of one process.

        One layer of one process travels at a time, so that memory does not grow with their number.

        Returns:
            The sums over all images.

        Raises:
            InputError: torch.distributed is not initialised, or another process has another network or sample.
        """
        require_alike(list(self.layers))
        own, self.layers = self.layers, self._empty()
        outputs, self.outputs = self.outputs, OutputSums()
        for state in gathered(outputs.state()):
            self.outputs.add_state(state)
        for name in list(own):
            for state in gathered(own.pop(name).state()):
                self.layers[name].add_state(state)
        return self._follow()

    def report(self) -> NoiseReport:
        """Compute the figures of the images so far; no setting is tried, since no images are kept.

        Returns:
            The report.
        """
        return self._report(None)

    def _report(self, kept: "_Kept | None") -> NoiseReport:
        reads = direct_inputs(self.snn.graph)
        found = {name: layer.found(reads[name]) for name, layer in self.layers.items()}
        columns = table_columns()
        layers = pd.DataFrame([row_of(layer) for layer in found.values()], columns=list(columns))
        figures = {
            "reference": self.reference.outputs,
            "layer_reference": self.reference.layers,
            **settings(self.snn),
            "correction": correction_in_place(self.snn),
            **self.outputs.figures(),
            **({} if self._bits is None else {"weight_bits": self._bits}),
            "execution": self._execution or execution(),
        }
        figures["tried"] = []
        if kept is not None and self.memory is not None:
            figures["tried"] = kept.tried(self.reference, settings_to_try(layers, figures), self.memory)
        details = {name: detail_of(layer) for name, layer in found.items()}
        return NoiseReport(layers, figures, advise(layers, figures), details, self.memory, columns)


class _Kept:
    """Some of the images that are measured, without labels: every image is as likely to be among them as any other.

    Args:
        snn: the network.
        count: images that settings are tried on; as many again are kept for a correction to be chosen on.
        limit_mib: what the measurement may take.
    """

    def __init__(self, snn: SpikingNetwork, count: int, limit_mib: float | None) -> None:
        self.snn, self._count, self._sample = snn, count, Sample(0)
        self._most = MIB * min(_KEPT_MIB, _KEPT_SHARE * (limit_mib or 4 * _KEPT_MIB))

    def add(self, batch: Batch) -> None:
        """Keep some of a batch's images."""
        if self._count and not self._sample.there:
            image = sum(x.nbytes for x in part(self.snn, batch, 0, 1).inputs)
            self._count = min(self._count, int(self._most // (2 * image)))
            self._sample = Sample(2 * self._count)
        if self._count:
            self._sample.add(batch, batch_dims(self.snn, batch.inputs))

    @torch.no_grad()
    def tried(self, reference: Reference, wanted: Sequence[Setting], memory: Memory) -> list[dict[str, Any]]:
        """Run copies of the network with other settings.

        Args:
            reference: what outputs are compared with.
            wanted: the settings, most important first; the first `MOST_TRIED` of them that the network takes are tried.
            memory: what a pass of the measurement takes.

        Returns:
            Rows as `outputs["tried"]` has them, the network as it is first; none where nothing could be tried.
        """
        if not self._count or not wanted:
            return []
        whole = Batch(tuple(self._sample.inputs()))
        cut = min(self._count, there := images_in(self.snn, whole.inputs))
        if correction_in_place(self.snn) is not None and there - cut < FEWEST:  # every setting is corrected anew
            cut = there // 2
        used, others = part(self.snn, whole, 0, cut), part(self.snn, whole, cut, there)
        source, rows = reference.analog(used.inputs), list[dict[str, Any]]()
        for setting in (Setting(PRESENT, "", ""), *wanted):
            changed = None if len(rows) > MOST_TRIED else _changed(self.snn, setting, others)
            if changed is not None:
                if memory.tight:
                    changed.images_per_pass = max(1, memory.images * memory.at_once // torch.get_num_threads())
                rows.append(_scored(setting.words, changed, used, source))
        return rows if len(rows) > 1 else []


def _changed(snn: SpikingNetwork, setting: Setting, others: Batch) -> SpikingNetwork | None:
    """A copy with another setting that shares weights and histograms; None where the network does not take it."""
    events = any(batch_dims(snn, others.inputs))
    if (setting.timesteps and events) or (setting.correct and images_in(snn, others.inputs) < FEWEST):
        return None
    shared = (snn.layers, snn.calibration, snn._stream, *(neuron._state for neuron in snn.neurons.values()))
    out = copy.deepcopy(snn, {id(one): one for one in shared})
    out.reset()
    try:
        if setting.delay is not None:
            out.set_delay(setting.delay)
        if setting.spikes is not None:
            out.set_spikes(setting.spikes)
        if setting.timesteps is not None:
            out.timesteps = setting.timesteps
            out.recalibrate()
        if setting.scaled is not None:
            out.neurons[setting.scaled[0]].scale(setting.scaled[1])
        if setting.correct is not None:
            correct_on(out, others.inputs, setting.correct)
    except InputError:  # no histograms, or a rule that was a function and is not known any more
        return None
    return out


def _scored(words: str, snn: SpikingNetwork, images: Batch, source: Any) -> dict[str, Any]:
    """One row of `outputs["tried"]`."""
    sums = OutputSums()
    ours = run(snn, "spiking", images.inputs, sums.count)
    sums.update(source, ours, ours, None)
    figures = {**sums.figures(), "setting": words, "latency": snn.latency}
    return {name: figures[name] for name in TRIED}


@repeatable
def measure_noise(
    snn: SpikingNetwork,
    data: Any,
    source: nn.Module | None = None,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    progress: bool = False,
    detail: str = "standard",
    memory_mib: float | None = None,
    seed: int = 0,
    try_settings: int = 64,
    weight_bits: int | None = None,
) -> NoiseReport:
    """Measure how far every layer's spikes are from the source's activations, and why; one pass over the data.

    Each image is read three times, analog, quantized and spiking, and every element's error e = r - a is split into

        clip        clamp(z, 0, N theta) - a           the range is too small
        round       Q(z) - clamp(z, 0, N theta)        the step is too coarse
        propagated  Q(z'') - Q(z)                      the input is off already
        weights     Q(z') - Q(z'')                     the layer's own weights were rounded (`weight_bits`, else 0)
        temporal    r - Q(z')                          the input's spikes came unevenly

    with a, z the source's activation and pre-activation, z' the mean over time of the spiking layer's input, z'' that
    with weights before rounding, r that of its output. The parts add up to e, and their shares sum(part e) / sum(e^2)
    to 1; a share may be below 0. The order is a convention. `affine_share` is the part of the propagated share that an
    affine map of each channel's drive would remove: gain and offset lost with depth. All sums are float64 over all
    elements, taken in passes of a fixed size, so that no figure depends on how the data is batched.

    Args:
        snn: the network, at its present T, thresholds and look-ahead; it is left as it is.
        data: a Dataset, a DataLoader, a tensor (B, ...), a tuple (x, y), or batches; labels give accuracies.
        source: what to compare with: None for the network's own analog reading; a SpikingNetwork with the same
            neurons, as it was before tuning (theta stays this network's own); or the original nn.Module, whose outputs
            alone can be compared, the layers then with the own analog reading.
        batch_size: images read at a time where the data is not in batches yet; no figure depends on it.
        limit: stop after this many images.
        progress: show progress.
        detail: "full" also compares every two channels' errors and adjacent steps.
        memory_mib: what sums and readings may take beside the weights, MiB; predicted from the first image's shapes and
            stated in `NoiseReport.memory`. None for 1024 or, for a large network, what passes of 8 images take, up to
            a quarter of the machine's memory. Where it is short fewer images are read at once, then dead and saturated
            neurons are looked for in a sample of the largest layers; every sum over elements stays whole.
        seed: of that sample.
        try_settings: on how many of the images the settings that may help are tried, 4 at most: more look-ahead,
            "ternary" spikes, matched moments, another theta of a layer, twice the steps. The images are drawn from
            all, kept without labels (128 MiB at most), and a correction is chosen on as many others: one that the
            network carries is made anew for each setting, on half of the images where they are few. What came of it
            stands in `outputs["tried"]`, and the verdict recommends what was better. On the digits networks it takes as
            long as measuring two to six times as many images. 0 to try nothing.
        weight_bits: measure the network with weights rounded to 2 to 16 bits, to the nearest, as `to_integer` does.

    Returns:
        The report: one row a layer, the whole network's figures, and advice.

    Raises:
        InputError: an option out of range, a source that does not fit, or a limit too small for one image.
        ConversionError: a part that has no integer form, where weights are to be rounded.
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> from speedysnn import analysis, convert, data
        >>> from speedysnn.assets.digits import load_digits_net
        >>> images = data.load("digits", "test", limit=40)
        >>> snn = convert.to_spiking(load_digits_net("avg"), images, timesteps=4)
        >>> noise = analysis.measure_noise(snn, images)
        >>> len(noise.layers) == len(snn.neurons)
        True
        >>> shares = noise.layers[["share_clip", "share_round", "share_propagated", "share_temporal"]].sum(axis=1)
        >>> bool((abs(shares - 1) < 1e-6).all())
        True
        >>> [(row["setting"], row["images"]) for row in noise.outputs["tried"]][:2]
        [('as it is', 20), ('look-ahead 1', 20)]
    """
    if not isinstance(try_settings, int) or isinstance(try_settings, bool) or try_settings < 0:
        raise InputError(f"try_settings: expected a whole number of images, 0 to try nothing, got {try_settings!r}")
    sums = NoiseSums(snn, source, detail=detail, memory_mib=memory_mib, seed=seed, weight_bits=weight_bits)
    kept = _Kept(snn, try_settings, memory_mib)
    chunks = passes(snn, data, pass_size(snn), batch_size=batch_size, limit=limit)
    return sums._read(chunks, progress, kept)._report(kept)
