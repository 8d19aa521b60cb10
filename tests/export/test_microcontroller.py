"""The tutorial from a checkpoint to a microcontroller, block by block, with the tools that are here."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from speedysnn.cli.main import main as command_line

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "microcontroller.md"
BLOCK = re.compile(r"^```(?P<language>python|sh|c|ld)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
NEEDED = {"make": ("make", "cc", "size"), "arm-none-eabi-gcc": ("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")}


def missing(code: str) -> list[str]:
    """Tools that a block needs and that are not here."""
    wanted = [name for key, names in NEEDED.items() if key in code for name in names]
    return [name for name in wanted if shutil.which(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None or shutil.which("cc") is None, reason="no C compiler")
def test_every_block_of_the_tutorial_does_what_the_page_says(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    page, names, said = PAGE.read_text(encoding="utf-8"), {"__name__": "page"}, ""
    for match in BLOCK.finditer(page):
        language, code = match["language"], match["code"]
        if language == "python":
            exec(compile(code, str(PAGE), "exec"), names)
            said += capsys.readouterr().out
        elif language in ("c", "ld"):
            Path(f"board.{language}").write_text(code, encoding="utf-8")
        elif code.startswith("speedysnn"):
            assert command_line(shlex.split(code)[1:]) == 0, code
        elif absent := missing(code):
            pytest.skip(f"done as far as the tools go; not here: {', '.join(absent)}")
        elif "apt-get" not in code:
            done = subprocess.run(["sh", "-e", "-c", code], capture_output=True, text=True)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
            said += done.stdout
    size = re.compile(r"^ *(\d+).*digits.elf$", re.MULTILINE)
    made, written = (int(size.search(text)[1]) for text in (said, page))  # type: ignore[index]
    assert abs(made - written) < 2000  # another compiler makes a little more or less of the same
    assert Path("board.txt").read_text() == Path("linux.txt").read_text()
    assert len(Path("board.txt").read_text().splitlines()) == 597
    assert f"`{next(line for line in said.splitlines() if 'right' in line)}`" in page
