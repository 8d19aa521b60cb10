"""Readers of NIR files by name: what each needs, how it opens a file, and what it makes of one neuron."""

import importlib
import importlib.metadata
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.errors import ArtifactError, ConversionError, InputError
from speedysnn.export.compare import Comparison, compare_opened
from speedysnn.export.nir import problems
from speedysnn.export.nir_readers import Opened, open_nirtorch, open_norse, open_sinabs, open_snntorch, quiet
from speedysnn.files import reason
from speedysnn.network import SpikingNetwork


@dataclass(frozen=True)
class Reader:
    """A program that reads NIR files.

    Attributes:
        open: called as open(path, bare); gives the file as the reader's network. `bare` asks for it exactly as the
            reader's own import leaves it, otherwise it is told what NIR has no word for.
        package: the package whose version is printed.
        install: how it is installed.

    Example:
        >>> from speedysnn import export
        >>> export.READERS["mine"] = export.Reader(lambda path, bare: None, "mine", "pip install mine")
        >>> "mine" in export.EXPORTERS["nir"].verify
        True
        >>> del export.READERS["mine"]
    """

    open: Callable[[Path, bool], Opened]
    package: str
    install: str

    @property
    def version(self) -> str:
        """Name and version of the package; the name alone where it is no installed package."""
        try:
            return f"{self.package} {importlib.metadata.version(self.package)}"
        except importlib.metadata.PackageNotFoundError:
            return self.package

    def require(self) -> None:
        """Refuse where the package, or one that it needs, is missing.

        Raises:
            InputError: it cannot be imported; the message says how to install it.
        """
        for name in ("nir", "nirtorch", self.package):
            try:
                with quiet():
                    importlib.import_module(name)
            except ImportError as err:
                raise InputError(f"verify: the reader needs the package {name} ({err}): {self.install}") from None

    def opened(self, path: Path, bare: bool = False) -> Opened:
        """The file as the reader's network; see `open_in`."""
        self.require()
        try:
            with quiet():
                return self.open(path, bare)
        except Exception as err:  # a reader raises whatever it likes
            raise ArtifactError(f"{self.version} cannot open {path.name}: {_why(err, path)}; see {PAGE}") from err

    def __call__(self, snn: SpikingNetwork, path: Path) -> Comparison:
        """Compare, and refuse a file that the reader runs otherwise.

        Raises:
            ArtifactError: it does; the message names the first layer, step and spikes that differ, and what to do.
        """
        found = compare(snn, path, self)
        if not found.same:
            faults = "; ".join(defects(self))
            its_neuron = f"; its neuron, as it stands: {faults}" if faults else ""
            raise ArtifactError(f"{found}{its_neuron}\nTake another version of it or another reader; see {PAGE}")
        return found


def _why(err: Exception, path: Path) -> str:
    """The reason; nirtorch names a layer that the reader has no word for by its name alone."""
    if isinstance(err, KeyError) and path.is_file():
        node = importlib.import_module("nir").read(str(path)).nodes.get(err.args[0])
        if node is not None:
            return f"it has no layer for nir.{type(node).__name__} ({err.args[0]!r})"
    return reason(err)


PAGE = "docs/howto/export.md"

# One row a reader. A new one is its function in nir_readers and its row here; a row of the user's wins.
READERS: dict[str, Reader] = {
    "nirtorch": Reader(open_nirtorch, "nirtorch", 'pip install "speedysnn[nir]"'),
    "snntorch": Reader(open_snntorch, "snntorch", 'pip install "speedysnn[readers]"'),
    "norse": Reader(open_norse, "norse", 'pip install "speedysnn[readers]"'),
    "sinabs": Reader(open_sinabs, "sinabs", "pip install --no-deps sinabs pbr (else it brings an older nir)"),
}


def find_reader(reader: str | Reader) -> Reader:
    """A row of `READERS`, or the reader itself.

    Raises:
        InputError: no such reader.
    """
    if isinstance(reader, Reader):
        return reader
    if reader not in READERS:
        raise InputError(f"reader: expected one of {', '.join(READERS)}, got {reader!r}")
    return READERS[reader]


def open_in(path: str | Path, reader: str | Reader) -> Opened:
    """Open a NIR file in another program, told what NIR has no word for.

    Args:
        path: a file written by `to_nir`.
        reader: a name of `READERS`, or a reader.

    Returns:
        Its network as `module`, the layers that fire as `neurons`, and what was set as `settings`; `run(x, emit)` runs
        all steps from the start.

    Raises:
        InputError: no such reader, or its package is missing.
        ArtifactError: the reader cannot open the file.

    Example:
        >>> import tempfile, warnings, torch
        >>> from pathlib import Path
        >>> from speedysnn import convert, export
        >>> _ = torch.manual_seed(0)
        >>> ann = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> snn = convert.to_spiking(ann, torch.rand(32, 4), timesteps=4)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     file = export.export(snn, Path(tempfile.mkdtemp()) / "net.nir", to="nir")
        >>> opened, spikes = export.open_in(file, "nirtorch"), []
        >>> opened.run(torch.rand(4, 3, 4), lambda name, emitted: spikes.append(emitted)).shape  # (T, images, classes)
        torch.Size([4, 3, 2])
        >>> len(spikes)  # one layer of neurons, four steps
        4
    """
    return find_reader(reader).opened(Path(path))


