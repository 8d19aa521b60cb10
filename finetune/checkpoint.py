"""The state of a training run, kept in one safetensors file and replaced after every epoch, so that it can be resumed.

Beside the state stands the run's origin: a digest of its settings and of the network it began with. A run is resumed
only from a state of the same origin. Nothing is pickled.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from speedysnn.errors import TrainingError
from speedysnn.files.atomic import claimed, take_away, try_writing
from speedysnn.finetune.optimization import Average
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.layer import IFNeuron

FILE = "run.safetensors"
SCHEMA = "speedysnn-run/6"
CLOSE = 1e-4  # of a tensor's summed magnitudes; thresholds calibrated on another processor differ in their last bits


class Settings(Protocol):
    """Settings that go to JSON."""

    def to_json(self) -> dict[str, Any]:
        """The settings by name."""


@dataclass(frozen=True)
class Origin:
    """What a run began with: its settings exactly, and its network up to rounding.

    Attributes:
        settings: a digest of the settings, T, spikes and look-ahead.
        tensors: by tensor name: its size, its summed magnitudes and two weighted sums.
    """

    settings: str
    tensors: Mapping[str, list[float]]

    @staticmethod
    def of(snn: SpikingNetwork, config: Settings) -> "Origin":
        """Describe a run that begins with this network and these settings.

        Args:
            snn: the network before training.
            config: the settings.

        Returns:
            The origin, to be compared with that of another run.
        """
        digest = hashlib.sha256(json.dumps([config.to_json(), snn.timesteps], sort_keys=True).encode())
        for name, neuron in snn.neurons.items():
            digest.update(repr((name, neuron.spikes, neuron.delay, neuron.surrogate, neuron.width)).encode())
        return Origin(digest.hexdigest(), {name: _figures(x) for name, x in sorted(snn.state_dict().items())})

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Origin":
        """Read what `to_json` wrote.

        Args:
            data: JSON data.

        Returns:
            An equal origin.
        """
        return Origin(str(data["settings"]), {str(k): [float(x) for x in v] for k, v in data["tensors"].items()})

    def to_json(self) -> dict[str, Any]:
        """Write the origin as JSON data.

        Returns:
            The digest and the figures of each tensor.
        """
        return {"settings": self.settings, "tensors": dict(self.tensors)}

    def difference(self, other: "Origin") -> str | None:
        """Say in words how another origin differs.

        Args:
            other: the origin of another run.

        Returns:
            The first difference, or None where both runs began alike.

        Example:
            >>> from speedysnn.finetune.checkpoint import Origin
            >>> run = Origin("digest", {"conv.weight": [2, 1.0, 0.5, 0.1]})
            >>> run.difference(Origin("digest", {"conv.weight": [2, 1.0, 0.5, 0.3]}))
            "another network ('conv.weight' differs)"
        """
        if self.settings != other.settings:
            return "other settings, T, spikes or look-ahead"
        if self.tensors.keys() != other.tensors.keys():
            return "a network of other layers"
        for name, own in self.tensors.items():
            theirs = other.tensors[name]
            far = any(not abs(a - b) <= CLOSE * own[1] for a, b in zip(own[1:], theirs[1:], strict=True))
            if own[0] != theirs[0] or far:
                return f"another network ({name!r} differs)"
        return None


def _figures(x: Tensor) -> list[float]:
    """Size, summed magnitudes, sum, and a sum weighted by position, which changes where values change places."""
    values = x.detach().cpu().to(torch.float64).reshape(-1)
    weights = torch.arange(values.numel(), dtype=torch.float64).cos()
    return [values.numel(), float(values.abs().sum()), float(values.sum()), float(values @ weights)]


@dataclass
class RunState:
    """Where a run stands after a whole epoch.

    Attributes:
        stage: index of the stage the next epoch belongs to.
        epoch: epochs of that stage that are done.
        history: one row an epoch.
        best: parameters with the best score of the present stage, by name.
        best_score: their score; higher is better.
        best_epoch: their epoch, 0 for the state before the stage.
        optimizer: the optimizer's tensors, "index.name" -> tensor.
        layers: every layer's theta, amplitude, v_init and rate before the run.
        average: the running average of the state in the present stage, where one is kept.
        scales: to which the rates of the present stage are relative, by parameter; see `optimization.scales_of`.
        first_score: score of the network before the run at the last stage's settings, in a run of several stages.
        start: the network as the present stage got it, which it ends in bit for bit where nothing was better; empty
            once something was.
    """

    stage: int = 0
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_score: float = float("-inf")
    best_epoch: int = 0
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    average: Average = field(default_factory=Average)
    scales: dict[str, float] = field(default_factory=dict)
    first_score: float | None = None
    start: dict[str, Tensor] = field(default_factory=dict)


def snapshot(snn: SpikingNetwork) -> dict[str, Tensor]:
    """Copy all parameters and buffers.

    Args:
        snn: the network.

    Returns:
        Tensors by name.
    """
    return {name: value.detach().clone() for name, value in snn.state_dict().items()}


def restore(snn: SpikingNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Give a network the tensors that `snapshot` copied, amplitudes and offsets that it has or lacks by now included.

    Args:
        snn: the network.
        tensors: of a network of the same layers.
    """
    for name, module in snn.named_modules():
        if isinstance(module, IFNeuron):
            amplitude, offset = (tensors.get(f"{name}.{part}") for part in ("log_amplitude", "offset"))
            module.set_amplitude(None if amplitude is None else amplitude.exp())
            module.offset = None if offset is None else offset.clone().to(module.log_threshold)
    snn.load_state_dict(dict(tensors))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copy an optimizer's state, such as Adam's moments, into a flat table that a file can hold.

    Args:
        optimizer: the optimizer.

    Returns:
        Tensors by "INDEX.NAME": the parameter's index and the name of its moment.

    Example:
        >>> import torch
        >>> from speedysnn.finetune.checkpoint import optimizer_tensors
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> adam = torch.optim.Adam([weight])
        >>> weight.sum().backward(), adam.step()
        (None, None)
        >>> sorted(optimizer_tensors(adam))
        ['0.exp_avg', '0.exp_avg_sq', '0.step']
    """
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value).clone() for index, own in state.items()
            for name, value in own.items()}  # fmt: skip


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` copied.

    Args:
        optimizer: an optimizer of the same parameters.
        tensors: the state; an empty one changes nothing.
    """
    if not tensors:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    document = optimizer.state_dict()
    document["state"] = state
    optimizer.load_state_dict(document)


