"""The import graph has no circle, and no public name or path of a module is lost when files move."""

import ast
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import speedysnn

ROOT = Path(speedysnn.__file__).resolve().parent
PUBLIC: dict[str, str] = {
    "speedysnn": "IFNeuron SpeedySNNError SpikingNetwork load save to_integer",
    "speedysnn.analysis": "Advice COLUMNS Column Comparison Confidence CostReport DelayChoice Evaluation LayerDetail "
    "NoiseReport NoiseSums OUTPUTS Sensitivity choose_confidence choose_delay compare delayed_readout early_exit "
    "evaluate figure_activation_density figure_membrane figure_noise_distribution figure_raster figure_staircase "
    "knob_curves knobs measure_cost measure_noise measure_sensitivity pareto read_mixed spike_fan_out sweep theory "
    "theta_distance",
    "speedysnn.analysis.theory": "rmse_steps floor_db decibels uniform_sqnr_db signal_power granular_noise "
    "overload_noise sqnr_db optimal_threshold effective_bits early_spikes",
    "speedysnn.artifact": "describe load save",
    "speedysnn.calibration": "Calibration",
    "speedysnn.convert": "HANDLERS Report Row SearchResult apply_correction as_clip as_leaky as_neuron as_operator "
    "inspect search to_spiking",
    "speedysnn.data": "load loader split_holdout",
    "speedysnn.encoders": "ENCODERS EncodedImages Encoder constant encode",
    "speedysnn.errors": "ArtifactError ConversionError DataError InputError SourceError SpeedySNNError TrainingError",
    "speedysnn.export": "to_c to_nir to_pt2",
    "speedysnn.finetune": "Config OBJECTIVES Result Stage TrainConfig fit train",
    "speedysnn.kernels": "BACKENDS Backend KernelWarning Rule multistep over_time parse_spikes using with_total",
    "speedysnn.network": "SpikingNetwork",
    "speedysnn.neurons": "IFNeuron",
    "speedysnn.graph.operators": "Operator",
    "speedysnn.integer": "Chip Misfit PROFILES Profile Program load misfits save to_integer",
    "speedysnn.display": "track",
    "speedysnn.sources": "MODELS Source load_model read_checkpoint",
    "speedysnn.surrogate": "atan rectangle sigmoid slope triangle",
    "speedysnn.execution.observers": "LayerRecord Tap any_order needs_input",
    "speedysnn.spike_trains": "SpikeTrain load record save",
}
KEPT_PATHS = (
    "network", "neurons", "data", "sources", "artifact", "encoders", "errors", "kernels", "surrogate", "calibration",
    "export",
)  # fmt: skip
MOVED_PATHS = {
    "operators": "graph.operators", "tap": "execution.observers", "trains": "spike_trains", "progress": "display",
    "histogram": "calibration.histogram", "thresholds": "calibration.rules", "analysis.columns": "analysis.noise.schema",
    "analysis.entries": "analysis.noise", "analysis.cost.energy": "analysis.cost",
    "analysis.noise.rows": "analysis.noise.layer", "bench.timing": "bench", "calibration.record": "calibration",
    "convert.encode": "convert.lower", "convert.handlers": "convert.ops", "convert.verify": "convert.read",
    "convert.ops.attention": "convert.ops.modules", "convert.ops.layers": "convert.ops.functions",
    "execution.streaming": "execution.runner", "sources.registry": "sources", "data.registry": "data",
    "assets.make": "assets.digits", "finetune.blocks.config": "finetune.blocks", "integer.bounds": "integer.lower",
    "kernels.elementwise": "kernels.numba_backend",
    "graph.blocks": "graph", "integer.store": "integer",
}  # fmt: skip


