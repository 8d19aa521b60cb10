"""Save and load a network as a folder: network.json and weights.safetensors; no pickle, no code, written atomically.

Whether what came out of a file is a network that runs: its records, options, and shapes, without using memory.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from speedysnn.calibration import Calibration, check_histograms
from speedysnn.calibration.histogram import ActivationHistogram
from speedysnn.errors import ArtifactError, SpeedySNNError
from speedysnn.execution.interpreter import run_graph
from speedysnn.files import ODD
from speedysnn.files.atomic import exchange, left_beside, scratch_beside
from speedysnn.graph.ir import Graph, Node, map_outputs
from speedysnn.graph.operators import OPERATORS
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.layer import IFNeuron
from speedysnn.neurons.parameters import check_options

__all__ = ["check_histograms", "check_options", "check_records", "require_runs"]

_COUNTED = {2: "two", 3: "three"}
LARGEST = 2**33  # values of one layer for one picture; the largest networks there are stay a hundred times below
_WRONG = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, AssertionError)


def require_runs(
    graph: Graph,
    tensors: Mapping[str, Mapping[str, Tensor]],
    neurons: Mapping[str, IFNeuron],
    shapes: Sequence[Sequence[int]],
) -> None:
    """Refuse a graph that does not fit its own tensors and input shapes, or asks for absurd memory.

    The graph runs for two images on torch's "meta" device, which computes shapes alone. Where windows, frames or pixels
    are folded into the batch it runs for three images too: as many rows must belong to each.

    Raises:
        ArtifactError: the node where it stops, and why.
    """
    if len(shapes) != len(graph.inputs):
        raise ArtifactError(f"graph: expected {len(graph.inputs)} input shapes, one an input, got {len(shapes)}")
    floats = (x.dtype for own in tensors.values() for x in own.values() if x.is_floating_point())
    kind = next(floats, torch.float32)
    rows: dict[str, int] = {}
    for images in (2, 3):
        trial = _TrialRun(tensors, neurons, images, rows)
        each = zip(graph.inputs, shapes, strict=True)
        given = (trial.checked(node, partial(torch.empty, (images, *shape), dtype=kind, device="meta"))
                 for node, shape in each)  # fmt: skip
        try:
            values = run_graph(graph, given, trial)
        except NotImplementedError:  # an operator without shape rules: nothing can be said
            return
        map_outputs(graph.outputs, values)
        if set(rows.values()) == {1}:
            return


class _TrialRun:
    """What a node gives on the "meta" device: shapes alone. `rows` are those of an image, by node name."""

    def __init__(
        self,
        tensors: Mapping[str, Mapping[str, Tensor]],
        neurons: Mapping[str, IFNeuron],
        images: int,
        rows: dict[str, int],
    ) -> None:
        self.tensors, self.neurons, self.images, self.rows = tensors, neurons, images, rows

    def neuron(self, node: Node, drive: Tensor) -> Tensor:
        """The analog reading's shape."""
        return self.checked(node, lambda: _neuron(self.neurons[node.name], drive))

    def operator(self, node: Node, args: list[Tensor]) -> Tensor:
        """The operator's shape."""
        return self.checked(node, lambda: _run(node, args, self.tensors.get(node.name, {})))

    def checked(self, node: Node, call: Callable[[], Any]) -> Tensor:
        """The call's result, of a size that memory may hold, with as many rows for each image in every run."""
        out = _shape_of(node, call)
        rows, left = divmod(out.shape[0], self.images) if out.ndim else (0, 1)
        if left or not rows or rows != self.rows.setdefault(node.name, rows) or out.numel() > self.images * LARGEST:
            raise ArtifactError(
                f"graph: node {node.name!r} ({node.op}) gives {tuple(out.shape)} for {_COUNTED[self.images]} images"
            )
        return out


def _shape_of(node: Node, call: Callable[[], Any]) -> Tensor:
    try:
        out = call()
    except NotImplementedError:
        raise
    except _WRONG as err:
        reason = str(err).strip().partition("\n")[0]
        raise ArtifactError(f"graph: node {node.name!r} ({node.op}) cannot run: {reason}") from None
    if not isinstance(out, Tensor):
        raise ArtifactError(f"graph: node {node.name!r} ({node.op}) gives {type(out).__name__}")
    return out


