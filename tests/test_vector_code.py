"""Where numba does not compile the vector code, plain numba does its work, with a warning and the same neurons."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from speedysnn.kernels import jit
from speedysnn.kernels.jit import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="numba is not installed")

BREAK = {
    "gone": "import numba.extending; del numba.extending.intrinsic",
    "refused": (  # numba itself makes no pointers to vectors
        "import llvmlite.ir as ir\n"
        "def as_pointer(*_, **__): raise NotImplementedError('no typed pointers')\n"
        "ir.VectorType.as_pointer = as_pointer"
    ),
}
RUN = """
import warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    from speedysnn.kernels import jit
assert not jit.WORKS
(said,) = [str(each.message) for each in told if "vector code" in str(each.message)]
assert "plain numba runs instead" in said
import torch
from speedysnn import settings
from speedysnn.kernels import Rule, multistep, reference
from speedysnn.kernels import numba_backend
from speedysnn.kernels import sparse_conv
from speedysnn.kernels.sparse_conv import autograd, bitpack, winograd
drive = torch.randn(4 * 3, 37)
theta, v_init = torch.rand(37) + 0.5, torch.full((37,), 0.5)
for constant in (False, True):
    rule, x = Rule(4), drive[:3] if constant else drive
    assert not numba_backend.refuses(x, theta, v_init, rule)
    assert torch.equal(multistep(x, theta, v_init, rule, constant=constant, backend="cpu"),
                       reference.multistep(x, theta, v_init, rule, constant))
found = []
for name in ("cpu", "reference"):
    inputs = [value.clone().requires_grad_() for value in (drive, theta)]
    out = multistep(inputs[0], inputs[1], v_init, Rule(4), backend=name)
    found.append(torch.autograd.grad(out.square().sum(), inputs))
for got, wanted in zip(*found):
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
x, weight = torch.rand(2, 16, 8, 8).contiguous(memory_format=torch.channels_last), torch.rand(16, 16, 3, 3)
assert not sparse_conv.supports(x, weight, {"groups": 1, "dilation": 1, "padding": 1})
assert not autograd.supports_gradient((3, 3), (1, 1), (1, 1)) and bitpack.pack(x) is None
assert not winograd.supports((16, 16), (3, 3), (1, 1), (1, 1), (8, 8))
"""


@pytest.mark.parametrize("how", BREAK)
def test_plain_numba_does_its_work(how, tmp_path) -> None:
    source = str(Path(__file__).resolve().parents[1] / "src")
    environment = {
        **os.environ, "SPEEDYSNN_CACHE": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    code = [sys.executable, "-c", f"{BREAK[how]}\n{RUN}"]
    run = subprocess.run(code, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_vector_code_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Compiled without an error, but the numbers stay as they were."""
    monkeypatch.setenv("SPEEDYSNN_CACHE", str(tmp_path))
    monkeypatch.setattr(jit, "_trial", lambda context, builder, signature, args: context.get_dummy_value())
    with pytest.warns(RuntimeWarning, match=r"\(ArithmeticError: its results are wrong\): plain numba runs instead"):
        assert not jit._works()


def test_every_file_of_the_kernels_names_their_machine_code(tmp_path: Path) -> None:
    """Also those of sub-packages: numba itself looks at the file of the function that is called, and at no other."""
    folder = Path(jit.__file__).parent
    assert {file.relative_to(folder).parent.name for file in jit.KERNEL_FILES} >= {"", "sparse_conv"}
    assert jit.state_of(jit.kernel_files(folder)) == jit.KERNELS
    copy = shutil.copytree(folder, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    assert jit.state_of(jit.kernel_files(copy)) == jit.KERNELS
    for name in ("numba_neuron.py", "sparse_conv/llvm_events.py", "layout.py"):
        before = jit.state_of(jit.kernel_files(copy))
        (copy / name).write_text((copy / name).read_text() + "\n")
        assert jit.state_of(jit.kernel_files(copy)) != before


def test_machine_code_lies_in_a_folder_of_that_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPEEDYSNN_CACHE", str(tmp_path))
    kernel = jit.compiled(_double)
    other = jit.together([Path(__file__)])(_double)
    assert kernel(2.0) == other(2.0) == 4.0
    own = jit.state_of([Path(__file__), *jit.KERNEL_FILES])
    assert sorted(path.name for path in (tmp_path / "kernels").iterdir()) == sorted([jit.KERNELS, own])
    assert all(any(path.rglob("*.nbc")) for path in (tmp_path / "kernels").iterdir())


def _double(x: float) -> float:
    return x * 2
