"""docs/architecture.md against the code: the order of rooms, every module by name, the sizes of files and folders."""

import ast
import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "src" / "speedysnn"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LINKED = ("convert", "analysis", "finetune")  # below src/ only where tools/link_rooms.py has run
KERNELS_MAY = {"errors", "surrogate", "settings", "files", "torch_utils"}
MOST_FILES, MOST_MODULES = 190, 15


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the whole library."""
    found = {}
    for folder, prefix in ((CORE, "speedysnn"), *((ROOT / room, f"speedysnn.{room}") for room in LINKED)):
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder).with_suffix("").parts
            if folder == CORE and inner[0] in LINKED:
                continue
            found[".".join((prefix, *(inner[:-1] if inner[-1] == "__init__" else inner)))] = path
    return found


MODULES = modules()


def rooms() -> list[str]:
    """The rooms in the page's order: each may import those before it."""
    return re.findall(r"^\| `(\w+)` \| `[\w/.]+` \|", PAGE, re.MULTILINE)


ORDER = rooms()


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else "speedysnn"


def imported(path: Path) -> set[str]:
    """Modules of the library that a file imports, lazily or for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module or "")
    return {name for name in found if name in MODULES and name != "speedysnn"}


def test_every_room_is_in_the_table() -> None:
    assert set(ORDER) == {room_of(name) for name in MODULES} - {"speedysnn"}
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"speedysnn"}))
def test_a_module_imports_rooms_before_its_own(name: str) -> None:
    room = room_of(name)
    before = ORDER[: ORDER.index(room)]
    later = {other for other in map(room_of, imported(MODULES[name])) if other != room and other not in before}
    assert not later, f"{name} imports {sorted(later)}, which come after {room}"


def test_kernels_stand_nearly_alone() -> None:
    names = {room_of(other) for name, path in MODULES.items() if room_of(name) == "kernels" for other in imported(path)}
    assert names - {"kernels"} <= KERNELS_MAY


def test_every_module_is_on_the_page_once() -> None:
    part = PAGE.partition("## Every module")[2]
    named = re.findall(r"^- `([\w/]+\.py)`", part, re.MULTILINE)
    there = {path.relative_to(CORE if CORE in path.parents else ROOT).as_posix() for path in MODULES.values()}
    assert sorted(named) == sorted(name for name in there if not name.endswith("__init__.py"))


def test_the_page_says_of_a_module_what_the_module_says() -> None:
    """`python tools/write_architecture.py` writes the page's list again."""
    written = runpy.run_path(str(ROOT / "tools" / "write_architecture.py"))["written"]
    assert written(PAGE) == PAGE, "python tools/write_architecture.py"


def test_the_house_stays_small_enough_for_a_stranger() -> None:
    assert len(MODULES) <= MOST_FILES
    folders = Counter(path.parent for path in MODULES.values())
    assert {folder.name: count for folder, count in folders.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/versioning.md", "CONTRIBUTING.md", "docs/howto/extend.md"])
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


@pytest.mark.parametrize("room", ORDER)
def test_text_files_name_their_encoding(room: str) -> None:
    """Windows would take another one: every open for text, read_text and write_text says which."""
    silent = []
    for path in (path for name, path in MODULES.items() if room_of(name) == room):
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
