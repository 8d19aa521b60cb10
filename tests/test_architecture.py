"""docs/architecture.md against the code: which room imports which, and every module of the core by name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "src" / "speedysnn"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LINKED = ("convert", "analysis", "finetune")  # below src/ only where tools/link_rooms.py has run
KERNELS_MAY = ("speedysnn.errors", "speedysnn.settings", "speedysnn.surrogate", "speedysnn.kernels")


def table() -> dict[str, tuple[Path, set[str]]]:
    """Room -> its folder and what the page says it imports."""
    rows = re.findall(r"^\| `(\w+)` \| `([\w/]+)` \|[^|]*\|([^|]*)\|$", PAGE, re.MULTILINE)
    return {room: (ROOT / folder, set(re.findall(r"`(\w+)`", imports))) for room, folder, imports in rows}


ROOMS = table()


def modules(room: str) -> Iterator[Path]:
    folder = ROOMS[room][0]
    yield from sorted(folder.glob("*.py") if room == "core" else folder.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str:
    inner = name.split(".")[1]
    return inner if inner in ROOMS else "core"


def neighbours(room: str) -> dict[str, str]:
    """Room that is imported -> a module that does it."""
    found = {room_of(name): path.name for path in modules(room) for name in imported(path)
             if name.startswith("speedysnn.")}  # fmt: skip
    found.pop(room, None)
    return found


def test_every_folder_of_code_is_a_room_of_the_table() -> None:
    inner = {path.parent for path in CORE.glob("*/__init__.py") if path.parent.name not in LINKED}
    assert {folder for folder, _ in ROOMS.values()} == {CORE, *inner, *(ROOT / room for room in LINKED)}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_what_its_row_says(room: str) -> None:
    found, said = neighbours(room), ROOMS[room][1]
    assert said <= set(ROOMS), "the row names a room that there is not"
    assert {name: file for name, file in found.items() if name not in said} == {}, "imported, but not in the row"
    assert said - set(found) == set(), "in the row, but imported nowhere"


def test_kernels_take_three_modules_of_the_core() -> None:
    names = {name for path in modules("kernels") for name in imported(path) if name.startswith("speedysnn.")}
    assert {name for name in names if not name.startswith(KERNELS_MAY)} == set()


def test_modules_of_the_core_are_on_the_page_once() -> None:
    """All public ones; private ones may be left out, but none is named that there is not."""
    part = PAGE.partition("## The core")[2].partition("## Which room")[0]
    named = re.findall(r"`(\w+\.py)`", part)
    there = {path.name for path in modules("core")} - {"__init__.py"}
    assert len(named) == len(set(named))
    assert {name for name in there if not name.startswith("_")} <= set(named) <= there


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/versioning.md", "CONTRIBUTING.md"])
def test_paths_on_a_page_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.]+/)*[\w.]+(?:\.py|\.md|\.toml|/))`", text))
    named |= {target for target in re.findall(r"\]\(([^)#:]+)\)", text)}
    assert named
    folders = (ROOT, (ROOT / page).parent, CORE, ROOT / "src")
    assert [name for name in sorted(named) if not any((folder / name).exists() for folder in folders)] == []


def test_the_way_to_contribute_fits_a_screen_and_gives_two_commands() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 50
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    first, second = commands.strip().splitlines()
    assert (ROOT / first.split()[1]).is_file()
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tools = [part.split()[0] for part in second.partition("#")[0].split("&&")]
    assert len(tools) == 3
    assert all(f'"{tool}>=' in settings for tool in tools)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_text_files_name_their_encoding(room: str) -> None:
    """Windows would take another one: every open for text, read_text and write_text says which."""
    silent = []
    for path in modules(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and is_text(node) and "encoding" not in {k.arg for k in node.keywords}:
                silent.append(f"{path.name}:{node.lineno}")
    assert silent == []


def is_text(call: ast.Call) -> bool:
    """Path.open() and open(file) with no mode or one without "b"; archives open their members as bytes."""
    method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return True
    modes = call.args[0 if method else 1 :]
    unknown = bool(modes) and not (isinstance(modes[0], ast.Constant) and isinstance(modes[0].value, str))
    return name == "open" and not unknown and "b" not in "".join(mode.value for mode in modes[:1])