def _run(node: Node, args: list[Tensor], own: Mapping[str, Tensor]) -> Tensor:
    index = {name: value.to("meta") for name, value in own.items()}
    if node.op == "take" and (own["index"].min() < -args[0].shape[node.attrs["dim"]]
                              or own["index"].max() >= args[0].shape[node.attrs["dim"]]):  # fmt: skip
        raise IndexError("an index lies outside the dimension it picks from")
    if node.op.startswith("conv"):  # shape rules take lists of any length here, kernels do not
        for name, value in node.attrs.items():
            if isinstance(value, list | tuple) and len(value) not in (1, args[0].ndim - 2):
                raise ValueError(f"{name}={list(value)} for {args[0].ndim - 2} dimensions")
    return OPERATORS[node.op].run(args, node.attrs, index)


def _neuron(neuron: IFNeuron, x: Tensor) -> Tensor:
    for value in (neuron.log_threshold, neuron.log_amplitude, neuron.v_init, neuron.offset):
        if value is None:
            continue
        if value.ndim > 1 or (value.ndim and value.numel() != x.shape[neuron.channel_dim]):
            raise ValueError(
                f"its threshold, amplitude, v_init and offset must be one number or {x.shape[neuron.channel_dim]}, one "
                f"a channel of {tuple(x.shape[1:])}, got shape {tuple(value.shape)}"
            )
    return neuron.analog(x)


def check_records(document: Mapping[str, Any]) -> None:
    """Refuse records of another form than `artifact.describe` writes, which commands would stumble over later.

    Raises:
        ArtifactError: the record, what was expected, what came.
    """
    provenance, shapes = document["provenance"], document["input_shapes"]
    tuned = provenance.get("finetuned", []) if isinstance(provenance, dict) else None
    normalize = provenance.get("normalize") if isinstance(provenance, dict) else None
    if not isinstance(tuned, list) or not all(_names_groups(run) for run in tuned):
        raise ArtifactError("provenance: expected an object whose 'finetuned' lists runs with what they trained")
    if not isinstance(normalize, str | None):
        raise ArtifactError(f"provenance: expected 'normalize' as text or null, got {normalize!r}")
    free = provenance.get("free_sizes")
    if free is not None and not (_dims(free) and len(free) == len(shapes)):
        raise ArtifactError(f"provenance: expected 'free_sizes' as lists of dimensions, one an input, got {free!r}")
    if not all(isinstance(size, int) and size > 0 for shape in shapes for size in shape):
        raise ArtifactError(f"input_shapes: expected lists of whole numbers of at least 1, got {shapes!r}")


def _dims(value: Any) -> bool:
    lists = isinstance(value, list) and all(isinstance(dims, list) for dims in value)
    return lists and all(type(dim) is int for dims in value for dim in dims)


def _names_groups(run: Any) -> bool:
    trained = run.get("config", {}).get("train") if isinstance(run, dict) and isinstance(run.get("config"), dict) else 0
    return isinstance(trained, list) and all(isinstance(name, str) for name in trained)


SCHEMA = "speedysnn/1"
NETWORK, WEIGHTS = "network.json", "weights.safetensors"
_NEURON_OPTIONS = ("spikes", "delay", "surrogate", "width", "detach_reset", "channel_dim", "ceiling", "floor", "steps")