@contextmanager
def reserved_folders(folder: Path | None, log: Path | None) -> Iterator[None]:
    """Reserve the folders that a run writes into: a second run into one of them is refused before its first step.

    Args:
        folder: where the state is kept, or None.
        log: where the log is kept, or None.

    Yields:
        Nothing; the folders exist and can be written to.

    Raises:
        ArtifactError: another run is writing there.
        TrainingError: nothing can be written there.
    """
    wanted = {place.absolute(): (what, place) for what, place in (("log ", log), ("", folder)) if place is not None}
    with ExitStack() as stack:
        for what, place in wanted.values():
            stack.enter_context(claimed(place, what))
            if not place.exists():
                stack.callback(take_away, [place])
            try:
                place.mkdir(parents=True, exist_ok=True)
                try_writing(place)
            except OSError as err:
                raise TrainingError(
                    f"{what}{place}: expected a folder that can be written to ({err.strerror or err}); choose another"
                ) from None
        yield


def write(folder: Path, snn: SpikingNetwork, run: RunState, origin: Origin) -> None:
    """Replace the folder's state file in one step.

    Args:
        folder: where the state is kept.
        snn: the network as it is now.
        run: where the run stands.
        origin: what the run began with.

    Raises:
        TrainingError: the folder cannot be written.
    """
    tensors = {f"net:{name}": value for name, value in snapshot(snn).items()}
    tensors.update({f"best:{name}": value for name, value in run.best.items()})
    tensors.update({f"opt:{name}": value for name, value in run.optimizer.items()})
    tensors.update({f"start:{name}": value for name, value in run.start.items()})
    tensors.update({f"average:{name}": value for name, value in run.average.values.items()})
    document = {"schema": SCHEMA, "origin": origin.to_json(), "stage": run.stage, "epoch": run.epoch,
                "history": run.history, "best_score": run.best_score, "best_epoch": run.best_epoch,
                "layers": run.layers, "average_steps": run.average.steps, "scales": run.scales,
                "first_score": run.first_score}  # fmt: skip
    scratch = folder / f".{FILE}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, scratch, {"run": json.dumps(document)})
        scratch.replace(folder / FILE)
    except (OSError, SafetensorError) as err:
        raise TrainingError(f"{folder}: the run's state cannot be written ({err})") from None


def read(
    folder: Path, snn: SpikingNetwork, origin: Origin, unfold: Callable[[], SpikingNetwork] | None = None
) -> RunState:
    """Load a run's state into its network.

    Args:
        folder: where the state is kept.
        snn: the network, which is given the tensors of the state.
        origin: what the run that goes on began with.
        unfold: gives the network with batch-norm in place, for a state in the midst of a stage that trains so.

    Returns:
        Where the run stands.

    Raises:
        TrainingError: there is no state, it is damaged, or it belongs to other settings or another network.
    """
    path = folder / FILE
    if not path.is_file():
        raise TrainingError(f"{folder}: nothing to resume: expected {FILE} from an earlier run with the same folder")
    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})["run"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        if document["schema"] != SCHEMA:
            raise TrainingError(
                f"{path}: expected a run of this version ({SCHEMA}), got {document['schema']!r}: another version of "
                "speedysnn made it and trains in other steps, so it cannot be resumed; finish it with that version, or "
                "start again without resume"
            )
        if difference := Origin.from_json(document["origin"]).difference(origin):
            raise TrainingError(
                f"{path}: expected what the run there began with, got {difference}; resume with the same, or choose "
                "another folder"
            )
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "best": {}, "opt": {}, "average": {}, "start": {}}
        for key, value in tensors.items():
            kind, name = key.split(":", 1)
            parts[kind][name] = value
        if unfold is not None and any("batch_norm" in name and name not in snn.state_dict() for name in parts["net"]):
            snn = unfold()
        restore(snn, parts["net"])
        return RunState(document["stage"], document["epoch"], document["history"], parts["best"],
                        document["best_score"], document["best_epoch"], parts["opt"], document["layers"],
                        Average.restored(snn, parts["average"], document["average_steps"]), document["scales"],
                        document["first_score"], parts["start"])  # fmt: skip
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as err:
        raise TrainingError(f"{path}: damaged ({type(err).__name__}: {err}); start again without resume") from None
