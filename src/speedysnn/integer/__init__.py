"""The integer reading: a network in whole numbers, as a chip computes it, bit for bit, and its folder on disk.

A chip is saved as chip.json and numbers.safetensors: no pickle, no code, written whole.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as dump_arrays

from speedysnn.errors import ArtifactError, SpeedySNNError
from speedysnn.files import ODD
from speedysnn.files.atomic import replace_set
from speedysnn.integer.chip import Chip as Chip
from speedysnn.integer.chip import rounded_weights as rounded_weights
from speedysnn.integer.chip import to_integer as to_integer
from speedysnn.integer.profiles import PROFILES as PROFILES
from speedysnn.integer.profiles import Misfit as Misfit
from speedysnn.integer.profiles import Profile as Profile
from speedysnn.integer.profiles import misfits as misfits
from speedysnn.integer.program import KINDS, Operation
from speedysnn.integer.program import Program as Program

SCHEMA = "speedysnn-chip/1"
CHIP, NUMBERS = "chip.json", "numbers.safetensors"


def save(chip: Chip, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a chip to a folder, whole or not at all.

    Args:
        chip: the integer network.
        path: the folder, by custom NAME.chip.
        overwrite: replace a chip that is saved there.

    Returns:
        The folder.

    Raises:
        ArtifactError: something else is there, or it cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> import speedysnn
        >>> from speedysnn import integer
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> chip = speedysnn.to_integer(speedysnn.convert.to_spiking(net, torch.rand(32, 4), timesteps=4))
        >>> again = integer.load(integer.save(chip, Path(tempfile.mkdtemp()) / "net.chip"))
        >>> x = torch.randint(0, 256, (3, 4), dtype=torch.uint8)
        >>> torch.equal(again(x), chip(x))
        True
    """
    target = Path(path)
    check_chip(target, overwrite)
    arrays: dict[str, np.ndarray] = {"scale": np.ascontiguousarray(chip.program.scale)}
    rows = []
    for op in chip.program.operations:
        row: dict[str, Any] = {"kind": type(op).__name__}
        for field in dataclasses.fields(op):
            value = getattr(op, field.name)
            if isinstance(value, np.ndarray):
                arrays[f"{op.name}:{field.name}"] = np.ascontiguousarray(value)
            else:
                row[field.name] = value
        rows.append(row)
    numbers = dump_arrays(arrays)
    made = chip.program
    document = {
        "schema": SCHEMA, "timesteps": made.timesteps, "weight_bits": made.weight_bits, "state_bits": made.state_bits,
        "facts": made.facts, "operations": rows, "numbers_sha256": hashlib.sha256(numbers).hexdigest(),
    }  # fmt: skip
    try:
        replace_set(target, {CHIP: json.dumps(document, indent=1).encode(), NUMBERS: numbers}, (CHIP, NUMBERS))
    except OSError as err:
        raise ArtifactError(f"{target}: cannot be written ({err.strerror or err})") from None
    return target


def check_chip(target: Path, overwrite: bool) -> None:
    """Refuse a target that `save` would refuse.

    Raises:
        ArtifactError: something that is no chip is there, or one is and `overwrite` is off.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not (target / CHIP).is_file():
        raise ArtifactError(f"{target}: something that is no saved chip is there; choose another name")
    if not overwrite:
        raise ArtifactError(f"{target}: a chip is saved there already; choose another name, or pass overwrite")


def is_chip(path: Path) -> bool:
    """Whether a saved chip is there."""
    return (path / CHIP).is_file()


def load(path: str | Path) -> Chip:
    """Read a chip that `save` wrote.

    Args:
        path: the folder.

    Raises:
        ArtifactError: it is missing, damaged, or of a version that this one cannot read.
    """
    folder = Path(path)
    if not is_chip(folder) or not (folder / NUMBERS).is_file():
        raise ArtifactError(f"{folder}: expected a folder made by integer.save, with {CHIP} and {NUMBERS} in it")
    try:
        document = json.loads((folder / CHIP).read_text(encoding="utf-8"))
        raw = (folder / NUMBERS).read_bytes()
        if document["schema"] != SCHEMA:
            raise ArtifactError(f"expected the schema {SCHEMA!r}, got {document['schema']!r}; make the chip again")
        if hashlib.sha256(raw).hexdigest() != document["numbers_sha256"]:
            raise ArtifactError(f"{NUMBERS}: its checksum is not the one in {CHIP}; the file is damaged")
        return _built(document, load_arrays(raw))
    except ArtifactError as err:
        raise ArtifactError(f"{folder}: {err}") from None
    except (OSError, SafetensorError, SpeedySNNError, *ODD) as err:
        raise ArtifactError(f"{folder}: not a usable chip ({type(err).__name__}: {err})") from None


def _built(document: dict[str, Any], arrays: dict[str, np.ndarray]) -> Chip:
    operations = tuple(_operation(row, arrays) for row in document["operations"])
    known: set[str] = set()
    for op in operations:
        if op.name in known or not known.issuperset(op.sources):
            raise ArtifactError(f"operation {op.name!r} is there twice, or reads what no earlier one makes")
        known.add(op.name)
    numbers = [document[name] for name in ("timesteps", "weight_bits", "state_bits")]
    if not all(isinstance(n, int) and 1 <= n <= most for n, most in zip(numbers, (2**16, 16, 32), strict=True)):
        raise ArtifactError(f"timesteps, weight_bits and state_bits are {numbers}, expected whole numbers")
    steps, weight_bits, state_bits = numbers
    chip = Chip(Program(operations, steps, weight_bits, state_bits, arrays["scale"], dict(document["facts"])))
    given = chip.program.input
    lead = (chip.timesteps, 1) if given.timing == "steps" else (1,)
    for op in chip.program.neurons:
        if op.threshold.min() < 1:
            raise ArtifactError(f"neuron {op.name!r} has a threshold below 1")
    out = chip(torch.full((*lead, *given.shape), given.low, dtype=torch.int64))
    if out.shape[1:] != chip.program.scale.shape:
        raise ArtifactError(f"its logits have the shape {tuple(out.shape[1:])}, its scales {chip.program.scale.shape}")
    return chip


def _operation(row: dict[str, Any], arrays: dict[str, np.ndarray]) -> Operation:
    kind = KINDS[row["kind"]]
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        key = f"{row['name']}:{field.name}"
        fields[field.name] = arrays[key] if key in arrays else _tupled(row[field.name])
        if isinstance(fields[field.name], np.ndarray) and field.name != "unit" and fields[field.name].dtype.kind != "i":
            raise ArtifactError(f"{key} holds {fields[field.name].dtype}, expected whole numbers")
    return kind(**fields)


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value
