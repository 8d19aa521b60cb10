"""A spiking network as an exported program (.pt2): ATen operators for a fixed T, run without this package."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.errors import ArtifactError
from speedysnn.files import reason
from speedysnn.files.atomic import check_target, scratch_beside
from speedysnn.kernels import using
from speedysnn.network import SpikingNetwork

SUFFIX, FACTS = ".pt2", "speedysnn.json"
TOLERANCE = 1e-6


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
