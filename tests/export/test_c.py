"""The exported C program compiles strictly, is clean under sanitizers, and gives the integer reading's logits."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from speedysnn import convert, data, export
from speedysnn.assets.digits import load_digits_net
from speedysnn.errors import ArtifactError
from speedysnn.export.c import lines_of, raw_bytes, to_c
from speedysnn.integer import to_integer
from tests.material.integer_networks import Maker, images

NIGHTLY = pytest.mark.nightly
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
pytestmark = pytest.mark.skipif(not COMPILERS, reason="no C compiler")
SANITIZED = "-O1 -fsanitize=address,undefined -fno-sanitize-recover"


def built(folder: Path, compiler: str = COMPILERS[0] if COMPILERS else "", flags: str = "-O1") -> Path:
    """./net, built by the folder's own Makefile."""
    done = subprocess.run(["make", "-s", "-B", "-C", str(folder), f"CC={compiler}", f"CFLAGS={flags}", f"LDFLAGS={flags}"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "net"


def answers(program: Path, given: bytes) -> str:
    done = subprocess.run([str(program)], input=given, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def has_32_bits() -> bool:
    command = ["gcc", "-m32", "-x", "c", "-", "-o", "/dev/null"]
    return (
        bool(shutil.which("gcc"))
        and subprocess.run(
            command, input=b"#include <stdio.h>\nint main(void){return 0;}", capture_output=True
        ).returncode
        == 0
    )


def agrees(seed: int, folder: Path, compiler: str = COMPILERS[0] if COMPILERS else "", flags: str = "-O1") -> None:
    """A random network's C program against its integer reading; which bits it has depends on the seed."""
    bits, state = (2, 4, 8, 12)[seed % 4], (8, 12, 16, 32)[seed // 4 % 4]
    snn = Maker(seed).network()
    chip = to_integer(snn, bits, state, mean=0.4, std=0.25)
    x = images(snn, 6)
    program = built(to_c(chip, folder / "c", overwrite=True), compiler, flags)
    assert answers(program, raw_bytes(chip, x)) == lines_of(chip(x)), seed


@pytest.mark.parametrize("seed", range(30))
def test_random_networks_compile_and_agree(seed, tmp_path) -> None:
    flags = SANITIZED if seed % 3 == 0 else "-m32 -O1" if seed % 3 == 1 and has_32_bits() else "-O2"
    agrees(seed, tmp_path, COMPILERS[0] if flags != "-O2" else COMPILERS[-1], flags)


@NIGHTLY
@pytest.mark.parametrize("part", range(20))
def test_a_thousand_random_networks_compile_and_agree(part, tmp_path) -> None:
    for seed in range(1000 + 50 * part, 1050 + 50 * part):
        agrees(seed, tmp_path)


@pytest.mark.parametrize(("pool", "delay", "spikes", "state"),
                         [("avg", 0, "binary", 32), ("max", 1, "ternary", 16), ("avg", "full", "graded:3", 12),
                          ("max", 0, "power2:3", 16)])  # fmt: skip
def test_every_logit_of_the_digits(pool, delay, spikes, state, tmp_path) -> None:
    test = data.load("digits", "test")
    x = torch.stack([(test[i][0] * 255).round().to(torch.uint8) for i in range(len(test))])
    snn = convert.to_spiking(
        load_digits_net(pool), data.load("digits", "train"), timesteps=4, delay=delay, spikes=spikes
    )
    chip = to_integer(snn, state_bits=state)
    program = built(to_c(chip, tmp_path / "c"), flags="-O2")
    assert answers(program, raw_bytes(chip, x)) == lines_of(chip(x))


def small() -> object:
    torch.manual_seed(0)
    ann = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    return to_integer(convert.to_spiking(ann, torch.rand(32, 4), timesteps=4))


def test_half_an_image_is_an_error(tmp_path) -> None:
    program = built(to_c(small(), tmp_path / "c"))
    done = subprocess.run([str(program)], input=bytes(7), capture_output=True)
    assert done.returncode == 1
    assert b"3 of 4 bytes" in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_make_test_runs_the_vectors_and_a_second_export_replaces_what_make_built(tmp_path) -> None:
    folder = export.export(small(), tmp_path / "c", to="c", verify="c")
    done = subprocess.run(["make", "-s", "-C", str(folder), "test"], capture_output=True, text=True)
    assert done.stdout == "all logits agree\n"
    with pytest.raises(ArtifactError, match="overwrite"):
        to_c(small(), folder)
    to_c(small(), folder, overwrite=True)
    assert not (folder / "net").exists()


def test_other_things_in_the_folder_stay(tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ArtifactError, match="other files"):
        to_c(small(), tmp_path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_program_that_differs_is_found(tmp_path) -> None:
    folder = to_c(small(), tmp_path / "c")
    (folder / "expected.txt").write_text("1 2\n")
    with pytest.raises(ArtifactError, match="differ"):
        export.EXPORTERS["c"].verify["c"](small(), folder)
