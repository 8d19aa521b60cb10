"""SpikingNetwork: a graph with weights and neurons, read as the source, its quantized twin, or spikes.

What a network's provenance says was done to it: corrections, which can be taken back, and tuning.

The table of a network's neuron layers, one row each.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
from torch import Tensor, nn

from speedysnn.calibration import Calibration
from speedysnn.display import block
from speedysnn.errors import InputError
from speedysnn.execution import runner
from speedysnn.execution.module import NetworkModule
from speedysnn.execution.observers import Observer
from speedysnn.execution.runner import Stream
from speedysnn.graph.ir import Graph, depth, lags, map_outputs
from speedysnn.neurons.layer import IFNeuron
from speedysnn.neurons.parameters import READINGS, Delay, Reading


def uncorrected(neurons: Mapping[str, IFNeuron], provenance: dict[str, Any]) -> dict[str, Any] | None:
    """Take a correction back: no offsets, v_init as it was before where the correction changed it, amplitudes alike.

    Nothing is changed where the whole correction was taken back already, or where the network was tuned since, which
    trained what the correction chose. The record `provenance["correction"]` may hold by layer "log_threshold",
    "log_amplitude" and "offset" as they were (None for a spike that stands for theta, and for no offset); without them
    there is neither.

    Returns:
        The record of what was taken back, None where nothing was.
    """
    made = _carried(provenance)
    provenance.pop("correction", None)
    if made is None:
        return None
    for name, neuron in neurons.items():
        offset = made.get("offset", {}).get(name)
        neuron.offset = None if offset is None else neuron.log_threshold.new_tensor(offset)
        if "potential" in made["kind"]:
            neuron.v_init.data = neuron.v_init.new_tensor(made["v_init"][name])
        if "log_threshold" in made:
            neuron.log_threshold.data = neuron.log_threshold.new_tensor(made["log_threshold"][name])
        amplitude = made.get("log_amplitude", {}).get(name)
        neuron.log_amplitude = None if amplitude is None else nn.Parameter(neuron.log_threshold.new_tensor(amplitude))
    return made


def _carried(provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a correction that was neither taken back nor tuned upon."""
    made: dict[str, Any] | None = provenance.get("correction")
    if made is None or made.get("taken_back"):
        return None
    return None if len(provenance.get("finetuned", [])) > made.get("tuned_runs", math.inf) else made


def correction_in_place(snn: NetworkModule) -> str | None:
    """The kind of correction that the network carries, None where it carries none or was tuned since."""
    made = _carried(snn.provenance)
    return None if made is None else str(made["kind"])


def time_of(snn: "SpikingNetwork") -> dict[str, Any]:
    """What a correction is made for: "timesteps", "delay" and "spikes", the last two "mixed" where layers differ."""
    delays, kinds = {n.delay for n in snn.neurons.values()}, {n.spikes for n in snn.neurons.values()}
    return {"timesteps": snn.timesteps, "delay": delays.pop() if len(delays) == 1 else "mixed",
            "spikes": kinds.pop() if len(kinds) == 1 else "mixed"}  # fmt: skip


def correction_note(snn: "SpikingNetwork") -> str | None:
    """Say that the network's correction was made for another T, look-ahead or spike kind; None where all are alike."""
    made, now = _carried(snn.provenance), time_of(snn)
    if made is None or all(made.get(name, value) == value for name, value in now.items()):
        return None
    made = {**now, **made}
    there = f"T={made['timesteps']}, look-ahead {made['delay']} and {made['spikes']} spikes"
    return (f"the correction ({made['kind']}) was made for {there}; one made for the present ones serves better: "
            f"convert so, or call convert.apply_correction")  # fmt: skip


def weights_tuned(snn: NetworkModule) -> bool:
    """Whether tuning changed weights or biases, so that the analog reading is no longer the source network."""
    made = [run for run in snn.provenance.get("reconstructed", []) if not run["taken_back"]]
    runs = [*snn.provenance.get("finetuned", []), *made]
    return any({"weights", "biases"} & set(run["config"]["train"]) for run in runs)


