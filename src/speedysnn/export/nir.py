"""A spiking network as a NIR graph (.nir), the neuromorphic intermediate representation that other simulators read.

`problems` lists everything in a network that NIR cannot say; `to_nir` refuses such a network with the whole list.
"""

import importlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speedysnn.errors import ArtifactError, ConversionError, InputError
from speedysnn.export.nir_folding import ELEMENTWISE, PLACED, WEIGHTED, Folded, Layer, currents, plain
from speedysnn.export.nir_layers import CONVOLUTIONS, POOLS, placing_problem
from speedysnn.files.atomic import ExportWarning, check_target, scratch_beside
from speedysnn.graph.ir import Node
from speedysnn.graph.operators import OPERATORS
from speedysnn.network import SpikingNetwork

OTHERS = ("input", "add", "cat", "identity", "flatten", "reshape", "mean", *ELEMENTWISE, *PLACED, *POOLS)

KEEP_RANK = ("add", "cat", "identity", *ELEMENTWISE, *PLACED, *POOLS, *CONVOLUTIONS)

SUFFIX = ".nir"
SOFT_RESET = (
    "NIR names no soft reset and no initial membrane: a simulator must subtract the threshold (1) after a spike and "
    "start each IF node at its metadata's v_init, or its spikes differ"
)


class NIRWarning(ExportWarning):
    """A warning: a reader of the graph must take something from its metadata."""