def save(snn: SpikingNetwork, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the network to a folder, whole or not at all.

    The folder is made beside the target under another name and renamed when complete.

    Args:
        snn: the network.
        path: the folder, by custom NAME.snn.
        overwrite: replace a saved network that is there; anything else that is there is never replaced.

    Returns:
        The folder.

    Raises:
        ArtifactError: something is in the way, or the target cannot be written.

    Example:
        >>> import speedysnn, torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> snn = speedysnn.convert.to_spiking(net, torch.rand(32, 4), timesteps=4)
        >>> str(speedysnn.save(snn, "net.snn", overwrite=True))
        'net.snn'
    """
    target = Path(path)
    check_target(target, overwrite)
    try:
        require_loadable(snn)
    except ArtifactError as err:
        raise ArtifactError(f"{target}: nothing was saved, since it could not be loaded again: {err}") from None
    weights = dump_tensors({name: value.cpu().contiguous().clone() for name, value in _all_tensors(snn).items()})
    document = {**describe(snn), "weights_sha256": hashlib.sha256(weights).hexdigest()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_beside(target) as scratch:
            fresh = scratch / "new"
            fresh.mkdir()
            (fresh / WEIGHTS).write_bytes(weights)
            (fresh / NETWORK).write_text(json.dumps(document, indent=1), encoding="utf-8")
            if target.exists():
                exchange(fresh, target)
            else:
                fresh.replace(target)
    except OSError as err:
        raise ArtifactError(f"{target}: cannot be written ({err.strerror or err})") from None
    return target


def require_loadable(snn: SpikingNetwork) -> None:
    """Run the checks of `load` on a network that is still in memory; its tensors are not copied.

    Raises:
        ArtifactError: what `load` would refuse.
    """
    try:
        document = json.loads(json.dumps(describe(snn)))
    except (TypeError, ValueError) as err:
        raise ArtifactError(f"provenance: expected JSON data ({err})") from None
    try:
        _build(document, _all_tensors(snn), copy=False)
    except (SpeedySNNError, *ODD) as err:
        raise ArtifactError(str(err)) from None


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a target that `save` would refuse, for callers with long work ahead.

    Raises:
        ArtifactError: something that is no saved network is there, or a network and `overwrite` is off.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not (target / NETWORK).is_file():
        raise ArtifactError(f"{target}: something that is no saved network is there; choose another name")
    if not overwrite:
        raise ArtifactError(f"{target}: a network is saved there already; choose another name, or pass overwrite")


def describe(snn: SpikingNetwork) -> dict[str, Any]:
    """The network without its tensors, as JSON data."""
    return {
        "schema": SCHEMA,
        "timesteps": snn.timesteps,
        "input_shapes": [list(shape) for shape in snn.input_shapes],
        "graph": snn.graph.to_json(),
        "neurons": {
            name: {option: getattr(neuron, option) for option in _NEURON_OPTIONS}
            for name, neuron in snn.neurons.items()
        },
        "calibration": {"rules": snn.calibration.rules, "histograms": sorted(snn.calibration.histograms)},
        "provenance": snn.provenance,
    }


def _all_tensors(snn: SpikingNetwork) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for node in snn.graph.nodes:
        for name, value in snn.tensors(node.name).items():
            out[f"layer:{node.name}:{name}"] = value
    for name, neuron in snn.neurons.items():
        out[f"neuron:{name}:log_threshold"] = neuron.log_threshold
        out[f"neuron:{name}:v_init"] = neuron.v_init
        if neuron.log_amplitude is not None:
            out[f"neuron:{name}:log_amplitude"] = neuron.log_amplitude
        if neuron.offset is not None:
            out[f"neuron:{name}:offset"] = neuron.offset
    for name, hist in snn.calibration.histograms.items():
        out.update({f"histogram:{name}:{key}": value for key, value in hist.state().items()})
    return {name: value.detach() for name, value in out.items()}


def load(path: str | Path) -> SpikingNetwork:
    """Read a network saved by `save`; needs neither the source network's code nor pickle.

    Args:
        path: the folder.

    Returns:
        The network, on the CPU, in the spiking reading.

    Raises:
        ArtifactError: the folder is missing, incomplete, damaged, or of a version this one cannot read.

    Example:
        >>> import speedysnn, torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> snn = speedysnn.convert.to_spiking(net, torch.rand(32, 4), timesteps=4)
        >>> again = speedysnn.load(speedysnn.save(snn, "net.snn", overwrite=True))
        >>> x = torch.rand(3, 4)
        >>> torch.equal(again(x), snn(x))
        True
    """
    folder = Path(path)
    document, raw = _read(folder)
    if hashlib.sha256(raw).hexdigest() != document.get("weights_sha256"):
        raise ArtifactError(f"{folder / WEIGHTS}: its checksum is not the one in {NETWORK}; the file is damaged")
    try:
        return _build(document, load_tensors(raw))
    except ArtifactError as err:
        raise ArtifactError(f"{folder}: {err}") from None
    except (SafetensorError, SpeedySNNError, *ODD) as err:
        raise ArtifactError(f"{folder}: not a usable network ({type(err).__name__}: {err})") from None


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    if not folder.is_dir():
        found = "a file is there" if folder.exists() else "nothing is there" + _left_aside(folder)
        raise ArtifactError(f"{folder}: expected a folder made by speedysnn.save, but {found}")
    for name in (NETWORK, WEIGHTS):
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder}: expected {NETWORK} and {WEIGHTS} in it; {name} is missing")
    try:
        document = json.loads((folder / NETWORK).read_text(encoding="utf-8"))
        raw = (folder / WEIGHTS).read_bytes()
    except (OSError, ValueError, RecursionError) as err:
        raise ArtifactError(f"{folder}: cannot be read ({err})") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ArtifactError(
            f"{folder / NETWORK}: expected the schema {SCHEMA!r}, got {schema!r}; "
            "it was written by another version: update speedysnn, or convert the network again"
        )
    return document, raw


def _left_aside(folder: Path) -> str:
    """Where a network lies that a killed process had moved aside, on a system that cannot exchange folders."""
    aside = [left / "old" for left in left_beside(folder) if (left / "old" / NETWORK).is_file()]
    return f"; an interrupted save left it at {aside[0]}: move it back" if aside else ""


def _build(document: Mapping[str, Any], tensors: Mapping[str, Tensor], *, copy: bool = True) -> SpikingNetwork:
    graph = Graph.from_json(document["graph"])
    layers: dict[str, dict[str, Tensor]] = {}
    states: dict[str, dict[str, dict[str, Tensor]]] = {"neuron": {}, "histogram": {}}
    for key, value in tensors.items():
        kind, rest = key.split(":", 1)
        name, field = rest.rsplit(":", 1)
        if kind != "histogram" and not bool(torch.isfinite(value).all()):
            raise ArtifactError(f"{key} holds NaN or infinity")
        group = layers if kind == "layer" else states[kind]
        group.setdefault(name, {})[field] = value
    neurons = {node.name: _neuron_from_json(document, node.name, states["neuron"]) for node in graph.neurons}
    histograms = {name: ActivationHistogram.from_state(state) for name, state in states["histogram"].items()}
    calibration = Calibration(histograms, dict(document["calibration"]["rules"]))
    _check_tensors(graph, layers)
    check_records(document)
    check_histograms(histograms, neurons)
    snn = SpikingNetwork(
        graph, layers, neurons, document["timesteps"], document["input_shapes"], calibration, document["provenance"],
        copy=copy,
    )  # fmt: skip
    require_runs(graph, layers, neurons, snn.input_shapes)
    return snn


def _neuron_from_json(document: Mapping[str, Any], name: str, states: Mapping[str, Mapping[str, Tensor]]) -> IFNeuron:
    if name not in document["neurons"] or name not in states:
        raise ArtifactError(f"neuron {name!r} is in the graph, but its options or its threshold are missing")
    options = document["neurons"][name]
    check_options(name, options)
    neuron = IFNeuron(v_init=states[name]["v_init"], timesteps=document["timesteps"], **options)
    neuron.log_threshold.data = states[name]["log_threshold"].clone()
    amplitude = states[name].get("log_amplitude")  # none where spikes stand for theta
    neuron.log_amplitude = None if amplitude is None else torch.nn.Parameter(amplitude.clone())
    neuron.offset = states[name].get("offset")
    return neuron


def _check_tensors(graph: Graph, layers: Mapping[str, Mapping[str, Tensor]]) -> None:
    for node in graph.nodes:
        expected = OPERATORS[node.op].tensors if node.op in OPERATORS else ()
        have = set(layers.get(node.name, {}))
        needed = {name for name in expected if not name.endswith("?")}
        allowed = {name.rstrip("?") for name in expected}
        if not needed <= have <= allowed:
            raise ArtifactError(f"node {node.name!r} ({node.op}) owns {sorted(have)}, expected {sorted(expected)}")
