"""A chip as a folder of plain C99: tables, kernels driven by events, a main program, test vectors and a README."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speedysnn.errors import ArtifactError
from speedysnn.export.c_layout import BYTES, Layout
from speedysnn.export.c_text import Text
from speedysnn.files.atomic import replace_set
from speedysnn.integer import save
from speedysnn.integer.chip import Chip, to_integer
from speedysnn.integer.program import Conv, Linear
from speedysnn.network import SpikingNetwork

RUNTIME = Path(__file__).parent / "runtime"
FIXED = ("kernels.h", "weights.inc.h", "moves.inc.h", "cells.inc.h", "main.c", "Makefile")
MADE = ("net.c", "net.h", "tables.h", "vectors.bin", "expected.txt", "README.md")
BUILT = ("net",)  # by make, in the folder
VECTORS = 8


def to_c(
    chip: Chip | SpikingNetwork,
    path: str | Path,
    *,
    overwrite: bool = False,
    images: Tensor | NDArray[Any] | None = None,
) -> Path:
    """Write a chip as C99 that needs no library and no malloc.

    `make` in the folder builds `./net`, which reads raw images from standard input, uint8 (channels, height, width) and
    as many as come, and prints one line of integer logits for each; `make test` compares it with the test vectors.

    Args:
        chip: the chip; a spiking network is first made one by `to_integer` with its defaults.
        path: a folder that is new, empty, or was written by this function.
        overwrite: replace what this function wrote there.
        images: the test vectors, as the chip takes them; by default noise.

    Returns:
        The folder.

    Raises:
        ArtifactError: something else is there, or it cannot be written.
        ConversionError: an operation has no kernel.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> import speedysnn
        >>> from speedysnn import convert, export
        >>> ann = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> chip = speedysnn.to_integer(convert.to_spiking(ann, torch.rand(32, 4), timesteps=4))
        >>> folder = export.to_c(chip, Path(tempfile.mkdtemp()) / "net_c")
        >>> sorted(file.name for file in folder.iterdir())[:3]
        ['Makefile', 'README.md', 'cells.inc.h']
    """
    target = Path(path)
    check_c(target, overwrite)
    files = c_files(chip if isinstance(chip, Chip) else to_integer(chip), images)
    try:
        replace_set(target, files, (*FIXED, *MADE, *BUILT))
    except OSError as err:
        raise ArtifactError(f"{target}: cannot be written ({err.strerror or err})") from None
    return target


def to_chip(chip: Chip | SpikingNetwork, path: Path, *, overwrite: bool = False) -> Path:
    """Save a chip; a spiking network is first made one by `to_integer` with its defaults; see `integer.save`."""
    return save(chip if isinstance(chip, Chip) else to_integer(chip), path, overwrite=overwrite)


def check_c(target: Path, overwrite: bool) -> None:
    """Refuse a target that `to_c` would refuse.

    Raises:
        ArtifactError: a file, a folder with other things in it, or an earlier export while `overwrite` is off.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise ArtifactError(f"{target}: a file is there; give a folder for the C program")
    there = {path.name for path in target.iterdir()}
    if there and "net.c" not in there:
        raise ArtifactError(f"{target}: the folder holds other files; give a new or empty folder for the C program")
    if there and not overwrite:
        raise ArtifactError(f"{target}: a C program is there already; choose another name, or pass overwrite")


def c_files(chip: Chip, images: Tensor | NDArray[Any] | None = None) -> dict[str, bytes]:
    """The files of a chip's C program by name."""
    layout = Layout(chip.program, chip.ranges)
    text = Text(layout)
    given = _noise(chip) if images is None else chip.accepted(images)
    source, tables = text.source(), text.tables()
    return {
        **{name: (RUNTIME / name).read_bytes() for name in FIXED},
        "net.c": source.encode(),
        "net.h": text.header().encode(),
        "tables.h": tables.encode(),
        "vectors.bin": raw_bytes(chip, given),
        "expected.txt": lines_of(chip(given)).encode(),
        "README.md": _readme(chip, layout, text).encode(),
    }