def to_nir(snn: SpikingNetwork, path: str | Path | None = None, *, overwrite: bool = False) -> Any:
    """The network as a `nir.NIRGraph` whose IF nodes have threshold 1 and emit 0 or 1; written where a path is given.

    Thresholds and amplitudes are folded into the weights; biases are currents per step, an image is shown at every one
    of the T steps, and the answer is the mean of the output over them. Each IF node's metadata has `reset` and `v_init`
    (units of its threshold), the graph's has timesteps, spikes and delay. Several edges into one node add. A grouped
    convolution becomes a dense one.

    Args:
        snn: the network.
        path: a file name that ends in .nir, or None to write nothing.
        overwrite: replace a file that is there.

    Returns:
        The graph.

    Raises:
        InputError: the package nir is not installed.
        ConversionError: NIR cannot say what the network does; the message lists all of it.
        ArtifactError: another suffix, something is there already, or the file does not read back.

    Example:
        >>> import warnings
        >>> import torch
        >>> from speedysnn import convert, export
        >>> _ = torch.manual_seed(0)
        >>> ann = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> snn = convert.to_spiking(ann, torch.rand(32, 4), timesteps=4)
        >>> with warnings.catch_warnings():  # of what a reader must take from the metadata
        ...     warnings.simplefilter("ignore")
        ...     graph = export.to_nir(snn)
        >>> sorted(graph.nodes)
        ['0', '1', '2', 'input', 'output']
        >>> float(graph.nodes["1"].v_threshold.max())
        1.0
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
        return nir.IF(r=ones, v_threshold=ones.copy(), metadata=facts)
    if layer.kind == "scale":
        return nir.Scale(scale=own["scale"].contiguous().numpy())
    if layer.kind == "linear":
        return nir.Affine(weight=own["weight"].numpy(), bias=own["bias"].numpy())
    if layer.kind in ("conv1d", "conv2d"):
        window = {key: own[key] if layer.kind == "conv2d" else own[key][0] for key in ("stride", "padding", "dilation")}
        place = layer.shape[1:] if layer.kind == "conv2d" else layer.shape[1]
        made = nir.Conv2d if layer.kind == "conv2d" else nir.Conv1d
        weight = own["weight"].contiguous().numpy()
        return made(input_shape=place, weight=weight, bias=own["bias"].numpy(), groups=1, **window)
    if layer.kind == "flatten":  # counted from the end: readers disagree on whether a batch stands before
        return nir.Flatten({"input": shape}, start_dim=-len(shape), end_dim=own["end"])
    window = {key: np.array(own[key]) for key in ("stride", "padding")}
    return nir.SumPool2d(kernel_size=np.array(own["kernel"]), **window)


def _write(nir: Any, graph: Any, target: Path) -> None:
    """Write, read back, and only then give the file its name."""
    with scratch_beside(target.absolute()) as scratch:
        file = scratch / target.name
        nir.write(str(file), graph)
        again = nir.read(str(file))
        if set(again.nodes) != set(graph.nodes) or set(again.edges) != set(graph.edges):
            raise ArtifactError(f"{target}: nir read back another graph than was written; try another version of nir")
        file.replace(target)


def problems(snn: SpikingNetwork) -> Iterator[str]:
    """Everything that keeps the network from being folded, one line each."""
    if len(snn.graph.inputs) != 1 or not isinstance(snn.graph.outputs, str):
        yield "several inputs or outputs; expected one of each: convert the part between them"
    names = [plain(node.name) for node in snn.graph.nodes]
    if len(set(names)) < len(names):
        yield "two layers whose names differ only in '.' and '_'; rename one and convert again"
    by_name = {node.name: node for node in snn.graph.nodes}
    for name, carrier in currents(snn).items():
        offset, shape = snn.neurons[name].offset, by_name[name].attrs["shape"]
        if carrier is None and offset is not None and offset.numel() not in (1, shape[0]):
            yield f"{name!r}: has a corrected bias that no layer of NIR can take; re-convert with correct='none'"
    for node in snn.graph.nodes:
        yield from (f"{node.name!r}: {reason}" for reason in _node_problems(snn, node, by_name))


def _node_problems(snn: SpikingNetwork, node: Node, by_name: Mapping[str, Node]) -> Iterator[str]:
    if node.op == "neuron":
        yield from _neuron_problems(snn, node)
    elif node.op in OPERATORS and OPERATORS[node.op].hybrid:
        yield f"{node.op} needs an analog unit; replace it by ReLU and convert again without allow_hybrid"
    elif node.op.startswith(("max_pool", "adaptive_max_pool")):
        yield f"{node.op} of rates is no operator of NIR; use average pooling or a strided convolution and train again"
    elif node.op == "linear" and _rank(snn, node, by_name) not in (1, None):
        yield "a linear layer over more than one dimension; expected flattened features"
    elif node.op in POOLS and "ceil_mode" in node.attrs and not _plain_pool(node.attrs):
        yield "average pooling with ceil_mode, divisor_override or count_include_pad=False; expected the defaults"
    elif node.op in ("flatten", "reshape", "mean", "cat", *PLACED):
        yield from _shape_problems(snn, node, by_name)
    elif node.op not in (*WEIGHTED, *OTHERS):
        yield f"{node.op} is not written to NIR; expected convolutions, linear, average pooling, add, cat or flatten"


def _shape_problems(snn: SpikingNetwork, node: Node, by_name: Mapping[str, Node]) -> Iterator[str]:
    attrs, rank = node.attrs, _rank(snn, node, by_name)
    if node.op == "flatten" and not (attrs["start"] == 1 and attrs["end"] in (-1, rank or 2, 2, 3, 4)):
        yield "flattens other dimensions than all but the first; expected flatten(x, 1)"
    if node.op == "reshape" and not (len(attrs["shape"]) == 2 and attrs["shape"][0] == 0):
        yield "reshape is no operator of NIR; expected flatten(x, 1)"
    if node.op in PLACED:
        problem = "has an input of unknown shape" if rank is None else placing_problem(node, rank - 1)
        yield from [problem] if problem else []
    if node.op == "cat" and attrs["dim"] != 1:
        yield "concatenates other dimensions than the channels; expected cat(..., 1)"
    if node.op == "mean" and (rank is None or sorted(d % (rank + 1) for d in attrs["dim"]) != list(range(2, rank + 1))):
        yield "takes the mean over other dimensions than all places; expected the mean over height and width"


def _rank(snn: SpikingNetwork, node: Node, by_name: Mapping[str, Node]) -> int | None:
    """Dimensions of what a node reads, without the batch; None where the graph does not say."""
    before = by_name[node.inputs[0]]
    while before.op in KEEP_RANK:
        before = by_name[before.inputs[0]]
    if before.op in ("linear", "flatten", "mean"):
        return 1
    shape = snn.input_shapes[0] if before.op == "input" else before.attrs.get("shape")
    return None if shape is None or before.op == "reshape" else len(shape)


def _plain_pool(attrs: Mapping[str, Any]) -> bool:
    padded = attrs["padding"] not in (0, [0, 0], (0, 0))
    return not attrs["ceil_mode"] and attrs["divisor_override"] is None and (attrs["count_include_pad"] or not padded)


def _neuron_problems(snn: SpikingNetwork, node: Node) -> Iterator[str]:
    neuron = snn.neurons[node.name]
    if neuron.spikes != "binary":
        yield f"emits {neuron.spikes} spikes, NIR's neurons 0 or 1; re-convert with spikes='binary'"
    if neuron.signed:
        yield "emits negative spikes, NIR's neurons 0 or 1; put a ReLU there and convert again"
    if neuron.lookahead:
        yield f"looks {neuron.lookahead} steps ahead, NIR's neurons none; set_delay(0), or re-convert with delay=0"
