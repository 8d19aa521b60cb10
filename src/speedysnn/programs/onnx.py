"""An ONNX file as an nn.Module: one submodule an ONNX node, at the path its exporter named; nothing in it is run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from speedysnn._files import ODD, checksum, expanded, require_file, start_of
from speedysnn.errors import SourceError
from speedysnn.programs.onnx_batch import require_batches
from speedysnn.programs.onnx_file import checked, read, require_known
from speedysnn.programs.onnx_functions import FUNCTIONS
from speedysnn.programs.onnx_inference import with_shapes
from speedysnn.programs.onnx_layers import LAYERS
from speedysnn.programs.onnx_names import scoped
from speedysnn.programs.onnx_node import Node, Row, Unsupported
from speedysnn.programs.onnx_parts import PARTS
from speedysnn.programs.onnx_shapes import SHAPES
from speedysnn.programs.onnx_sizes import SIZES

__all__ = ["OPERATORS", "load_onnx"]

# One row an ONNX operator: what reads it. A program may add rows of its own; activations have theirs in
# `speedysnn.activations`.
OPERATORS: dict[str, Row] = {**FUNCTIONS, **LAYERS, **PARTS, **SHAPES, **SIZES}

_OLDEST = 9  # opset from which the operators mean what they mean here
_AGAIN = "export it again, in evaluation mode, with a newer opset"


def load_onnx(path: str | Path) -> tuple[nn.Module, str, tuple[str, ...]]:
    """The network in an .onnx file, the sha256 of that file, and notes on how it was read.

    Raises:
        SourceError: the package onnx is missing, the file cannot be read, or it holds operators that are not known.
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
        reason = str(err).strip().partition("\n")[0]
        raise SourceError(
            f"network {file} holds a graph that is not as expected ({type(err).__name__}: {reason}); {_AGAIN}"
        ) from err
    return module, checksum([file]), (f"read an ONNX file of {model.producer_name or 'unknown'}, opset {opset}",)


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

    def _fixed(self) -> list[list[int]]:
        """The sizes of the inputs where the file fixes the batch at 1, else none."""
        entries = [entry for entry in self.source.input if isinstance(self.scope[entry.name], fx.Node)]
        shapes = [[dim.dim_value for dim in entry.type.tensor_type.shape.dim] for entry in entries]
        return [] if self.batch != 1 or any(shape[:1] != [1] or 0 in shape for shape in shapes) else shapes


def _tensor(array: Any) -> Tensor:
    value = torch.from_numpy(array.copy())
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
