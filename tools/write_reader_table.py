"""Write what each reader understands into docs/howto/export.md again, found by running the readers that are installed.

`--check` writes nothing and fails where the page says otherwise. A reader that is not installed keeps its column.
"""

import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from speedysnn import convert
from speedysnn.errors import ArtifactError, ConversionError, InputError
from speedysnn.export import READERS, compare, defects, open_in, to_nir
from speedysnn.export.readers import PROBES
from speedysnn.network import SpikingNetwork

PAGE = Path(__file__).resolve().parent.parent / "docs" / "howto" / "export.md"
BEGIN, END = "<!-- readers: written by tools/write_reader_table.py -->\n", "<!-- readers: end -->\n"


class Net(nn.Module):
    """One layer, its neurons, and what a row is about."""

    def __init__(self, first: nn.Module, then: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.then, self.last = first, then or nn.Identity(), last or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Activation, layer, activation, layer."""
        out: torch.Tensor = self.last(torch.relu(self.then(torch.relu(self.first(x)))))
        return out


class Meet(nn.Module):
    """Paths that meet: added or concatenated, with a layer on one of them or on both."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.stem, self.a, self.b = how, nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A stem, paths from it, and where they meet."""
        x = torch.relu(self.stem(x))
        if self.how == "cat":
            return torch.relu(torch.cat([self.a(x), x], 1)).mean((2, 3))
        if self.how == "slices":
            return torch.relu(nn.functional.pad(x[:, 1:3, ::2, ::2], (1, 1, 1, 1, 1, 1))).mean((2, 3))
        other = torch.relu(self.b(x)) if self.how == "paths" else x
        return torch.relu(torch.relu(self.a(x)) + other).mean((2, 3))


def conv(**options: object) -> nn.Module:
    """A 2-d convolution of 4 channels."""
    return nn.Conv2d(4, 4, 3, **options)  # type: ignore[arg-type]


def made(module: nn.Module, shape: tuple[int, ...], **options: object) -> SpikingNetwork:
    """A module as a spiking network, from noise."""
    return convert.to_spiking(module, torch.randn(32, *shape), 4, **options)  # type: ignore[arg-type]


IMAGE = (2, 9, 9)


def plane(then: nn.Module | None = None, last: nn.Module | None = None, **options: object) -> SpikingNetwork:
    """A network of images."""
    return made(Net(nn.Conv2d(2, 4, 3), then, last), IMAGE, **options)


NETWORKS: dict[str, Callable[[], SpikingNetwork]] = {
    "linear layers": lambda: made(Net(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)), (6,)),
    "2-d convolutions": lambda: plane(conv(), conv()),
    "stride, padding, dilation, groups, kernels that are not square": lambda: plane(
        conv(stride=2, padding=2, dilation=2, groups=2), nn.Conv2d(4, 4, (1, 3), padding="same")
    ),
    "flatten": lambda: plane(None, nn.Sequential(nn.Flatten(), nn.Linear(196, 2))),
    "average pooling": lambda: plane(nn.AvgPool2d(2, padding=1), nn.AvgPool2d(2)),
    "batch-norm that no layer takes in": lambda: plane(nn.BatchNorm2d(4).eval(), conv()),
    "shortcuts": lambda: made(Meet("add"), IMAGE),
    "paths of several layers that meet": lambda: made(Meet("paths"), IMAGE),
    "concatenation": lambda: made(Meet("cat"), IMAGE),
    "slices of channels, every second place, padding with zeros": lambda: made(Meet("slices"), IMAGE),
    "1-d convolutions": lambda: made(Net(nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3), nn.AvgPool1d(2)), (2, 16)),
    "3-d convolutions": lambda: made(Net(nn.Conv3d(2, 4, 3), nn.Conv3d(4, 4, 2), nn.AvgPool3d(2)), (2, 5, 5, 5)),
    "one threshold a channel, corrected biases": lambda: plane(conv(), granularity="channel", correct="moments"),
    "max-pooling": lambda: plane(nn.MaxPool2d(2), conv()),
    "look-ahead": lambda: plane(conv(), delay=1),
    "ternary spikes": lambda: plane(conv(), spikes="ternary"),
    "graded spikes": lambda: plane(conv(), spikes="graded:3"),
    "spikes of a power of two": lambda: plane(conv(), spikes="power2:3"),
    "signed neurons": lambda: made(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Hardtanh(), conv()), IMAGE),
}


def layer_cells(reader: str, folder: Path) -> dict[str, str]:
    """A reader's answers to the rows about layers."""
    found = {}
    for row, make in NETWORKS.items():
        torch.manual_seed(0)
        snn = make()
        try:
            to_nir(snn, folder / "net.nir", overwrite=True)
            found[row] = "yes" if compare(snn, folder / "net.nir", reader).same else "no"
        except ConversionError:
            found[row] = "refused"
        except ArtifactError:
            found[row] = "no"
    return found


def neuron_cells(reader: str) -> dict[str, str]:
    """A reader's answers to the rows about its neuron: by itself, once it is set, or not."""
    try:
        alone = set(defects(reader, bare=True))
    except ArtifactError:  # it has no neuron
        alone = set(PROBES)
    still = set(defects(reader))
    return {fine: "no" if fault in still else "set" if fault in alone else "yes" for fault, fine in PROBES.items()}


def column(reader: str) -> tuple[str, dict[str, str], tuple[str, ...]] | None:
    """Heading, cells and settings of a reader; None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            READERS[reader].require()
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                cells = neuron_cells(reader) | layer_cells(reader, folder)
                to_nir(NETWORKS["linear layers"](), folder / "net.nir", overwrite=True)
                return READERS[reader].version, cells, open_in(folder / "net.nir", reader).settings
    except InputError:
        return None


def columns_of(text: str) -> dict[str, tuple[str, dict[str, str], tuple[str, ...]]]:
    """The columns and settings that a page has, by reader."""
    lines = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in text.splitlines() if line[:1] == "|"]
    found = {}
    for i, heading in enumerate(lines[0][1:] if lines else [], 1):
        part = text.partition(f"**{heading}**")[2].partition("**")[0]
        settings = tuple(" ".join(each.split()) for each in re.findall(r"^- (.*(?:\n  .*)*)", part, re.MULTILINE))
        found[heading.split()[0]] = (heading, {line[0]: line[i] for line in lines[2:]}, settings)
    return found


def table(columns: dict[str, tuple[str, dict[str, str], tuple[str, ...]]]) -> str:
    """The table, and what is set in each reader."""
    headings = [heading for heading, _, _ in columns.values()]
    rows = [["", *headings], ["---"] * (len(headings) + 1)]
    rows += [[row, *(cells.get(row, "") for _, cells, _ in columns.values())] for row in (*PROBES.values(), *NETWORKS)]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    for heading, _, settings in columns.values():
        text += f"\n**{heading}** is set so:\n\n" + "".join(f"- {line}\n" for line in settings)
    return text


def written(page: str) -> str:
    """The whole page with its table made anew."""
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    known = columns_of(old)
    columns = {reader: column(reader) or known.get(reader) for reader in READERS}
    return before + BEGIN + "\n" + table({name: each for name, each in columns.items() if each}) + "\n" + END + after


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    again = written(text)
    if "--check" in sys.argv[1:]:
        sys.exit("docs/howto/export.md is out of date: python tools/write_reader_table.py" if again != text else 0)
    PAGE.write_text(again, encoding="utf-8")
