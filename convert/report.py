"""The compatibility report: every operator of a network, how it is treated, what it costs, and why.

`Report` is what `inspect` returns, one `Row` a call. `cost_of` counts neurons, operations and values kept from step to
step; `record` runs a traced network with two batch sizes and keeps the shape of every value, so that numbers which
follow the batch are known.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, fx

from speedysnn.convert.handler_api import Ref
from speedysnn.convert.trace import BatchInt, BatchTensor, first_line
from speedysnn.errors import ConversionError, InputError
from speedysnn.graph.ir import Node
from speedysnn.graph.operators import OPERATORS

Treatment = Literal["spiking", "hybrid", "unsupported"]
Accuracy = Literal["exact", "approximate", ""]


@dataclass(frozen=True)
class Row:
    """One call in the source network.

    Attributes:
        path: layer path.
        operator: what is called.
        treatment: "spiking" (spikes and accumulation only), "hybrid" (needs an analog unit), or "unsupported".
        accuracy: "exact" (its mean over time is the source's) or "approximate" (neurons), "" if unsupported.
        why: the reason, in words.
        advice: what to change, "" if nothing.
        source: file:line of the call.
        neurons: neurons it adds, an image.
        operations: multiplications with weights, and evaluations of analog units, an image and step; where spikes come
            in, a multiplication is one accumulation for each spike.
        state: values kept from step to step, an image.
    """

    path: str
    operator: str
    treatment: Treatment
    accuracy: Accuracy
    why: str
    advice: str = ""
    source: str = ""
    neurons: int = 0
    operations: int = 0
    state: int = 0


@dataclass(frozen=True)
class Report:
    """Every operator of a network, and its activations found, replaced and never called.

    Attributes:
        network: class name of the source network.
        rows: one a call in execution order, then one for each neuron that re-encodes an analog value.
        activations_found: activation modules in the source.
        neurons: neuron layers placed; one a call, so a module called twice gives two.
        never_called: paths of leaf modules that the forward pass does not reach.
        allow_hybrid: whether operators that need an analog unit count as converted.
        tracer: "fx" or "export", which of the two read the network.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import convert
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> report = convert.inspect(net, torch.rand(2, 4))
        >>> print(report.frame[["path", "operator", "accuracy", "neurons", "operations"]].to_string(index=False))
        path operator    accuracy  neurons  operations
           0   Linear       exact        0          32
           1     ReLU approximate        8           0
           2   Linear       exact        0          16
        >>> report.supported, report.treatment
        (True, 'spiking')
    """

    network: str
    rows: tuple[Row, ...]
    activations_found: int
    neurons: int
    never_called: tuple[str, ...]
    allow_hybrid: bool = True
    tracer: str = "fx"

    @property
    def supported(self) -> bool:
        """Whether everything can be converted."""
        return not self.problems

    @property
    def problems(self) -> tuple[Row, ...]:
        """The rows that cannot be converted: unsupported, and hybrid unless allowed."""
        refused = ("unsupported",) if self.allow_hybrid else ("unsupported", "hybrid")
        return tuple(row for row in self.rows if row.treatment in refused)

    @property
    def treatment(self) -> Treatment:
        """The network as a whole: "unsupported" if any operator is, "hybrid" if any is, else "spiking"."""
        found = {row.treatment for row in self.rows}
        return "unsupported" if "unsupported" in found else "hybrid" if "hybrid" in found else "spiking"

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a table, one for each call."""
        return pd.DataFrame([asdict(row) for row in self.rows], columns=list(Row.__dataclass_fields__))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "schema": "speedysnn-inspect/2",
            "network": self.network,
            "supported": self.supported,
            "treatment": self.treatment,
            "allow_hybrid": self.allow_hybrid,
            "tracer": self.tracer,
            "activations_found": self.activations_found,
            "neurons": self.neurons,
            "never_called": list(self.never_called),
            "operators": [asdict(row) for row in self.rows],
        }

    def complaint(self) -> str:
        """All problems in one message, one on each line."""
        lines = [
            f"  {row.path} ({row.operator}{', ' + row.source if row.source else ''}): {row.why}"
            + (f"; {row.advice}" if row.advice else "")
            for row in self.problems
        ]
        hybrid = sum(row.treatment == "hybrid" for row in self.problems)
        unsupported = len(lines) - hybrid
        parts = [f"{unsupported} of {len(self.rows)} operators are unsupported"] if unsupported else []
        if hybrid:
            parts.append(
                f"{hybrid} of {len(self.rows)} operators need an analog unit (accept them with allow_hybrid=True, on "
                "the command line --allow-hybrid)"
            )
        return "\n".join([f"{self.network} cannot be converted: {', and '.join(parts)}", *lines])


