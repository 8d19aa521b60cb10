"""The shape or value of every traced call, from runs of two batch sizes that tell what follows the batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from speedysnn.convert.builder import BatchInt
from speedysnn.errors import ConversionError, InputError


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
    """The shape of a traced tensor, apart from tuples of numbers; `leads` if the first dimension follows the batch."""

    leads = True


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(value.shape)
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, list | tuple):
        return tuple(_shapes(item) for item in value)
    return value


def _merge(first: Any, second: Any, batches: tuple[int, int]) -> Any:
    """One record out of two runs with different batches: numbers that differ follow the batch."""
    if isinstance(first, Shape):
        if isinstance(second, Shape) and first and first is not second:
            first.leads = first[0] * batches[1] == second[0] * batches[0]
        return first
    if isinstance(first, tuple) and isinstance(second, tuple) and len(first) == len(second):
        return tuple(_merge(a, b, batches) for a, b in zip(first, second, strict=True))
    if isinstance(first, int) and not isinstance(first, bool) and first != second:
        return BatchInt(first)
    return first


def record(
    module: fx.GraphModule, example: Sequence[Tensor], batches: tuple[int, ...] = (2, 3)
) -> tuple[dict[fx.Node, Any], Any]:
    """Shapes and values of every call for a batch of two, with numbers that follow the batch marked, and the output.

    Raises:
        ConversionError: the network does not run on the example.
        InputError: the example is empty.
    """
    if any(x.shape[0] == 0 for x in example):
        raise InputError("the example input is empty: expected at least one image")
    runs = []
    for batch in batches:
        inputs = [x[torch.arange(batch) % x.shape[0]] for x in example]
        recorder = _Recorder(module)
        try:
            recorder.run(*inputs)
        except Exception as err:  # the source network's own calls may raise anything
            text = str(err).splitlines()[0] if str(err) else repr(err)
            shapes = ", ".join(str(tuple(x.shape)) for x in example)
            raise ConversionError(f"the network does not run on the example input {shapes}: {text}") from None
        runs.append(recorder)
    first, second = runs[0], runs[-1]
    sizes = (batches[0], batches[-1])
    return {node: _merge(value, second.records[node], sizes) for node, value in first.records.items()}, first.final


def has_tensor(recorded: Any) -> bool:
    """Whether a recorded value holds a tensor."""
    if isinstance(recorded, Shape):
        return True
    return isinstance(recorded, tuple) and any(has_tensor(item) for item in recorded)