def summarized(graph: Graph, neurons: Mapping[str, IFNeuron], calibration: Calibration) -> pd.DataFrame:
    """The columns that `SpikingNetwork.summary` describes."""
    rows = []
    for node in graph.neurons:
        neuron = neurons[node.name]
        theta = neuron.threshold.detach()
        rows.append(
            {
                "layer": node.name,
                "neurons": node.attrs.get("features"),
                "thresholds": theta.numel(),
                "theta_min": theta.min().item(),
                "theta_mean": theta.mean().item(),
                "theta_max": theta.max().item(),
                "amplitude_mean": neuron.amplitude.detach().mean().item(),
                "v_init": neuron.v_init.detach().mean().item(),
                "spikes": neuron.spikes,
                "delay": neuron.delay,
                "predicted_rate": calibration.predicted_rate(node.name, neuron),
                "source": node.source,
            }
        )
    return pd.DataFrame(rows)


PRESERVED = ("timesteps", "reading", "threshold", "amplitude", "v_init", "offset", "delay", "spikes")


class SpikingNetwork(NetworkModule):
    """A network of integrate-and-fire neurons over T steps; one graph, three readings.

    `snn(x)` gives the mean of the last layer over T steps, (B, classes); `per_step=True` gives the running mean after
    every step, (T, B, classes). A static input (B, ...) is a constant current; an event input is (T, B, ...). Made by
    `speedysnn.convert.to_spiking` or `speedysnn.load`.

    Args:
        graph: the nodes in execution order.
        tensors: node name -> its tensors by name; names in `BUFFERS` are not trained.
        neurons: node name -> its neurons.
        timesteps: T.
        input_shapes: shape of each input without the batch dimension.
        calibration: histograms and rules for `recalibrate`.
        provenance: where the network came from, JSON data.
        copy: False takes the tensors over as they are.

    Attributes:
        width: values of the widest neuron layer or input, for one picture.
        multiplications: about, for one picture.
        images_per_pass: images that run at once, None for what fits the caches.

    Without gradients a batch is cut into passes that fit the caches, one pass a core on the CPU; `images_per_pass`, or
    $SPEEDYSNN_IMAGES_PER_PASS, sets their size. A network with forward or backward hooks on a layer or a neuron runs
    the whole batch in one pass, so that a hook fires once a call (`step`: once a tick, with None for no input and for
    no output); hooks of torch's pruning and weight norm, and global ones, do not count.

    Raises:
        InputError: on a call whose input has another rank than the network was converted with.
    """

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, Mapping[str, Tensor]],
        neurons: Mapping[str, IFNeuron],
        timesteps: int,
        input_shapes: Sequence[Sequence[int]],
        calibration: Calibration | None = None,
        provenance: dict[str, Any] | None = None,
        *,
        copy: bool = True,
    ) -> None:
        self._reading: Reading
        self._stream: Stream | None
        super().__init__(graph, tensors, neurons, timesteps, input_shapes, calibration, provenance, copy=copy)
        self._reading = "spiking"

    def set_delay(self, delay: Delay | Mapping[str, Delay]) -> None:
        """Give all neurons a look-ahead, or the named ones theirs.

        A correction of the conversion stays as it was made, for another look-ahead, and may then serve less than none:
        on ResNet-20 at T = 4 one made for 0 gives 85 % with a step of look-ahead, none 88 %, one made anew 94 %
        (agreement, 150 training images). `convert.apply_correction(snn, images, "moments")` makes it anew.
        """
        chosen = delay if isinstance(delay, Mapping) else dict.fromkeys(self.neurons, delay)
        for name, value in chosen.items():
            self._known(name).delay = value
        self.reset()

    def set_spikes(self, spikes: str) -> None:
        """Give all neurons a spike kind: "binary", "ternary", "graded:N" or "power2:N"; see `set_delay`."""
        for neuron in self.neurons.values():
            neuron.spikes = spikes
            _ = neuron.rule
        self.reset()

    @property
    def latency(self) -> int:
        """Steps from the first input to the last output: T plus the look-aheads along the longest path."""
        trail = lags(self.graph, lambda name: self._neuron(name).lookahead)
        return self.timesteps + max(trail[name] for name in self.graph.output_names)

    @property
    def depth(self) -> int:
        """L: neurons on the longest path from input to output."""
        return depth(self.graph, self.graph.output_names)

    @property
    def present_reading(self) -> Reading:
        """The reading that a call uses now."""
        return self._reading

    @contextmanager
    def reading(self, reading: Reading) -> Iterator["SpikingNetwork"]:
        """Read the network as "analog", "quantized" or "spiking" inside the block."""
        if reading not in READINGS:
            raise InputError(f"reading: expected one of {', '.join(READINGS)}, got {reading!r}")
        before, self._reading = self._reading, reading
        try:
            yield self
        finally:
            self._reading = before

    @contextmanager
    def preserved(self, *which: str) -> Iterator[Callable[[], None]]:
        """T, neurons' settings and reading as they are now, put back when the block ends, whatever happens.

        Args:
            which: names of `PRESERVED` to put back; all by default. Tensors come back as the very ones they were, so
                that a block which writes into them, as training does, leaves them out or replaces `.data`.

        Yields:
            A function that puts them back at once.

        Raises:
            InputError: another name.

        Example:
            >>> with snn.preserved():                                             # doctest: +SKIP
            ...     snn.timesteps = 16
        """
        chosen = which or PRESERVED
        if odd := [name for name in chosen if name not in PRESERVED]:
            raise InputError(f"preserved: expected names of {', '.join(PRESERVED)}, got {odd[0]!r}")
        own, neurons = (self.timesteps, self._reading), self.neurons
        records = {name: self.provenance.get(name) for name in ("correction", "correction_removed")}
        before = {name: _settings_of(neuron) for name, neuron in neurons.items()}

        def put_back() -> None:
            if "timesteps" in chosen:
                self.timesteps = own[0]
            if "reading" in chosen:
                self._reading = own[1]
            for name, record in records.items() if "offset" in chosen else ():  # they stay with what they tell of
                self.provenance[name] = record
                if record is None:
                    del self.provenance[name]
            for name, neuron in neurons.items():
                _put_back_settings(neuron, {key: value for key, value in before[name].items() if key in chosen})
            self.reset()

        try:
            yield put_back
        finally:
            put_back()

    def forward(
        self,
        *inputs: Tensor,
        per_step: bool = False,
        observer: Observer | None = None,
        at_once: bool = False,
    ) -> Any:
        """Run all T steps, or one pass in the other readings; see the class.

        Args:
            inputs: one tensor an input of the source network, (B, ...) static or (T, B, ...) events.
            per_step: the running mean after each step, (T, B, ...), instead of the mean over T.
            observer: called with a `LayerRecord` for every neuron in execution order.
            at_once: run the batch at once, never cut into passes, whatever its size.

        Returns:
            A tensor, or tensors in the structure of the source network's output.
        """
        return self.read(self._reading, *inputs, per_step=per_step, observer=observer, at_once=at_once)

    def read(
        self,
        reading: Reading,
        *inputs: Tensor,
        per_step: bool = False,
        observer: Observer | None = None,
        at_once: bool = False,
    ) -> Any:
        """A call in one reading, whatever the present one is; several threads may use several readings at once."""
        return runner.read(self, reading, self._all(inputs), per_step, observer, at_once)

    def _all(self, inputs: Sequence[Tensor | None]) -> Sequence[Any]:
        if len(inputs) != len(self.input_shapes):
            raise InputError(f"expected {len(self.input_shapes)} inputs, got {len(inputs)}")
        return inputs

    def step(self, *inputs: Tensor | None) -> Any:
        """One tick: the inputs of this step (B, ...), or None for each to let what is under way come out.

        Returns the output of one step, not a mean, or None while the look-ahead holds it back (`latency` - T ticks).
        """
        for position, x in enumerate(self._all(inputs)):
            if x is not None:
                runner.require_size(self, x, position)
        if self._stream is None:
            self._stream = Stream(self.graph, self.neurons, self.layer, self.timesteps, self.graph_info)
        out = self._stream.tick([None if x is None else runner.channels_last(x) for x in self._all(inputs)])
        return None if any(value is None for value in out.values()) else map_outputs(self.graph.outputs, out)

    def reset(self) -> None:
        """Forget the streaming state of `step`."""
        self._stream = None
        super().reset()

    def recalibrate(self) -> "SpikingNetwork":
        """Choose every theta again for the present T, v_init and spikes from the stored histograms, without data.

        Layers whose threshold was given as a value keep it; a learned clip stays the full scale N theta. The correction
        of the conversion (`to_spiking(correct=...)`, by default "moments") was measured for one T, look-ahead and spike
        kind, so it is taken back, which `provenance["correction_removed"]` says; `convert.apply_correction(snn, images,
        "moments")` makes it anew, and is worth it at T <= 4. A network that was tuned since keeps its offsets.

        Raises:
            InputError: the network holds no histograms.
        """
        if not self.calibration.histograms:
            raise InputError("recalibrate: the network holds no histograms; convert it with calibration data")
        made = uncorrected(self.neurons, self.provenance)
        for name, neuron in self.neurons.items():
            self.calibration.choose_again(name, neuron)
        if made is not None:
            said = (f"correction: {made['kind']}, measured at T={made.get('timesteps')}, was taken back; "
                    f"convert.apply_correction(snn, images, {made['kind']!r}) makes it anew")  # fmt: skip
            self.provenance["correction_removed"] = {"kind": made["kind"], "said": said}
        return self

    def uncorrect(self) -> None:
        """Take corrections back: no offsets, no amplitudes, and what else the correction changed as it was before."""
        uncorrected(self.neurons, self.provenance)

    def summary(self) -> pd.DataFrame:
        """One row a neuron layer: name, theta, amplitude, v_init, spikes, look-ahead, and its predicted rate.

        Units: theta and amplitude in the activation's own; rate in spikes per neuron and step under constant drive,
        from calibration, None without histograms.
        """
        return summarized(self.graph, self.neurons, self.calibration)

    def _repr_html_(self) -> str:
        """The summary, for a notebook."""
        return block(f"SpikingNetwork: {self.extra_repr()}", (), self.summary())

    def extra_repr(self) -> str:
        """T, depth and latency in one line, and what a correction was made for where it was for other settings."""
        note = correction_note(self)
        line = f"T={self.timesteps}, {len(self.neurons)} neuron layers, latency={self.latency} steps"
        return line if note is None else f"{line}; {note}"


def _settings_of(neuron: IFNeuron) -> dict[str, Any]:
    """What `SpikingNetwork.preserved` keeps of a neuron; the tensors themselves, since settings are replaced."""
    amplitude = neuron.log_amplitude
    own = None if amplitude is None else (amplitude, amplitude.data)
    return {"threshold": neuron.log_threshold.data, "amplitude": own, "v_init": neuron.v_init.data,
            "offset": neuron.offset, "delay": neuron.delay, "spikes": neuron.spikes}  # fmt: skip


def _put_back_settings(neuron: IFNeuron, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if name == "threshold":
            neuron.log_threshold.data = value
        elif name == "amplitude":
            neuron.log_amplitude = None if value is None else value[0]
            if value is not None:
                value[0].data = value[1]
        elif name == "v_init":
            neuron.v_init.data = value
        else:
            setattr(neuron, name, value)
