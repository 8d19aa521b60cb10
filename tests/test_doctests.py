"""The examples in docstrings run, and every public name has one and says what it returns."""

import ast
import doctest
import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import speedysnn

ROOT = Path(speedysnn.__file__).resolve().parent
PACKAGES = ("speedysnn", "speedysnn.convert", "speedysnn.analysis", "speedysnn.analysis.theory", "speedysnn.finetune",
            "speedysnn.export", "speedysnn.data", "speedysnn.sources", "speedysnn.encoders")  # fmt: skip
FEWEST_LINES = 150
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_files() -> dict[str, Path]:
    """Every module of the installed package by its full name; linked folders are followed."""
    found: dict[str, Path] = {}
    for folder, _, files in os.walk(ROOT, followlinks=True):
        inside = Path(folder).relative_to(ROOT).parts
        for name in (name for name in files if name.endswith(".py")):
            own = () if name == "__init__.py" else (name[:-3],)
            found[".".join(("speedysnn", *inside, *own))] = Path(folder, name)
    return found


FILES = module_files()
WITH_EXAMPLES = sorted(name for name, path in FILES.items() if ">>> " in path.read_text(encoding="utf-8"))


def examples_of(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    return [test for test in doctest.DocTestFinder().find(module, name) if test.examples]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tests = examples_of(name)
    assert tests, "an example stands where doctest does not look: in no docstring, or in that of something hidden"
    said: list[str] = []
    for test in tests:
        torch.manual_seed(0)
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert not said, "".join(said)


def test_there_are_many_lines_of_examples() -> None:
    lines = [line.lstrip() for path in FILES.values() for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(line.startswith((">>> ", "... ")) for line in lines) >= FEWEST_LINES


def public_names(package: str) -> list[str]:
    """What a package exports: `__all__`, else what it imports as itself and what it defines."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    found = []
    for node in ast.walk(ast.parse(FILES[package].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found += [alias.name for alias in node.names if alias.asname == alias.name]
    if not found:
        found = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == package]
    return sorted(name for name in found if not name.startswith("_"))


def is_described_itself(value: Any) -> bool:
    """Functions and classes of the package, but for errors and warnings, whose first line says when they come."""
    if not (inspect.isfunction(value) or inspect.isclass(value)) or not value.__module__.startswith("speedysnn"):
        return False
    return not (inspect.isclass(value) and issubclass(value, BaseException))


PUBLIC = {
    f"{package}.{name}": value
    for package in PACKAGES
    for name in public_names(package)
    if is_described_itself(value := getattr(importlib.import_module(package), name))
}


def returns_something(function: Any) -> bool:
    return inspect.signature(function).return_annotation not in (None, "None", inspect.Signature.empty)


RESULTS = {word for value in PUBLIC.values() if inspect.isfunction(value)
           for word in re.findall(r"\w+", str(inspect.signature(value).return_annotation))}  # fmt: skip


def docstrings(value: Any) -> str:
    """The docstring of a function; of a class with those of its own methods."""
    found = [inspect.getdoc(value) or ""]
    if inspect.isclass(value):
        found += [inspect.getdoc(member) or "" for name, member in vars(value).items() if name[0] != "_"]
    return "\n".join(found)


def test_public_names_are_found() -> None:
    assert {"speedysnn.IFNeuron", "speedysnn.convert.to_spiking", "speedysnn.encoders.encode"} <= set(PUBLIC)
    assert len(PUBLIC) > 60


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_says_what_it_does_and_returns_with_an_example(name: str) -> None:
    """What a public function returns is shown by that function's example."""
    value = PUBLIC[name]
    text = docstrings(value)
    assert inspect.getdoc(value), "it has no docstring"
    if inspect.isfunction(value) and returns_something(value):
        assert "\nReturns:\n" in text or "\nYields:\n" in text, "it does not say what it returns"
    if not (inspect.isclass(value) and value.__name__ in RESULTS):
        assert ">>> " in text, "it has no example"
