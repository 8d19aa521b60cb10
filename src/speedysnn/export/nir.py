"""A spiking network as a NIR graph (.nir), the neuromorphic intermediate representation that other simulators read."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from speedysnn._claims import scratch_beside
from speedysnn.errors import ArtifactError, ConversionError, InputError
from speedysnn.export._fold import Folded, Layer, pair
from speedysnn.export._refuse import problems
from speedysnn.export._target import ExportWarning, check_target
from speedysnn.network import SpikingNetwork

SUFFIX = ".nir"
SOFT_RESET = (
    "NIR names no soft reset and no initial membrane: a simulator must subtract the threshold (1) after a spike and "
    "start each IF node at its metadata's v_init, or its spikes differ"
)


class NIRWarning(ExportWarning):
    """Something that a reader of the graph must take from its metadata."""


def to_nir(snn: SpikingNetwork, path: str | Path | None = None, *, overwrite: bool = False) -> Any:
    """The network as a `nir.NIRGraph` whose IF nodes have threshold 1 and emit 0 or 1; written where a path is given.

    Theta is folded into the weights; biases are currents per step, an image is shown at every one of the T steps, and
    the answer is the mean of the output over them. Each IF node's metadata has `reset` and `v_init` (units of its
    threshold), the graph's has timesteps, spikes and delay. Several edges into one node add. A grouped convolution
    becomes a dense one.

    Args:
        snn: the network.
        path: a file name that ends in .nir, or None to write nothing.
        overwrite: replace a file that is there.

    Raises:
        InputError: the package nir is not installed.
        ConversionError: NIR cannot say what the network does; the message lists all of it.
        ArtifactError: another suffix, something is there already, or the file does not read back.
    """
    if path is not None:
        check_nir(Path(path), overwrite)
    nir = _nir()
    found = list(problems(snn))
    if found:
        raise ConversionError("NIR cannot say what this network does:\n" + "\n".join(f"  {line}" for line in found))
    folded = Folded(snn)
    facts = {"timesteps": snn.timesteps, "spikes": "binary", "delay": 0, "reset": "subtract", "readout": "mean"}
    try:
        nodes = {name: _node(nir, layer) for name, layer in folded.layers.items()}
        graph = nir.NIRGraph(nodes=nodes, edges=list(folded.edges), metadata=facts)
    except (ValueError, AssertionError, NotImplementedError) as err:
        raise ConversionError(f"nir refuses this graph: {err}; expected square kernels and plain shapes") from err
    if path is not None:
        _write(nir, graph, Path(path))
    warnings.warn(SOFT_RESET, NIRWarning, stacklevel=2)
    return graph


def check_nir(target: Path, overwrite: bool) -> None:
    """Refuse a target that `to_nir` would refuse.

    Raises:
        ArtifactError: another suffix, a folder, or a file that is there while `overwrite` is off.
        InputError: the package nir is not installed.
    """
    check_target(target, SUFFIX, overwrite)
    _nir()


def _nir() -> Any:
    try:
        return importlib.import_module("nir")
    except ImportError as err:
        raise InputError(f'NIR export needs the package nir ({err}): pip install "speedysnn[nir]"') from None


def _node(nir: Any, layer: Layer) -> Any:
    shape, own = np.array(layer.shape), layer.constants
    if layer.kind in ("input", "output"):
        return (nir.Input if layer.kind == "input" else nir.Output)({layer.kind: shape})
    if layer.kind == "neuron":
        ones = np.ones(layer.shape, dtype=np.float32)
        facts = {"reset": "subtract", "v_init": np.atleast_1d(own["v_init"].numpy())}
        return nir.IF(r=ones, v_threshold=ones.copy(), v_reset=np.zeros_like(ones), metadata=facts)
    if layer.kind == "scale":
        return nir.Scale(scale=own["scale"].contiguous().numpy())
    if layer.kind == "linear":
        return nir.Affine(weight=own["weight"].numpy(), bias=own["bias"].numpy())
    if layer.kind == "conv2d":
        padding = own["padding"] if isinstance(own["padding"], str) else pair(own["padding"])
        return nir.Conv2d(
            input_shape=layer.shape[1:], weight=own["weight"].contiguous().numpy(), bias=own["bias"].numpy(), groups=1,
            stride=pair(own["stride"]), padding=padding, dilation=pair(own["dilation"]),
        )  # fmt: skip
    if layer.kind == "flatten":
        return nir.Flatten({"input": shape}, start_dim=0, end_dim=-1)
    window = {key: np.array(own[key]) for key in ("stride", "padding")}
    return nir.AvgPool2d(kernel_size=np.array(own["kernel"]), **window)


def _write(nir: Any, graph: Any, target: Path) -> None:
    """Write, read back, and only then give the file its name."""
    with scratch_beside(target.absolute()) as scratch:
        file = scratch / target.name
        nir.write(str(file), graph)
        again = nir.read(str(file))
        if set(again.nodes) != set(graph.nodes) or set(again.edges) != set(graph.edges):
            raise ArtifactError(f"{target}: nir read back another graph than was written; try another version of nir")
        file.replace(target)