def compare(
    snn: SpikingNetwork, path: str | Path, reader: str | Reader, images: Tensor | None = None, *, bare: bool = False
) -> Comparison:
    """Compare a network with what a reader makes of its NIR file, spike by spike.

    A spike may differ only where a membrane, given the network's own spikes as input, is within float32 rounding of its
    threshold, and in one neuron of ten thousand at most.

    Args:
        snn: the network that `to_nir` wrote.
        path: the file.
        reader: a name of `READERS`, or a reader.
        images: what both are shown, (B, ...) or (T, B, ...); noise by default.
        bare: with nothing set in the reader after its own import.

    Returns:
        Both sides' spikes a layer, what differs, and what was set; `same` is the verdict.

    Raises:
        InputError: no such reader, or its package is missing.
        ConversionError: the network does what no NIR file can say.
        ArtifactError: the reader cannot open or run the file.

    Example:
        >>> import tempfile, warnings, torch
        >>> from pathlib import Path
        >>> from speedysnn import convert, export
        >>> _ = torch.manual_seed(0)
        >>> ann = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> snn = convert.to_spiking(ann, torch.rand(32, 4), timesteps=4)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     file = export.export(snn, Path(tempfile.mkdtemp()) / "net.nir", to="nir")
        >>> export.compare(snn, file, "nirtorch").same
        True
    """
    found, target = find_reader(reader), Path(path)
    if lines := list(problems(snn)):
        raise ConversionError("no NIR file says what this network does:\n" + "\n".join(f"  {line}" for line in lines))
    return compare_opened(snn, found.opened(target, bare), found.version, target, images)


def defects(reader: str | Reader, bare: bool = False) -> list[str]:
    """What a reader's integrate-and-fire neuron does otherwise than ours, found by running it on short currents.

    Args:
        reader: a name of `READERS`, or a reader.
        bare: with nothing set after its own import of nir.IF.

    Returns:
        One line a difference.

    Raises:
        InputError: no such reader, or its package is missing.
        ArtifactError: the reader cannot open or run a file of one neuron.

    Example:
        >>> from speedysnn import export
        >>> export.defects("nirtorch")
        []
    """
    found = [
        text for text, start, currents, fails in _TRIALS if fails(_fired(find_reader(reader), bare, start, currents))
    ]
    return [text for text in found if not (text == _LOSES and _HARD in found)]


_LEAKS, _HARD = "its membrane leaks", "it resets to zero instead of subtracting its threshold"
_SEVERAL, _FLOOR = "it fires several times in a step", "its membrane has a floor"
_ABOVE, _LOSES = "it fires above its threshold, not at it", "it loses charge above twice its threshold"
_ZERO = "it starts at zero, whatever the file's metadata says"
PROBES = {
    _LEAKS: "its membrane keeps its charge",
    _HARD: "it resets by subtraction",
    _SEVERAL: "it fires once a step",
    _FLOOR: "its membrane may fall without end",
    _ABOVE: "it fires at its threshold",
    _ZERO: "it starts where the file says",
    _LOSES: "it keeps what is above its threshold",
}
_TRIALS: Sequence[tuple[str, float, Sequence[float], Callable[[list[float]], bool]]] = (
    (_LEAKS, 0.0, (0.51, *[0.0] * 7, 0.51), lambda out: out[8] == 0),
    (_HARD, 0.0, (1.8, 0.3), lambda out: out[1] == 0),
    (_SEVERAL, 0.0, (2.6,), lambda out: out[0] > 1),
    (_FLOOR, 0.0, (-3.0, 3.5), lambda out: out[1] > 0),
    (_ABOVE, 0.0, (1.0,), lambda out: out[0] == 0),
    (_ZERO, 0.5, (0.6,), lambda out: out[0] == 0),
    (_LOSES, 0.0, (2.3, 0.0, 0.0), lambda out: sum(out) != 2),
)


def _fired(reader: Reader, bare: bool, start: float, currents: Sequence[float]) -> list[float]:
    """What one neuron of threshold 1 emits at each step."""
    nir: Any = importlib.import_module("nir")
    one = np.ones(1, dtype=np.float32)
    neuron = nir.IF(r=one, v_threshold=one, metadata={"v_init": start * one})
    nodes = {"input": nir.Input({"input": np.array([1])}), "neuron": neuron, "output": nir.Output(np.array([1]))}
    graph = nir.NIRGraph(nodes, [("input", "neuron"), ("neuron", "output")], {"timesteps": len(currents)})
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "neuron.nir"
        nir.write(str(file), graph)
        opened = reader.opened(file, bare)
        try:
            opened.run(torch.tensor(currents).view(-1, 1, 1), lambda _, spikes: found.extend(spikes.flatten().tolist()))
        except Exception as err:  # a reader raises whatever it likes
            raise ArtifactError(f"{reader.version} cannot run one nir.IF: {reason(err)}") from err
    return found
