"""An ONNX file as an nn.Module: one submodule an ONNX node, at the path its exporter named; nothing in it is run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from speedysnn._files import DOWNLOAD, ODD, checksum, expanded, require_file, start_of
from speedysnn.errors import SourceError
from speedysnn.programs.onnx_functions import OPERATORS
from speedysnn.programs.onnx_inference import with_shapes
from speedysnn.programs.onnx_names import scoped
from speedysnn.programs.onnx_node import Node, Unsupported

__all__ = ["load_onnx"]

_OLDEST = 9  # opset from which the operators mean what they mean here
_LARGEST = 2**24  # values of an image with which a fixed batch is tried
_OPEN = "export it with dynamic_axes={'input': {0: 'batch'}} or dynamic_shapes"
_AGAIN = "export it again, in evaluation mode, with a newer opset"


def load_onnx(path: str | Path) -> tuple[nn.Module, str, tuple[str, ...]]:
    """The network in an .onnx file, the sha256 of that file, and notes on how it was read.

    Raises:
        SourceError: the package onnx is missing, the file cannot be read, or it holds operators that are not known.
    """
    file = expanded(path)
    require_file(file, "network")
    start_of(file, "network")
    model = _read(file, _checked)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < _OLDEST:
        raise SourceError(f"network {file} has opset {opset}, expected {_OLDEST} or newer; {_AGAIN}")
    _require_known(file, model)
    model = _read(file, lambda _: with_shapes(model))
    try:
        module = _Reader(file, model.graph, opset).module()
    except Unsupported as err:
        raise SourceError(f"network {file}: {err}") from None
    except ODD as err:
        reason = str(err).strip().partition("\n")[0]
        raise SourceError(
            f"network {file} holds a graph that is not as expected ({type(err).__name__}: {reason}); {_AGAIN}"
        ) from err
    return module, checksum([file]), (f"read an ONNX file of {model.producer_name or 'unknown'}, opset {opset}",)


def _read(file: Path, how: Callable[[Path], Any]) -> Any:
    try:
        return how(file)
    except ImportError:
        raise SourceError(f'network {file} needs the package onnx: pip install "speedysnn[onnx]"') from None
    except Exception as err:  # a damaged file ends in errors of several libraries
        reason = str(err).strip().partition("\n")[0][:200]
        raise SourceError(
            f"network {file} is cut short, damaged, or no ONNX file ({type(err).__name__}: {reason}); {DOWNLOAD}, "
            "with the files of external data beside it"
        ) from None


def _checked(file: Path) -> Any:
    import onnx

    model = onnx.load(str(file))
    onnx.checker.check_model(model)
    return model


def _require_known(file: Path, model: Any) -> None:
    unknown = {
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        for node in model.graph.node
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS
    }
    if unknown:
        hint = "; give the network before it was quantized" if any("Quantize" in name for name in unknown) else ""
        raise SourceError(
            f"network {file} has operators that are not read from ONNX: {', '.join(sorted(unknown))}; give the PyTorch "
            f"network itself, or export it without them{hint}"
        )


class _Reader:
    """Builds the module; `scope` maps ONNX names to graph nodes, constants or numbers."""

    def __init__(self, file: Path, graph: Any, opset: int) -> None:
        self.file, self.source, self.opset = file, graph, opset
        self.graph, self.root = fx.Graph(), nn.Module()
        self.scope: dict[str, Any] = {"": None}
        self.sizes: dict[str, list[int | None]] = {}  # as shape inference knows them
        self.paths: set[str] = set()
        self.folders: set[str] = set()  # paths that hold others
        self.batch: int | None = None  # where the file fixes it
        self.first: fx.Node | None = None

    def module(self) -> nn.Module:
        self._constants()
        self._inputs()
        for entry in (*self.source.value_info, *self.source.input, *self.source.output):
            if entry.type.tensor_type.HasField("shape"):
                dims = entry.type.tensor_type.shape.dim
                self.sizes[entry.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        for node in self.source.node:
            self._node(node)
        results = [self.scope[entry.name] for entry in self.source.output]
        if not all(isinstance(value, fx.Node) for value in results):
            raise Unsupported("one of its outputs does not depend on its inputs; remove that output")
        self.graph.output(results[0] if len(results) == 1 else tuple(results))
        module = fx.GraphModule(self.root, self.graph, class_name="Onnx_" + re.sub(r"\W", "_", self.file.stem))
        self._require_batches(module)
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
        wrapped = Node(node, self)
        try:
            results = OPERATORS[node.op_type](wrapped)
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

    def _require_batches(self, module: fx.GraphModule) -> None:
        """Where the file fixes the batch, check that several samples give what each gives alone."""
        entries = [entry for entry in self.source.input if isinstance(self.scope[entry.name], fx.Node)]
        shapes = [[dim.dim_value for dim in entry.type.tensor_type.shape.dim] for entry in entries]
        if self.batch != 1 or any(shape[:1] != [1] or 0 in shape for shape in shapes):
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


def _tensor(array: Any) -> Tensor:
    value = torch.from_numpy(array.copy())
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
