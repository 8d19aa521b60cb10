"""Trace a network with torch.fx and record the shape or the value of every call for two batch sizes."""

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from speedysnn.convert.builder import BatchInt
from speedysnn.errors import ConversionError, InputError

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_FOREIGN = (str(Path(torch.__file__).parent), "<frozen", str(Path(__file__).parent))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode and without gradients; every module's own mode comes back afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Tracer(fx.Tracer):
    def __init__(self, leaves: tuple[type, ...]) -> None:
        super().__init__()
        self.record_stack_traces = True
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self.leaves or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, leaves: tuple[type, ...] = ()) -> fx.GraphModule:
    """Symbolic trace of a model in evaluation mode.

    Raises:
        ConversionError: its control flow or shapes depend on the data; names the file and line.
    """
    tracer = _Tracer(leaves)
    try:
        graph = tracer.trace(model)
    except Exception as err:
        where = _user_frame(err)
        raise ConversionError(
            f"{type(model).__name__} cannot be traced{where}: {str(err).splitlines()[0] if str(err) else err!r}. "
            "Expected a forward pass without decisions on tensor values and without *args; rewrite that line, or "
            "convert the submodule that holds the layers"
        ) from None
    return fx.GraphModule(model, graph)


def _user_frame(err: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(err.__traceback__) if not f.filename.startswith(_FOREIGN)]
    return f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def source_of(node: fx.Node) -> str:
    """file:line where the source network makes the call, "" if unknown."""
    frames = _FRAME.findall(node.stack_trace or "")
    mine = [f for f in frames if not f[0].startswith(_FOREIGN)]
    return f"{Path(mine[-1][0]).name}:{mine[-1][1]}" if mine else ""


def path_of(node: fx.Node) -> str:
    """The layer path: the module's own for a module, the enclosing module's and the function's name otherwise."""
    if node.op == "call_module":
        return str(node.target)
    stack = list((node.meta.get("nn_module_stack") or {}).keys())
    word = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
    scope = str(stack[-1]) if stack else ""
    return f"{scope}.{word}".lstrip(".")


class _Recorder(fx.Interpreter):
    """Runs the graph and keeps the shape of every tensor and every other value as it is."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.records: dict[fx.Node, Any] = {}
        self.final: Any = None

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.records[n] = _shapes(value)
        if n.op == "output":
            self.final = value
        return value


class Shape(tuple[int, ...]):
    """The shape of a traced tensor, apart from tuples of numbers."""


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(value.shape)
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, list | tuple):
        return tuple(_shapes(item) for item in value)
    return value


def _merge(first: Any, second: Any) -> Any:
    """One record out of two runs with different batches: numbers that differ follow the batch."""
    if isinstance(first, Shape):
        return first
    if isinstance(first, tuple) and isinstance(second, tuple) and len(first) == len(second):
        return tuple(_merge(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, int) and not isinstance(first, bool) and first != second:
        return BatchInt(first)
    return first


def record(module: fx.GraphModule, example: Sequence[Tensor]) -> tuple[dict[fx.Node, Any], Any]:
    """Shapes and values of every call for a batch of two, with numbers that follow the batch marked, and the output.

    Raises:
        ConversionError: the network does not run on the example.
        InputError: the example is empty.
    """
    if any(x.shape[0] == 0 for x in example):
        raise InputError("the example input is empty: expected at least one image")
    runs = []
    for batch in (2, 3):
        inputs = [x[torch.arange(batch) % x.shape[0]] for x in example]
        recorder = _Recorder(module)
        try:
            recorder.run(*inputs)
        except Exception as err:
            text = str(err).splitlines()[0] if str(err) else repr(err)
            shapes = ", ".join(str(tuple(x.shape)) for x in example)
            raise ConversionError(f"the network does not run on the example input {shapes}: {text}") from None
        runs.append(recorder)
    first, second = runs
    return {node: _merge(value, second.records[node]) for node, value in first.records.items()}, first.final


def has_tensor(recorded: Any) -> bool:
    """Whether a recorded value holds a tensor."""
    if isinstance(recorded, Shape):
        return True
    return isinstance(recorded, tuple) and any(has_tensor(item) for item in recorded)