@dataclass(frozen=True)
class Cost:
    """What a node costs for one image: neurons, operations in each step, and values kept from step to step."""

    neurons: int = 0
    operations: int = 0
    state: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Add two costs."""
        return Cost(self.neurons + other.neurons, self.operations + other.operations, self.state + other.state)


def cost_of(
    node: Node, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Mapping[str, Tensor]], images: int
) -> Cost:
    """What a node costs for one image.

    A weight layer costs its multiply-accumulates, an analog unit one evaluation for each value.
    A rate operator keeps the totals of its inputs and what it reached last; a neuron its membrane.
    """
    out = math.prod(shapes.get(node.name, ())) // images
    if node.op == "neuron":
        return Cost(neurons=out, state=out)
    operator = OPERATORS.get(node.op)
    if operator is None:
        return Cost()
    if operator.weighted:
        return Cost(operations=_multiplications(node, shapes, tensors, out, images))
    if operator.behaviour != "rate":
        return Cost()
    entries = sum(math.prod(shapes[name]) // images for name in node.inputs)
    summed = {"matmul": shapes[node.inputs[0]][-1], "einsum": _summed(node, shapes)}
    work = out * summed.get(node.op, 1)
    return Cost(operations=work, state=entries + out)


def _summed(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Product of the sizes that an einsum sums over."""
    if node.op != "einsum":
        return 1
    left, _, right = node.attrs["equation"].partition("->")
    pairs = zip(left.split(","), node.inputs, strict=True)
    sizes = {letter: size for term, name in pairs for letter, size in zip(term, shapes[name], strict=True)}
    return math.prod(size for letter, size in sizes.items() if letter not in right)


def _multiplications(
    node: Node,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Mapping[str, Tensor]],
    out: int,
    images: int,
) -> int:
    weight = tensors[node.name]["weight"]
    if node.op.startswith("conv_transpose"):
        return math.prod(shapes[node.inputs[0]]) // images * (weight.numel() // weight.shape[0])
    return out * (weight.numel() // weight.shape[0])


class Shape(tuple[int, ...]):
    """The shape of a traced tensor, apart from tuples of numbers; `leads` if the first dimension follows the batch."""

    leads = True


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
            shapes = ", ".join(str(tuple(x.shape)) for x in example)
            raise ConversionError(
                f"the network does not run on the example input {shapes}: {first_line(err)}"
            ) from None
        runs.append(recorder)
    first, second = runs[0], runs[-1]
    sizes = (batches[0], batches[-1])
    return {node: _merge(value, second.records[node], sizes) for node, value in first.records.items()}, first.final


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


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(value.shape)
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, list | tuple):
        return tuple(_shapes(item) for item in value)
    return value


def _merge(first: Any, second: Any, batches: tuple[int, int]) -> Any:
    """Merge the records of two runs with different batch sizes: numbers that differ follow the batch."""
    if isinstance(first, Shape):
        if isinstance(second, Shape) and first and first is not second:
            first.leads = first[0] * batches[1] == second[0] * batches[0]
        return first
    if isinstance(first, tuple) and isinstance(second, tuple) and len(first) == len(second):
        return tuple(_merge(a, b, batches) for a, b in zip(first, second, strict=True))
    if isinstance(first, int) and not isinstance(first, bool) and first != second:
        return BatchInt(first)
    return first


def has_tensor(recorded: Any) -> bool:
    """Whether a recorded value holds a tensor."""
    if isinstance(recorded, Shape):
        return True
    return isinstance(recorded, tuple) and any(has_tensor(item) for item in recorded)


def plain(value: Any) -> Any:
    """The value with numbers that follow the batch as they were for the traced batch."""
    if isinstance(value, BatchInt | BatchTensor):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return tuple(plain(item) for item in value) if isinstance(value, tuple | list) else value


def any_ref(value: Any) -> bool:
    """Whether a tensor that comes from the network's input lies in it."""
    return _holds(value, Ref)


def any_batch(value: Any) -> bool:
    """Whether a number that follows the batch lies in it."""
    return _holds(value, (BatchInt, BatchTensor))


def _holds(value: Any, kind: type | tuple[type, ...]) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds(item, kind) for item in value)
    if isinstance(value, dict):
        return any(_holds(item, kind) for item in value.values())
    return isinstance(value, kind)
