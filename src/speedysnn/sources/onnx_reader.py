"""An ONNX file as an nn.Module: one submodule for each ONNX node, at the path its exporter named; no code in it is run.

The package onnx opens and checks the file and infers the sizes of its values (`with_shapes`); then `OPERATORS` names,
for every operator, the function that turns a node into a module, a tensor or numbers.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from speedysnn.errors import SourceError
from speedysnn.files import DOWNLOAD, ODD, checksum, expanded, reason, require_file, start_of
from speedysnn.sources.onnx_functions import FUNCTIONS, SHAPES, SIZES
from speedysnn.sources.onnx_layers import LAYERS, PARTS
from speedysnn.sources.onnx_node import Node, Row, Unsupported

__all__ = ["OPERATORS", "load_onnx", "with_shapes"]

_LARGEST = 2**24  # values of an image with which a fixed batch is tried
_OPEN = "export it with dynamic_axes={'input': {0: 'batch'}} or dynamic_shapes"
_SMALL = 1024  # values of a constant that shapes may be computed from

_SCOPES = "pkg.torch.onnx.name_scopes"

# One row an ONNX operator: what reads it. A program may add rows of its own; activations have theirs in
# `speedysnn.graph.activations`.
OPERATORS: dict[str, Row] = {**FUNCTIONS, **LAYERS, **PARTS, **SHAPES, **SIZES}

_OLDEST = 9  # opset from which the operators mean what they mean here
_AGAIN = "export it again, in evaluation mode, with a newer opset"


def load_onnx(path: str | Path) -> tuple[nn.Module, str, tuple[str, ...]]:
    """The network in an .onnx file.

    Args:
        path: the file; files of external data lie beside it.

    Returns:
        (network, sha256, notes): the network in evaluation mode, the file's checksum, and how it was read.

    Raises:
        SourceError: the package onnx is missing, the file cannot be read, or it holds operators that are not known.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import onnx, torch
        >>> from onnx import TensorProto, helper
        >>> from speedysnn.sources import load_onnx
        >>> ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")]
        >>> graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", ends[:1], ends[1:])
        >>> file = Path(tempfile.mkdtemp()) / "net.onnx"
        >>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        >>> onnx.save(model, file)
        >>> net, _, notes = load_onnx(file)
        >>> net(torch.tensor([[-1.0, 0.0, 2.0]]))
        tensor([[0., 0., 2.]])
        >>> notes
        ('read an ONNX file of unknown, opset 18',)
    """
    file = expanded(path)
    require_file(file, "network")
    start_of(file, "network")
    model = read(file, checked)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < _OLDEST:
        raise SourceError(f"network {file} has opset {opset}, expected {_OLDEST} or newer; {_AGAIN}")
    require_known(file, model, OPERATORS)
    model = read(file, lambda _: with_shapes(model))
    try:
        module = _Reader(file, model.graph, opset).module()
    except Unsupported as err:
        raise SourceError(f"network {file}: {err}") from None
    except ODD as err:
        raise SourceError(
            f"network {file} holds a graph that is not as expected ({type(err).__name__}: {reason(err)}); {_AGAIN}"
        ) from err
    return module, checksum([file]), (f"read an ONNX file of {model.producer_name or 'unknown'}, opset {opset}",)


class _Reader:
    """Builds the module; `scope` maps ONNX names to graph nodes, constants or numbers."""

    def __init__(self, file: Path, graph: Any, opset: int) -> None:
        self.file, self.source, self.opset = file, graph, opset
        self.graph, self.root = fx.Graph(), nn.Module()
        self.scope: dict[str, Any] = {"": None}
        self.sizes: dict[str, list[int | None]] = {}  # as shape inference knows them
        self.types: dict[str, int] = {}  # likewise, by ONNX's numbers for them
        self.paths: set[str] = set()
        self.folders: set[str] = set()  # paths that hold others
        self.batch: int | None = None  # where the file fixes it
        self.first: fx.Node | None = None

    def module(self) -> nn.Module:
        self._constants()
        self._inputs()
        for entry in (*self.source.value_info, *self.source.input, *self.source.output):
            self.types[entry.name] = entry.type.tensor_type.elem_type
            if entry.type.tensor_type.HasField("shape"):
                dims = entry.type.tensor_type.shape.dim
                self.sizes[entry.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        for node in self.source.node:
            self._node(node)
        lost = [entry.name for entry in self.source.output if entry.name not in self.scope]
        if lost:
            raise Unsupported(f"its output {lost[0]!r} is one that is not read from its node; remove that output")
        results = [self.scope[entry.name] for entry in self.source.output]
        if not all(isinstance(value, fx.Node) for value in results):
            raise Unsupported("one of its outputs does not depend on its inputs; remove that output")
        self.graph.output(results[0] if len(results) == 1 else tuple(results))
        module = fx.GraphModule(self.root, self.graph, class_name="Onnx_" + re.sub(r"\W", "_", self.file.stem))
        require_batches(module, self._fixed())
        return module.eval()

    def _constants(self) -> None:
        from onnx import numpy_helper

        for entry in self.source.initializer:
            self.scope[entry.name] = _tensor(numpy_helper.to_array(entry))

    def _inputs(self) -> None:
        given = [entry for entry in self.source.input if entry.name not in self.scope]
        for position, entry in enumerate(given):
            node = self.graph.placeholder(f"input_{position}" if len(given) > 1 else "input")
            self.scope[entry.name] = node
            if position == 0:
                self.first = node
                dims = entry.type.tensor_type.shape.dim
                self.batch = dims[0].dim_value if dims and dims[0].HasField("dim_value") else None

    def _node(self, node: Any) -> None:
        try:
            wrapped = Node(node, self)
            results = OPERATORS[node.op_type](wrapped)
            wrapped.require_read()
        except Unsupported as err:
            raise Unsupported(f"{node.op_type} ({scoped(node) or node.name}): {err}") from None
        names = list(node.output)
        for name, value in zip(names, results if isinstance(results, tuple) else (results,), strict=False):
            self.scope[name] = value

    def call(self, path: str, module: nn.Module, inputs: Sequence[Any]) -> fx.Node:
        """Set a module into the tree and call it."""
        *folders, leaf = path.split(".")
        holder = self.root
        for part in folders:
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        holder.add_module(leaf, module)
        return self.graph.call_module(path, tuple(inputs))

    def path(self, node: Any, *, layer: bool) -> str:
        """Where a node stands, as its exporter said; a function stands in its module, under its own name."""
        path = scoped(node)
        if not layer or not path or path in self.folders:
            path = f"{path}.{node.op_type}".lstrip(".")
        count, found = 0, path
        while found in self.paths or found in self.folders:
            count += 1
            found = f"{path}_{count}"
        self.paths.add(found)
        parts = found.split(".")
        self.folders.update(".".join(parts[:i]) for i in range(1, len(parts)))
        return found

    def shape(self, name: str) -> list[int | None] | None:
        """The sizes of a value as far as they are known, None where not even its rank is."""
        value = self.scope.get(name)
        return list(value.shape) if isinstance(value, Tensor) else self.sizes.get(name)

    def batch_size(self) -> fx.Node:
        """The number of samples, as a number in the graph."""
        return self.graph.call_method("size", (self.first, 0))

    def _fixed(self) -> list[list[int]]:
        """The sizes of the inputs where the file fixes the batch at 1, else none."""
        entries = [entry for entry in self.source.input if isinstance(self.scope[entry.name], fx.Node)]
        shapes = [[dim.dim_value for dim in entry.type.tensor_type.shape.dim] for entry in entries]
        return [] if self.batch != 1 or any(shape[:1] != [1] or 0 in shape for shape in shapes) else shapes


def _tensor(array: Any) -> Tensor:
    value = torch.from_numpy(array.copy())
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def read(file: Path, how: Callable[[Path], Any]) -> Any:
    """Call `how` on a file; errors of the libraries it uses become a `SourceError`."""
    try:
        return how(file)
    except ImportError:
        raise SourceError(f'network {file} needs the package onnx: pip install "speedysnn[onnx]"') from None
    except Exception as err:  # a damaged file ends in errors of several libraries
        raise SourceError(
            f"network {file} is cut short, damaged, or no ONNX file ({type(err).__name__}: {reason(err)[:200]}); "
            f"{DOWNLOAD}, with the files of external data beside it"
        ) from None


def checked(file: Path) -> Any:
    """Open a model and let the package onnx check that it is well formed."""
    import onnx

    model = onnx.load(str(file))
    for entry in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in entry.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:  # so some exporters write a size that is open
                dim.ClearField("dim_value")
    onnx.checker.check_model(model)
    return model


def require_known(file: Path, model: Any, known: Container[str]) -> None:
    """Refuse operators that are not known.

    Args:
        file: named in the message.
        model: the opened model.
        known: the names of the operators that are read.

    Raises:
        SourceError: there are others; names them all.
    """
    unknown = {
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        for node in model.graph.node
        if node.domain not in ("", "ai.onnx") or node.op_type not in known
    }
    if unknown:
        hint = "; give the network before it was quantized" if any("Quantize" in name for name in unknown) else ""
        raise SourceError(
            f"network {file} has operators that are not read from ONNX: {', '.join(sorted(unknown))}; give the PyTorch "
            f"network itself, or export it without them{hint}"
        )


def with_shapes(model: Any) -> Any:
    """The model with the sizes of its values as far as they follow from the graph.

    A Slice of a value with a negative size, as a window larger than its image leaves it, ends the whole process in
    onnx. So the graph is inferred up to the first Slices, checked, then up to the next.

    Raises:
        ValueError: a size is negative, or nothing is left to slice.
    """
    from onnx import shape_inference

    depths = _depths(model.graph)
    light, nodes = _without_weights(model), list(model.graph.node)
    for depth in range(max(depths, default=0) + 1):
        del light.graph.node[:]
        light.graph.node.extend(node for node, own in zip(nodes, depths, strict=True) if own <= depth)
        light = shape_inference.infer_shapes(light, data_prop=True)
        after = [node for node, own in zip(nodes, depths, strict=True) if own > depth]
        _require_sizes(light.graph, {node.input[0] for node in after if node.op_type == "Slice"})
    for field in ("value_info", "output"):
        entries = getattr(model.graph, field)
        del entries[:]
        entries.extend(getattr(light.graph, field))
    return model


def _depths(graph: Any) -> list[int]:
    """Slices on the longest way to each node, itself included; nodes come after what they take."""
    reached: dict[str, int] = {}
    depths = []
    for node in graph.node:
        depth = max((reached.get(name, 0) for name in node.input), default=0) + (node.op_type == "Slice")
        reached.update(dict.fromkeys(node.output, depth))
        depths.append(depth)
    return depths


def _without_weights(model: Any) -> Any:
    """The graph's inputs, outputs and small constants; large ones as inputs of the same type and sizes."""
    from onnx import ModelProto, helper

    light, declared = ModelProto(), {entry.name for entry in model.graph.input}
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name
    for field in ("input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    for entry in model.graph.initializer:
        if math.prod(entry.dims) <= _SMALL:
            light.graph.initializer.append(entry)
        elif entry.name not in declared:
            light.graph.input.append(helper.make_tensor_value_info(entry.name, entry.data_type, list(entry.dims)))
    return light


def _require_sizes(graph: Any, sliced: set[str]) -> None:
    for entry in (*graph.input, *graph.value_info, *graph.output):
        dims = entry.type.tensor_type.shape.dim
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        if any(size is not None and size < (entry.name in sliced) for size in sizes):
            raise ValueError(
                f"the value {entry.name!r} has the sizes {sizes}: a window is larger than what it slides over"
            )


def scoped(node: Any) -> str:
    """The module path in a node's name, from either of PyTorch's exporters; else the name itself."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            try:
                scopes = [str(scope) for scope in ast.literal_eval(entry.value)]
            except (ValueError, SyntaxError):
                break
            return _clean(scopes[-2]) if len(scopes) > 1 else ""
    *parts, last = [part for part in node.name.split("/") if part] or [""]
    joined: list[str] = []
    for part in parts:
        if joined and part.startswith(f"{joined[-1]}."):  # "layer1", "layer1.0": the second says the first again
            joined.pop()
        joined.append(part)
    return _clean(".".join(joined) if "/" in node.name else last)


def _clean(name: str) -> str:
    parts = [re.sub(r"[^\w-]", "_", part, flags=re.ASCII) for part in name.split(".")]
    return ".".join(part for part in parts if part)


def require_batches(module: fx.GraphModule, shapes: Sequence[Sequence[int]]) -> None:
    """Check it on random images of these sizes, one an input, the batch of 1 included; nothing where there are none.

    Raises:
        Unsupported: it gives something else, or is too large to try.
    """
    if not shapes:
        return
    if max(map(math.prod, shapes), default=0) > _LARGEST:
        raise Unsupported(f"it takes a batch of 1 alone, of the sizes {shapes}, too large to try more; {_OPEN}")
    module.eval()
    seed = torch.Generator().manual_seed(0)
    images = [torch.rand(2, *shape[1:], generator=seed) for shape in shapes]
    try:
        with torch.no_grad():
            both = _leaves(module(*images))
            alone = [_leaves(module(*(x[i : i + 1] for x in images))) for i in range(2)]
        pairs = zip(both, *alone, strict=True)
        fine = all(torch.allclose(b, torch.cat(a), rtol=1e-3, atol=1e-4 * float(b.abs().max())) for b, *a in pairs)
    except RuntimeError:
        fine = False
    if not fine:
        raise Unsupported(f"it takes a batch of 1 alone, and cannot be opened to more; {_OPEN}")


def _leaves(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, tuple) else [value]
