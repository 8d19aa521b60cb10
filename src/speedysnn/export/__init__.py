"""Write a spiking network in the formats of other programs; the one of torch.export (.pt2) is here.

`EXPORTERS` is the one table of formats, for Python and for `speedysnn export`; an entry of the user's is added with
one line and wins over a built-in one of the same name.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from speedysnn.errors import ArtifactError, InputError
from speedysnn.export.c import check_c, to_c, to_chip, verify_c
from speedysnn.export.compare import Comparison
from speedysnn.export.nir import check_nir, to_nir
from speedysnn.export.readers import READERS, Reader, compare, defects, open_in
from speedysnn.files import reason
from speedysnn.files.atomic import ExportWarning as ExportWarning
from speedysnn.files.atomic import check_target, scratch_beside
from speedysnn.integer import check_chip
from speedysnn.integer.chip import Chip
from speedysnn.kernels import using
from speedysnn.network import SpikingNetwork
from speedysnn.spike_trains import load_nir_data, save_nir_data

__all__ = [
    "EXPORTERS", "READERS", "Comparison", "ExportWarning", "Exporter", "Reader", "compare", "defects", "export",
    "load_nir_data", "open_in", "save_nir_data", "to_c", "to_nir", "to_pt2",
]  # fmt: skip

SUFFIX, FACTS = ".pt2", "speedysnn.json"
TOLERANCE = 1e-6  # relative difference of an exported program's answers
Check = Callable[[Path, bool], None]
Verify = Callable[[Any, Path], Any]


class Write(Protocol):
    """Writes the network to a path; whatever it returns is ignored."""

    def __call__(self, snn: Any, path: Path, /, *, overwrite: bool) -> Any:
        """Write, or raise an error of `speedysnn.errors` that says why not."""


def _writable_anywhere(path: Path, overwrite: bool) -> None:
    """Refuse a path where something is already.

    Raises:
        InputError: something is there while `overwrite` is off.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path}: something is there already; choose another name, or pass overwrite")


@dataclass(frozen=True)
class Exporter:
    """One format of `EXPORTERS`.

    Attributes:
        write: called as write(snn, path, overwrite=...).
        description: the format in a few words, for `speedysnn export --help`.
        check: called as check(path, overwrite) before any work; it raises where `write` would refuse the path.
        verify: readers of the format by name, called as verify[name](snn, path) after writing; each raises where what
            it reads does not answer as the network does, and may return what it found.
        read_hint: how the file is opened, "{!r}" where its path belongs.
        chips: whether it takes a `Chip`, an integer network, too.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from speedysnn import convert, export
        >>> def write_thresholds(snn, path, *, overwrite):
        ...     counts = {name: neuron.threshold.numel() for name, neuron in snn.neurons.items()}
        ...     path.write_text(str(counts), encoding="utf-8")
        >>> export.EXPORTERS["thresholds"] = export.Exporter(write_thresholds, "thresholds as text")
        >>> ann = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> snn = convert.to_spiking(ann, torch.rand(32, 4))
        >>> file = export.export(snn, Path(tempfile.mkdtemp()) / "net.txt", to="thresholds")
        >>> file.read_text(encoding="utf-8")
        "{'1': 8}"
        >>> del export.EXPORTERS["thresholds"]
    """

    write: Write
    description: str = ""
    check: Check = _writable_anywhere
    verify: Mapping[str, Verify] = field(default_factory=dict)
    read_hint: str = ""
    chips: bool = False


class _Fixed(nn.Module):
    """The spiking reading for one T, never cut into smaller batches: that would fix the batch size."""

    def __init__(self, snn: SpikingNetwork) -> None:
        super().__init__()
        self.snn = snn

    def forward(self, *inputs: Tensor) -> Any:
        return self.snn(*inputs, at_once=True)


