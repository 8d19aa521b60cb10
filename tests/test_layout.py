"""The layout's traps: packages in the wheel, one copy of every room, which room imports which, module sizes."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("convert", "analysis", "finetune")
MAY = {
    ("train.py", "speedysnn.convert.spiking"),  # training from scratch begins with a conversion
    ("blocks/__init__.py", "speedysnn.convert.correct"),  # a reconstruction begins with a correction in closed form
    ("training.py", "speedysnn.convert.correct"),
    ("measure.py", "speedysnn.convert.correct"),  # a verdict recommends moments only where it has tried them
    ("regression.py", "speedysnn.convert.matching"),  # its images walk through the graph as a correction's do
}
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def folders() -> dict[str, Path]:
    return {"speedysnn": ROOT / "src" / "speedysnn", **{f"speedysnn.{room}": ROOT / room for room in ROOMS}}


def modules() -> list[tuple[str, Path]]:
    return [(name, path) for name, folder in folders().items() for path in sorted(folder.rglob("*.py"))
            if name != "speedysnn" or path.relative_to(folder).parts[0] not in ROOMS]  # fmt: skip


def test_every_package_on_disk_is_listed() -> None:
    found = set()
    for name, path in modules():
        if path.name == "__init__.py":
            inner = path.parent.relative_to(folders()[name]).parts
            found.add(".".join((name, *inner)))
    assert found == set(SETTINGS["packages"])


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda value: value.name if isinstance(value, Path) else value)
def test_a_room_imports_the_core_and_nothing_beside_it(room: str, path: Path) -> None:
    names = imported(path)
    bare = {name.split(".")[0] for name in names} & set(ROOMS)
    assert not bare, "a bare import makes a second copy of every registry"
    if {"cli", "bench"} & set(path.parts):  # the outermost layer
        return
    others = {f"speedysnn.{other}" for other in ROOMS} - {room}
    crossed = {name for name in names for other in others if name == other or name.startswith(f"{other}.")}
    may = [module for file, module in MAY if path.as_posix().endswith(f"/{file}")]
    allowed = {name for name in crossed if any(name.startswith(module) for module in may)}
    assert not crossed - allowed


@pytest.mark.parametrize("path", [path for _, path in modules()], ids=lambda path: path.name)
def test_modules_stay_small_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "no docstring"
