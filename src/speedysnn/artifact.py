"""Save and load a network as a folder: network.json and weights.safetensors; no pickle, no code, written atomically."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from speedysnn._claims import exchange, left_beside, scratch_beside
from speedysnn._files import ODD
from speedysnn._trial import check_histograms, check_options, check_records, require_runs
from speedysnn.errors import ArtifactError, SpeedySNNError
from speedysnn.graph import Graph
from speedysnn.histogram import ActivationHistogram
from speedysnn.network import Calibration, SpikingNetwork
from speedysnn.neurons import IFNeuron
from speedysnn.operators import OPERATORS

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

    Raises:
        ArtifactError: something is in the way, or the target cannot be written.
    """
    target = Path(path)
    check_target(target, overwrite)
    weights = dump_tensors(_all_tensors(snn))
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
        if neuron.offset is not None:
            out[f"neuron:{name}:offset"] = neuron.offset
    for name, hist in snn.calibration.histograms.items():
        out.update({f"histogram:{name}:{key}": value for key, value in hist.state().items()})
    return {name: value.detach().cpu().contiguous().clone() for name, value in out.items()}


def load(path: str | Path) -> SpikingNetwork:
    """Read a network saved by `save`; needs neither the source network's code nor pickle.

    Raises:
        ArtifactError: the folder is missing, incomplete, damaged, or of a version this one cannot read.
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


def _build(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SpikingNetwork:
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
    neurons = {node.name: _neuron(document, node.name, states["neuron"]) for node in graph.neurons}
    histograms = {name: ActivationHistogram.from_state(state) for name, state in states["histogram"].items()}
    calibration = Calibration(histograms, dict(document["calibration"]["rules"]))
    _check_tensors(graph, layers)
    check_records(document)
    check_histograms(histograms, neurons)
    snn = SpikingNetwork(
        graph, layers, neurons, document["timesteps"], document["input_shapes"], calibration, document["provenance"]
    )
    require_runs(graph, layers, neurons, snn.input_shapes)
    return snn


def _neuron(document: Mapping[str, Any], name: str, states: Mapping[str, Mapping[str, Tensor]]) -> IFNeuron:
    if name not in document["neurons"] or name not in states:
        raise ArtifactError(f"neuron {name!r} is in the graph, but its options or its threshold are missing")
    options = document["neurons"][name]
    check_options(name, options)
    neuron = IFNeuron(v_init=states[name]["v_init"], timesteps=document["timesteps"], **options)
    neuron.log_threshold.data = states[name]["log_threshold"].clone()
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