def to_pt2(snn: SpikingNetwork, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the network's spiking reading, at its present T, look-ahead and spike kind, with torch.export.

    The program takes (B, ...) for any B and gives the mean of the last layer over T steps; it is loaded again and
    compared with the network before the file gets its name. `speedysnn.json` in it states T, look-ahead and latency.

    Args:
        snn: the network.
        path: a file name that ends in .pt2.
        overwrite: replace a file that is there.

    Returns:
        The path that was written.

    Raises:
        ArtifactError: another suffix, something is there already, torch.export gives up, or the program differs.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from speedysnn import convert, export
        >>> _ = torch.manual_seed(0)
        >>> ann = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> snn = convert.to_spiking(ann, torch.rand(32, 4), timesteps=2)
        >>> export.to_pt2(snn, Path(tempfile.mkdtemp()) / "net.pt2").name
        'net.pt2'
    """
    target = Path(path)
    check_pt2(target, overwrite)
    with scratch_beside(target.absolute()) as scratch:
        _write(snn, _random_inputs(snn), str(scratch / target.name))
        (scratch / target.name).replace(target)
    return target


def check_pt2(target: Path, overwrite: bool) -> None:
    """Refuse a target that `to_pt2` would refuse.

    Raises:
        ArtifactError: another suffix, a folder, or a file that is there while `overwrite` is off.
    """
    check_target(target, SUFFIX, overwrite)


def verify_pt2(snn: SpikingNetwork, target: Path) -> None:
    """Load the program and compare its answers to random inputs with the network's.

    Raises:
        ArtifactError: the program cannot be loaded, or its answers differ.
    """
    inputs = _random_inputs(snn)
    with torch.no_grad(), snn.reading("spiking"), using("reference"):
        expected = snn(*inputs)
    try:
        again = torch.export.load(str(target)).module()
    except (OSError, RuntimeError, ValueError) as err:
        raise ArtifactError(f"{target}: torch.export cannot load it: {reason(err)}") from err
    with torch.no_grad():
        _require_same(again(*inputs), expected)


def _random_inputs(snn: SpikingNetwork) -> tuple[Tensor, ...]:
    """Two samples for each input, the same at every call, on the network's device."""
    generator, device = torch.Generator().manual_seed(0), next(snn.parameters()).device
    return tuple(torch.rand(2, *shape, generator=generator).to(device) for shape in snn.input_shapes)


def _write(snn: SpikingNetwork, inputs: tuple[Tensor, ...], file: str) -> None:
    dynamic = (tuple({0: torch.export.Dim.AUTO} for _ in inputs),)
    facts = {"timesteps": snn.timesteps, "latency": snn.latency, "depth": snn.depth,
             "neurons": {name: {"spikes": n.spikes, "delay": n.delay} for name, n in snn.neurons.items()}}  # fmt: skip
    with warnings.catch_warnings(), torch.no_grad(), snn.reading("spiking"), using("reference"):
        warnings.simplefilter("ignore")
        expected = snn(*inputs)
        try:
            program = torch.export.export(_Fixed(snn), inputs, dynamic_shapes=dynamic, strict=False)
            program.graph.eliminate_dead_code()  # torch 2.6 records questions about types, and cannot read them back
        except Exception as err:  # torch.export raises errors of many kinds, some of which have no public class
            raise ArtifactError(f"torch.export cannot write this network: {reason(err)}") from err
        torch.export.save(program, file, extra_files={FACTS: json.dumps(facts)})
        again = torch.export.load(file).module()(*inputs)
    _require_same(again, expected)


def _require_same(again: Any, expected: Any) -> None:
    error = max(_differences(again, expected), default=0.0)
    if not error <= TOLERANCE:
        raise ArtifactError(f"the exported program differs from the network by {error:.1e}, expected {TOLERANCE:.0e}")


def _differences(ours: Any, theirs: Any) -> list[float]:
    """Relative differences, tensor by tensor."""
    pairs = zip(torch.utils._pytree.tree_leaves(ours), torch.utils._pytree.tree_leaves(theirs), strict=True)
    return [float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs]


# One row a format. A new one is its module and its row here.
EXPORTERS: dict[str, Exporter] = {
    "pt2": Exporter(to_pt2, "torch.export", check_pt2, {"torch": verify_pt2}, "torch.export.load({!r}).module()"),
    "nir": Exporter(to_nir, "neuromorphic intermediate representation", check_nir, READERS, "nir.read({!r})"),
    "c": Exporter(to_c, "C99 in whole numbers, a folder", check_c, {"c": verify_c}, "make -C {!r}", chips=True),
    "chip": Exporter(to_chip, "whole numbers, a folder", check_chip, {}, "speedysnn.integer.load({!r})", chips=True),
}


def export(
    snn: SpikingNetwork | Chip, path: str | Path, to: str = "pt2", *, overwrite: bool = False, verify: str | None = None
) -> Path:
    """Write a network in a format of `EXPORTERS`.

    Args:
        snn: the network, or for "c" a chip that `to_integer` made of it.
        path: the file or folder to write.
        to: the format: "pt2" (torch.export), "nir", "c", or one of the user's.
        overwrite: replace what is there.
        verify: a reader of the format that opens the result and compares it with the network: "torch" for pt2, "c"
            (the system's compiler) for c, one of `READERS` for nir. What was written stays where it differs, so that
            it can be looked into.

    Returns:
        The path that was written.

    Raises:
        InputError: an unknown format or reader, a reader that is not installed, or a chip for a format of float
            networks.
        ArtifactError: the path cannot be written, or what the reader makes of it differs.
        ConversionError: the format cannot say what the network does.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from speedysnn import convert, export
        >>> _ = torch.manual_seed(0)
        >>> ann = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> snn = convert.to_spiking(ann, torch.rand(32, 4), timesteps=4)
        >>> file = export.export(snn, Path(tempfile.mkdtemp()) / "net.pt2", to="pt2", verify="torch")
        >>> with torch.no_grad():
        ...     torch.export.load(file).module()(torch.rand(3, 4)).shape
        torch.Size([3, 2])
    """
    exporter, target = find_exporter(to, verify), Path(path)
    if isinstance(snn, Chip) and not exporter.chips:
        raise InputError(f'export: the format {to!r} takes the spiking network, got a chip; use to="c" for chips')
    exporter.check(target, overwrite)
    exporter.write(snn, target, overwrite=overwrite)
    if verify is not None:
        exporter.verify[verify](snn, target)
    return target


def find_exporter(to: str, verify: str | None = None) -> Exporter:
    """The row of a format, which has the reader that was asked for.

    Args:
        to: the format.
        verify: the name of a reader, None for none.

    Returns:
        The row of `EXPORTERS`.

    Raises:
        InputError: no such format, no such reader of it, or one that is not installed.

    Example:
        >>> from speedysnn import export
        >>> export.find_exporter("pt2", verify="torch").description
        'torch.export'
    """
    if to not in EXPORTERS:
        raise InputError(f"export: expected one of the formats {', '.join(EXPORTERS)}, got {to!r}")
    readers = EXPORTERS[to].verify
    if verify is not None and verify not in readers:
        known = f"expected one of {', '.join(readers)}" if readers else "the format has no reader to verify it with"
        raise InputError(f"export: verify={verify!r} is not known for the format {to!r}; {known}")
    reader = readers.get(verify) if verify is not None else None
    if isinstance(reader, Reader):
        reader.require()
    return EXPORTERS[to]