def raw_bytes(chip: Chip, images: Tensor) -> bytes:
    """Images as the C program reads them: one after the other, the steps of an event input one behind the other."""
    x = images.transpose(0, 1) if chip.program.input.timing == "steps" else images
    return x.to(torch.uint8).contiguous().numpy().tobytes()


def lines_of(logits: Tensor) -> str:
    """Logits as the C program prints them."""
    return "".join(" ".join(map(str, row)) + "\n" for row in logits.flatten(1).tolist())


def _noise(chip: Chip) -> Tensor:
    given, generator = chip.program.input, np.random.default_rng(0)
    lead = (chip.timesteps, VECTORS) if given.timing == "steps" else (VECTORS,)
    high = 3 if given.timing == "steps" else 256
    return torch.from_numpy(generator.integers(0, high, (*lead, *given.shape), dtype=np.uint8))


def verify_c(chip: Chip | SpikingNetwork, target: Path) -> None:
    """Build the program with the system's compiler and compare it with the integer reading on its test vectors.

    Raises:
        ArtifactError: there is no compiler, it does not build, or a logit differs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "net"
        command = ["cc", "-std=c99", "-O2", "-o", str(program), str(target / "net.c"), str(target / "main.c")]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise ArtifactError(
                "verify: there is no C compiler `cc`; install gcc or clang, or run make test yourself"
            ) from None
        except subprocess.CalledProcessError as err:
            raise ArtifactError(f"{target}: it does not build: {err.stderr.strip()[:500]}") from None
        given = (target / "vectors.bin").read_bytes()
        answered = subprocess.run([str(program)], input=given, check=True, capture_output=True).stdout.decode()
    if answered != (target / "expected.txt").read_text(encoding="utf-8"):
        raise ArtifactError(f"{target}: the C program's logits differ from the integer reading's on vectors.bin")


def _readme(chip: Chip, layout: Layout, text: Text) -> str:
    program, given = chip.program, chip.program.input
    ram = sum(BYTES[kind] * size for kind, size in layout.sizes.items())
    shape = " x ".join(map(str, given.shape))
    frames = f"{program.timesteps} frames of " if given.timing == "steps" else ""
    scales = ", ".join(f"{value:.9g}" for value in program.scale.reshape(-1))
    rows = "\n".join(f"| {row.layer} | {row.neurons} | {row.threshold_min} to {row.threshold_max} | {row.bits_needed} |"
                     for row in chip.report.itertuples())  # fmt: skip
    return f"""# A spiking network in C99

Made by speedysnn. `make` builds `./net`, `make test` compares it with the integer reading on {VECTORS} test vectors.

    ./net < images.bin

reads raw bytes, {frames}{shape} for each image, and prints a line of {layout.output.size} integer logits for each. A
logit times its scale is the source network's:

    {scales}

| | |
|---|---|
| steps T | {program.timesteps} |
| weights | {program.weight_bits} bits |
| states | {program.state_bits} bits |
| flash: tables | {text.flash:,} bytes |
| RAM: static arrays | {ram:,} bytes |
| multiply-adds for an image, were every input to fire at every step | {operations(chip):,} |

The kernels skip inputs that are zero, so that an image takes the share of them that fires.

| layer | neurons | threshold | bits that its state can need |
|---|---|---|---|
{rows}

A state that would leave its {program.state_bits} bits stays at the end of its range; nothing wraps around.
"""


def operations(chip: Chip) -> int:
    """Multiply-adds for an image, were every input to fire at every step."""
    total = 0
    for op in chip.program.operations:
        if isinstance(op, Conv | Linear):
            times = chip.timesteps if op.timing == "steps" else 1
            total += times * op.size * int(np.prod(op.weight.shape[1:]))
    return total
