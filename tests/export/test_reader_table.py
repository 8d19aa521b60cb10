"""docs/howto/export.md says of each reader that is installed, in the version it names, what running it shows."""

import runpy
from pathlib import Path

import pytest

from speedysnn.export import READERS

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "write_reader_table.py"))
PAGE = TOOL["PAGE"].read_text(encoding="utf-8")
KNOWN = TOOL["columns_of"](PAGE.partition(TOOL["BEGIN"])[2].partition(TOOL["END"])[0])


@pytest.mark.filterwarnings("ignore::speedysnn.export.nir.NIRWarning")
@pytest.mark.parametrize("reader", READERS)
def test_a_column_of_the_page(reader) -> None:
    heading, cells, settings = KNOWN[reader]
    if READERS[reader].version != heading:
        pytest.skip(f"the page is about {heading}, here is {READERS[reader].version}")
    found = TOOL["column"](reader)
    if found is None:
        pytest.skip(f"{reader} is not installed")
    assert found == (heading, cells, settings), "python tools/write_reader_table.py"


def test_the_table_is_written_as_it_is_read() -> None:
    part = PAGE.partition(TOOL["BEGIN"])[2].partition(TOOL["END"])[0]
    assert part == "\n" + TOOL["table"](KNOWN) + "\n"
    assert list(KNOWN) == list(READERS)
    for _, cells, _ in KNOWN.values():
        assert set(cells.values()) <= {"yes", "set", "no", "refused"}
