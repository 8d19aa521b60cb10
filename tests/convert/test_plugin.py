"""An operator added from outside the package, by a program's own handlers, and what the tables hold."""

import doctest
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn import convert
from speedysnn.convert import ops as table
from speedysnn.graph.activations import ACTIVATIONS
from speedysnn.graph.operators import OPERATORS, Operator
from speedysnn.sources import load_model
from speedysnn.sources.onnx_reader import OPERATORS as ONNX


class Bend(nn.Module):
    """An activation that the package does not know; its forward has a decision, so that no tracer sees through it."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.abs()) if bool(x.isfinite().all()) else x


def bend(x: Tensor) -> Tensor:
    return x / (1 + x.abs()) if bool(x.isfinite().all()) else x


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(bend(torch.relu(self.first(x))))


def emit_bend(call: convert.Call) -> convert.Ref:
    return call.emit("bend", (call.ref(),))


@pytest.fixture
def bend_operator() -> Iterator[None]:
    OPERATORS["bend"] = Operator(lambda x, a, w: x[0] / (1 + x[0].abs()), "rate", hybrid=True, sign="keeps")
    yield
    del OPERATORS["bend"]


def stack() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Bend(), nn.Linear(8, 2))


@pytest.mark.usefixtures("bend_operator")
@pytest.mark.parametrize(("make", "key"), [(stack, Bend), (Calls, bend)])
def test_a_handler_of_the_users_own_converts(make, key) -> None:
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(16, 4)
    snn = convert.to_spiking(net, x, timesteps=8, allow_hybrid=True, handlers={key: emit_bend})
    assert "bend" in [node.op for node in snn.graph.nodes]
    with torch.no_grad(), snn.reading("analog"):
        assert torch.allclose(snn(x), net(x), atol=1e-5)


@pytest.mark.usefixtures("bend_operator")
@pytest.mark.parametrize(("make", "key"), [(stack, Bend), (Calls, bend)])
def test_a_row_in_the_registry_converts_and_the_argument_wins_over_it(monkeypatch, make, key) -> None:
    net, x = make().eval(), torch.randn(16, 4)
    monkeypatch.setitem(convert.HANDLERS, key, emit_bend)
    assert "bend" in [node.op for node in convert.to_spiking(net, x, allow_hybrid=True).graph.nodes]

    def refuse(call: convert.Call) -> convert.Ref:
        raise convert.Unsupported("mine came first")

    report = convert.inspect(net, x, allow_hybrid=True, handlers={key: refuse})
    assert "mine came first" in [row.why for row in report.problems]


def test_a_key_stands_in_one_table_alone() -> None:
    parts = [value for name, value in vars(table).items() if name.endswith("_ROWS")]
    assert sum(map(len, parts)) == len(table.HANDLERS) > 300


@pytest.mark.parametrize("row", ACTIVATIONS, ids=lambda row: row.name)
def test_an_activations_row_is_the_same_function_everywhere(row) -> None:
    """Its formula, its module and its function in torch agree with the defaults that the row names."""
    x = torch.linspace(0.1, 3, 24).view(2, 3, 4)
    want = row.formula(x, *row.constants.values())
    named = [getattr(owner, row.name) for owner in (torch, F) if hasattr(owner, row.name)]
    modules = [] if row.module is None else [row.module()]
    assert named or modules
    for same in (*named, *modules):
        assert torch.equal(same(x), want)
    assert all(key in convert.HANDLERS for key in row.calls())
    assert row.behaviour == "neuron" or row.name in OPERATORS
    assert not row.onnx or row.onnx in ONNX


EXAMPLES = (convert.to_spiking, convert.inspect, convert.as_neuron, convert.as_leaky, convert.as_operator, load_model)


@pytest.mark.parametrize("function", EXAMPLES, ids=lambda function: function.__name__)
def test_the_examples_of_public_functions_run(function) -> None:
    (found,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__)
    assert found.examples, "it has no example"
    results = doctest.DocTestRunner().run(found)
    assert results.failed == 0