def module_files() -> dict[str, Path]:
    """Every module of the installed package by its full name; linked folders are followed."""
    found: dict[str, Path] = {}
    for folder, _, files in os.walk(ROOT, followlinks=True):
        inside = Path(folder).relative_to(ROOT).parts
        for name in files:
            if name.endswith(".py"):
                parts = ("speedysnn", *inside) if name == "__init__.py" else ("speedysnn", *inside, name[:-3])
                found[".".join(parts)] = Path(folder, name)
    return found


FILES = module_files()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imported(module: str) -> Iterator[tuple[str, str | None]]:
    """(module, name or None) of every import statement, also lazy ones and those for type checkers alone."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            for given in node.args[:1]:
                if isinstance(given, ast.Constant) and isinstance(given.value, str):
                    yield given.value, None


def home(module: str, name: str | None) -> str:
    """The module that an import needs: a package's re-export counts as its home, not as the whole package."""
    if name is None or module not in FILES:
        return module
    if f"{module}.{name}" in FILES:
        return f"{module}.{name}"
    if FILES[module].name == "__init__.py":
        for origin, other in imported(module):
            if other == name and origin != module and origin in FILES:
                return home(origin, other)
    return module


def graph() -> dict[str, set[str]]:
    """Module -> the modules of this package that it imports anywhere in its text."""
    edges = {name: {home(*needed) for needed in imported(name)} for name in FILES}
    return {name: (needed & set(FILES)) - {name} for name, needed in edges.items()}


def circles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """Strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: set[frozenset[str]] = set()

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            part = frozenset(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(part) > 1:
                found.add(part)

    for name in edges:
        if name not in index:
            visit(name)
    return found


def test_a_circle_is_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"f"}, "f": set()}
    assert circles(edges) == {frozenset("abc")}


def test_the_graph_sees_lazy_and_typing_imports() -> None:
    edges = graph()
    assert "speedysnn.analysis.report.page" in edges["speedysnn.analysis.noise.result"]  # inside a method
    assert "speedysnn.network" in edges["speedysnn"]  # for type checkers
    assert len(edges) > 100


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert [sorted(part) for part in circles(graph())] == []


@pytest.mark.parametrize("path", KEPT_PATHS)
def test_a_path_that_users_import_stays(path: str) -> None:
    assert importlib.import_module(f"speedysnn.{path}").__name__.startswith("speedysnn.")


@pytest.mark.parametrize("path", sorted(MOVED_PATHS))
def test_an_old_path_gives_the_module_at_its_new_place_and_says_so(path: str) -> None:
    sys.modules.pop(f"speedysnn.{path}", None)
    with pytest.warns(DeprecationWarning, match=re.escape(f"speedysnn.{MOVED_PATHS[path]}")):
        old = importlib.import_module(f"speedysnn.{path}")
    new = importlib.import_module(f"speedysnn.{MOVED_PATHS[path]}")
    assert old is new
    assert new.__spec__.name == f"speedysnn.{MOVED_PATHS[path]}"


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_no_public_name_is_lost(module: str) -> None:
    there = importlib.import_module(module)
    assert [name for name in PUBLIC[module].split() if not hasattr(there, name)] == []


def test_documented_names_are_there() -> None:
    page = ROOT.parents[1] / "docs" / "reference.md"
    if not page.is_file():
        pytest.skip("the documentation is not beside an installed package")
    names = [line.removeprefix("::: ") for line in page.read_text(encoding="utf-8").splitlines() if line[:4] == "::: "]
    assert len(names) > 20
    for name in names:
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (
            "speedysnn.network.SpikingNetwork",
            "reading recalibrate neurons summary latency timesteps set_delay set_spikes",
        ),
        ("speedysnn.analysis.NoiseReport", "save to_json verdict"),
        ("speedysnn.neurons.IFNeuron", "threshold set_threshold"),
    ],
)
def test_what_the_examples_call_is_there(where: str, names: str) -> None:
    module, _, last = where.rpartition(".")
    made = getattr(importlib.import_module(module), last)
    assert [name for name in names.split() if not hasattr(made, name)] == []
