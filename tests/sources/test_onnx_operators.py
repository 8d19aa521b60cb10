"""The operator cases that onnx ships, each read as it is and with all inputs but the first stored in the file.

`onnx_operators.csv` says of each whether it is equal to onnx's own answer or refused; wrong it never is. Written again
by `python -m tests.sources.test_onnx_operators`.
"""

import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speedysnn.errors import SourceError
from speedysnn.sources.onnx_reader import OPERATORS, load_onnx

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # onnx makes some of its cases by overflow
TABLE = Path(__file__).with_name("onnx_operators.csv")
SAMPLE = (
    "Clip", "Resize", "ReduceSum", "PRelu", "Cast", "Div", "DepthToSpace", "Shape", "Gemm", "AveragePool", "Pad", "Softmax",
)  # fmt: skip


def cases(*operators: str) -> Iterator[tuple[str, Any, list[Any], list[Any]]]:
    """Name, model, inputs and outputs of every case whose operators are all read from ONNX."""
    from onnx import numpy_helper
    from onnx.backend.test.case.node import collect_testcases

    for case in (case for name in operators or (None,) for case in collect_testcases(name)):
        kinds = {node.op_type for node in case.model.graph.node}
        inputs, outputs = (list(values) for values in case.data_sets[0])
        if not kinds <= set(OPERATORS) or not all(plain(value) for value in (*inputs, *outputs)):
            continue
        yield case.name, case.model, inputs, outputs
        if len(inputs) > 1:
            model = onnx.ModelProto()
            model.CopyFrom(case.model)
            first, *rest = case.model.graph.input
            del model.graph.input[:]
            model.graph.input.append(first)
            model.graph.initializer.extend(
                numpy_helper.from_array(x, entry.name) for entry, x in zip(rest, inputs[1:], strict=True)
            )
            yield f"{case.name}, stored", model, inputs[:1], outputs


def plain(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) and np.asarray(value).dtype.kind in "fiub" and (
        np.asarray(value).dtype.name not in ("bfloat16",)
    )


def outcome(model: Any, inputs: list[Any], outputs: list[Any]) -> tuple[str, str]:
    """Equal, refused (also by torch, when it runs), or wrong; and why."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        onnx.save(model, path)
        try:
            net = load_onnx(path)[0]
        except SourceError as err:
            return "refused", str(err).partition(": ")[2] or str(err).replace(str(path), "it")
    try:
        with torch.no_grad():
            got = net(*(torch.from_numpy(np.array(x)) for x in inputs))
    except (RuntimeError, IndexError, TypeError, ValueError) as err:
        return "refused", f"by torch: {str(err).splitlines()[0]}"
    made = [value.numpy() for value in (got if isinstance(got, tuple) else (got,))]
    same = [a.shape == np.shape(b) and np.allclose(a.astype(float), np.asarray(b, float), 1e-3, 1e-5)
            for a, b in zip(made, outputs, strict=False)]  # fmt: skip
    return ("equal" if all(same) else "wrong"), ""


def table(*operators: str) -> dict[str, tuple[str, str]]:
    return {name: outcome(model, inputs, outputs) for name, model, inputs, outputs in cases(*operators)}


def committed() -> dict[str, str]:
    with TABLE.open(newline="", encoding="utf-8") as file:
        return {row["case"]: row["outcome"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("operator", SAMPLE)
def test_an_operator_is_equal_or_refused(operator: str) -> None:
    known = committed()
    found = table(operator)
    assert {name for name, (said, _) in found.items() if said == "wrong"} == set()
    assert {name for name, (said, _) in found.items() if known.get(name, said) == "equal" != said} == set()


@pytest.mark.nightly
def test_every_operator_is_equal_or_refused() -> None:
    known = committed()
    found = table()
    assert {name for name, (said, _) in found.items() if said == "wrong"} == set()
    assert {name for name, (said, _) in found.items() if known.get(name, said) == "equal" != said} == set()


if __name__ == "__main__":
    with TABLE.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("case", "outcome", "why"))
        writer.writerows((name, *row) for name, row in sorted(table().items()))
