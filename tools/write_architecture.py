"""Write the list of modules in docs/architecture.md again, from the first sentence of every module's docstring.

The rooms and their order come from the page's own table. `--check` writes nothing and fails where the page is old.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "src" / "speedysnn"
PAGE = ROOT / "docs" / "architecture.md"
HEADING = "## Every module\n"


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line and with its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.\s", text.split("\n\n")[0].replace("\n", " "))[0].rstrip(".") + "."


def rooms(page: str) -> list[tuple[str, Path]]:
    """Name and place of every room, in the order of the page's table."""
    return [(name, ROOT / place) for name, place in re.findall(r"^\| `(\w+)` \| `([\w/.]+)` \|", page, re.MULTILINE)]


def module_list(page: str) -> str:
    """The part of the page below its last heading."""
    out = []
    for name, place in rooms(page):
        out.append(f"\n### {name}\n\n")
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if path.name != "__init__.py":
                shown = path.relative_to(CORE if path.is_relative_to(CORE) else ROOT).as_posix()
                out.append(f"- `{shown}`: {first_sentence(path)}\n")
    return "".join(out)


def written(page: str) -> str:
    """The whole page with its list made anew."""
    return page.partition(HEADING)[0] + HEADING + module_list(page)


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    after = written(before)
    if "--check" in sys.argv[1:]:
        sys.exit("docs/architecture.md is out of date: python tools/write_architecture.py" if after != before else 0)
    PAGE.write_text(after, encoding="utf-8")
