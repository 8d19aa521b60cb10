"""Every code block of README and docs runs; one that cannot carries `<!-- not run: why -->` on the line above it."""

import json
import re
import shlex
from pathlib import Path

import pytest

from speedysnn import data
from speedysnn.cli.main import main as command_line

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"<!-- not run: [^>]{4,} -->\s*$")


def blocks(page: str) -> list[tuple[str, str, int]]:
    """(language, code, line) of the blocks to run."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        if match["language"] not in ("python", "sh") or MARK.search(text[: match.start()].rstrip(" ")):
            continue
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        found.append((match["language"], code, text.count("\n", 0, match.start()) + 2))
    return found


IMAGES = 200  # of the digits' 1200 and 597: what the blocks do is checked here, not what they reach


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled digits, only fewer of them, in Python and on the command line."""
    whole = data.HANDLERS["digits"]

    def part(name: str, split: str) -> data.Loaded:
        loaded = whole(name, split)
        assert isinstance(loaded.store, data.ArrayStore)
        assert loaded.store.labels is not None
        store = data.ArrayStore(loaded.store.images[:IMAGES], loaded.store.labels[:IMAGES])
        return loaded._replace(store=store)

    monkeypatch.setitem(data.HANDLERS, "digits", part)


RUNNABLE = [page for page in ("README.md", *DOCS) if blocks(page)]


@pytest.mark.filterwarnings("ignore::speedysnn.export.nir.NIRWarning")
@pytest.mark.parametrize("page", RUNNABLE)
def test_the_blocks_of_a_page_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for language, code, line in blocks(page):
        if language == "python":
            exec(compile("\n" * (line - 1) + code, page, "exec"), names)
            continue
        for words in (shlex.split(text) for text in code.replace("\\\n", " ").splitlines() if text.strip()):
            assert words[0] == "speedysnn", f"{page}:{line}: {words[0]} is not run here; mark the block"
            assert command_line(words[1:]) == 0, f"{page}:{line}: {' '.join(words)}"


NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.ipynb"))


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_the_cells_of_a_notebook_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads((ROOT / page).read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells), "its outputs are not stored"
    assert any(cell["outputs"] for cell in cells)
    names: dict[str, object] = {"__name__": "page"}
    for number, cell in enumerate(cells, 1):
        exec(compile("".join(cell["source"]), f"{page}, code cell {number}", "exec"), names)


def test_pages_have_blocks_at_all() -> None:
    assert len(RUNNABLE) >= 6


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    assert {page.removeprefix("docs/") for page in (*DOCS, *NOTEBOOKS)} == set(re.findall(r"[\w/-]+\.(?:md|ipynb)", nav))


def test_links_between_pages_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md", *DOCS):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
