"""Every backend of the neuron against the reference: bit for bit forward, to 1e-6 relative backward."""

import importlib
import inspect
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from speedysnn.bench.scaling import make
from speedysnn.errors import InputError
from speedysnn.kernels import BACKENDS, Backend, KernelWarning, Rule, multistep, reference, triton_backend, using
from speedysnn.kernels.jit import AVAILABLE
from speedysnn.neurons import Delay, Reading
from speedysnn.surrogate import SURROGATES

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="numba is not installed")

SHAPES = {
    "channels first": ((2, 5, 7, 3), 1, torch.contiguous_format),
    "channels last": ((2, 5, 7, 3), 1, torch.channels_last),
    "many channels": ((2, 3000), 1, torch.contiguous_format),
    "features last": ((2, 4, 6), 2, torch.contiguous_format),
    "one neuron": ((1, 1), 1, torch.contiguous_format),
    "several blocks": ((3, 8, 40, 11), 1, torch.channels_last),
    "several alike": ((3, 8, 32, 8), 1, torch.contiguous_format),  # a block is a whole period of the thetas
}
KINDS = {"binary": (0, 1, False), "ternary": (-1, 1, False), "graded": (0, 3, False), "signed": (0, 2, True),
         "powers": (-4, 4, False), "signed powers": (-4, 4, True)}  # fmt: skip


def rule_of(steps: int, delay: int, kind: str, surrogate: str = "rectangle", detach: bool = False) -> Rule:
    lowest, highest, signed = KINDS[kind]
    return Rule(steps, min(delay, steps), lowest, highest, surrogate, 0.7, detach, signed)


def case(
    seed: int, shape: str, steps: int, constant: bool, dtype: torch.dtype, per: str
) -> tuple[Tensor, Tensor, Tensor]:
    size, dim, layout = SHAPES[shape]
    g = torch.Generator().manual_seed(seed)
    drive = torch.randn((size[0] * (1 if constant else steps), *size[1:]), generator=g) + 0.3
    view = [1] * len(size)
    view[dim] = -1
    theta = torch.rand(size[dim], generator=g).add(0.2).view(view) if per == "channel" else torch.tensor(0.8)
    start = torch.rand(size[dim], generator=g).view(view) if seed % 2 else torch.tensor(0.5)
    if len(size) == 4:
        drive = drive.contiguous(memory_format=layout)
    return drive.to(dtype), theta, start


def run(backend: str, drive: Tensor, theta: Tensor, start: Tensor, rule: Rule, constant: bool) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (drive, theta, start)]
    out = multistep(*leaves, rule, constant=constant, backend=backend)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from(sorted(SHAPES)), st.integers(1, 9), st.integers(0, 9),
    st.sampled_from(sorted(KINDS)), st.booleans(), st.booleans(), st.sampled_from(sorted(SURROGATES)),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.sampled_from(["layer", "channel"]),
)  # fmt: skip
def test_the_compiled_neuron_equals_the_reference(
    seed: int, shape: str, steps: int, delay: int, kind: str, constant: bool, detach: bool, surrogate: str,
    dtype: torch.dtype, per: str,
) -> None:  # fmt: skip
    tensors, rule = case(seed, shape, steps, constant, dtype, per), rule_of(steps, delay, kind, surrogate, detach)
    ours, expected = (run(backend, *tensors, rule, constant) for backend in ("cpu", "reference"))
    assert torch.equal(ours[0], expected[0])
    assert ours[0].stride() == expected[0].stride() or not constant
    for mine, theirs in zip(ours[1:], expected[1:], strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        # sums over all neurons are rounded in another order: the scale is what was added up
        scale = theirs.double().norm() + (0 if theirs.shape == tensors[0].shape else tensors[0].numel() ** 0.5)
        # a bfloat16 gradient may be rounded to the next number where float32 ones differ in the last bit
        tolerance = 1e-6 if mine.dtype != torch.bfloat16 else 2e-3
        assert (mine.double() - theirs.double()).norm() <= tolerance * scale.clamp_min(1e-9)


CHECKS = {
    "the neuron, some cases": ("triton_check.main('some')", "72"),
    "counting": ("triton_counting_check.main()", "72"),
    "sums": ("triton_sums_check.main()", "60"),
    "the quantizer": ("triton_quantizer_check.main()", "48"),
    "the neuron, all cases": ("triton_check.main('all')", "216"),
}


@pytest.mark.parametrize("name", [*list(CHECKS)[:-1], pytest.param(list(CHECKS)[-1], marks=pytest.mark.nightly)])
def test_triton_equals_the_reference_in_its_interpreter(name: str) -> None:
    """In a process of its own: Triton reads its variable once, when kernels are defined."""
    pytest.importorskip("triton")
    call, cases = CHECKS[name]
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import {call.partition('.')[0]}; {call}"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(Path(__file__).parents[1] / "material")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == cases, done.stdout


KERNELS = {
    "forward": "x theta start amplitude factors out",
    "note": "x theta start factors membranes counts",
    "adjoint": "grad theta start amplitude factors shape membranes counts grad_x to_theta to_start to_amplitude",
    "count_bins": "x",
    "trains": "out drive theta amplitude",
    "errors": "z held a twin drive theta start amplitude fired",
    "units": "z a fired",
    "quantizer forward": "z theta start amplitude out",
    "quantizer backward": "grad z theta start amplitude to_z sums",
}
FILES = dict.fromkeys(("trains", "errors", "units"), "analysis.noise.triton_kernels")  # the others are the library's own
NAMES = {"quantizer forward": "quantize_forward", "quantizer backward": "quantize_backward"}
WHOLE, EXACT = ("table", "tables", "peaks", "worst", "pulses", "when", "fires", "full", "peak"), ("found", "total")
NUMBERS = ("lo", "hi", "low", "high", "seen", "least", "most", "emitted", "many", "factor", "lowest", "highest",
           "timesteps", "max_count", "min_count", "source_floor", "source_ceiling")  # fmt: skip


@pytest.mark.parametrize("key", sorted(KERNELS))
@pytest.mark.parametrize(
    ("real", "constant", "signed", "powers"),
    [("fp32", False, False, 0), ("fp64", True, False, 0), ("fp32", False, True, 0), ("fp32", False, True, 3)],
)
def test_the_triton_kernels_compile_for_a_gpu_where_there_is_none(
    key: str, real: str, constant: bool, signed: bool, powers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes what the compiler refuses, so that it alone proves nothing of a GPU."""
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    if "constexprs" not in inspect.signature(compiler.ASTSource).parameters:
        pytest.skip("this Triton compiles ahead of time in another way")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if real == "fp64" and key in ("count_bins", "trains", "errors", "units"):
        pytest.skip("it takes float32")
    module, name = importlib.import_module(f"speedysnn.{FILES.get(key, 'kernels.triton_kernels')}"), NAMES.get(key, key)
    kernel = getattr(module, name)
    if powers and "powers" not in kernel.arg_names:
        pytest.skip("it knows no powers of two")
    choices = {"powers": powers, "constant": constant, "take_back": constant, "double": real == "fp64", "block": 512,
               "max_spikes": 3,
               "kind": 2, "signed": signed, "codes": 4096, "shift": 19, "across": signed, "tall": 16, "wide": 16,
               "bins": 64, "per": 32, "lags": signed, "clip": not signed,
               "separate": signed or constant}  # fmt: skip
    types = {**dict.fromkeys(WHOLE, "*i32"), **dict.fromkeys(EXACT, "*fp64"), **dict.fromkeys(NUMBERS, "fp32"),
             **dict.fromkeys(KERNELS[key].split(), f"*{real}")}  # fmt: skip
    fixed = {(place,): choices[word] for place, word in enumerate(kernel.arg_names) if word in choices}
    signature = {word: "constexpr" if word in choices else types.get(word, "i32") for word in kernel.arg_names}
    source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    made = compiler.compile(source, target=backends.GPUTarget("cuda", 90, 32))
    assert f".entry {name}" in made.asm["ptx"]


def test_compiled_code_that_fires_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one Triton's was: it summed the inputs up from the first at every step."""
    pytest.importorskip("triton")
    right = reference.multistep
    monkeypatch.setattr(triton_backend, "backward", _gradients)
    monkeypatch.setattr(triton_backend, "forward", right)
    assert triton_backend._wrong("cpu") == ""
    monkeypatch.setattr(triton_backend, "backward", lambda *given: [x + 0.1 for x in _gradients(*given)])
    assert "gradients of its compiled code" in triton_backend._wrong("cpu")
    monkeypatch.setattr(triton_backend, "forward", lambda drive, *given: right(drive.roll(1, 0), *given))
    assert "spikes of its compiled code" in triton_backend._wrong("cpu")


def test_the_check_of_compiled_code_runs_under_a_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    found: list[bool] = []
    monkeypatch.setattr(triton_backend, "_wrong", lambda device: found.append(bool(torch.ones(2).sum() == 2)) or "")
    triton_backend._fault.cache_clear()
    try:
        with FakeTensorMode(), torch.inference_mode():
            assert triton_backend._fault("cpu") == ""
    finally:
        triton_backend._fault.cache_clear()
    assert found == [True]


def _gradients(grad: Tensor, drive: Tensor, theta: Tensor, start: Tensor, rule: Rule, constant: bool, unit: Tensor | None):
    leaves = [x.clone().requires_grad_() for x in (drive, theta, start, unit) if x is not None]
    return [*torch.autograd.grad(reference.multistep(*leaves[:3], rule, constant, *leaves[3:]), leaves, grad)]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_block_has_gradients_where_blocks_are_alike(kind: str) -> None:
    tensors, rule = case(1, "several alike", 4, False, torch.float32, "channel"), rule_of(4, 1, kind)
    ours, expected = (run(backend, *tensors, rule, False) for backend in ("cpu", "reference"))
    assert torch.equal(ours[0], expected[0])
    assert torch.allclose(ours[1], expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_drives_that_do_not_lie_in_rows(layout: str) -> None:
    g = torch.Generator().manual_seed(0)
    drive = {
        "transposed": torch.randn(5, 8, 6, generator=g).transpose(0, 1),
        "strided": torch.randn(16, 5, 6, generator=g)[::2],
        "expanded": torch.randn(8, 5, 1, generator=g).expand(8, 5, 6),
    }[layout]
    theta, rule = torch.rand(1, 5, 1, generator=g) + 0.3, Rule(4)
    half = torch.tensor(0.5)
    assert torch.equal(
        multistep(drive, theta, half, rule, backend="cpu"), multistep(drive, theta, half, rule, backend="reference")
    )


def test_nan_stays_nan_and_no_neuron_is_no_neuron() -> None:
    drive = torch.tensor([[0.4, float("nan")], [0.9, 1.0]])
    for dtype in (torch.float32, torch.bfloat16):
        out = multistep(drive.to(dtype), torch.tensor(1.0), torch.tensor(0.5), Rule(2), backend="cpu")
        assert out[:, 1].isnan().all()
        assert out[:, 0].isfinite().all()
    empty = torch.zeros(0, 3, requires_grad=True)
    multistep(empty, torch.tensor(1.0), torch.tensor(0.5), Rule(2), backend="cpu").sum().backward()
    assert empty.grad is not None


def test_threads_share_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speedysnn.kernels.numba_backend._SHARE", 1000)
    tensors, rule = case(1, "several blocks", 5, False, torch.float32, "channel"), Rule(5)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        ours = run("cpu", *tensors, rule, False)
    finally:
        torch.set_num_threads(before)
    expected = run("reference", *tensors, rule, False)
    assert torch.equal(ours[0], expected[0])
    assert torch.allclose(ours[2], expected[2], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # from inside the check itself
@pytest.mark.parametrize("shape", ["channels first", "channels last", "transposed"])
@pytest.mark.parametrize("constant", [False, True])
def test_torch_accepts_the_operator(constant: bool, shape: str) -> None:
    drive, *rest = case(1, shape.replace("transposed", "channels first"), 3, constant, torch.float32, "channel")
    if shape == "transposed":
        drive = drive.transpose(2, 3)[:, :, ::2]  # neither dense nor rows first
    rule, leaves = Rule(3, 1), [x.clone().requires_grad_() for x in rest]
    inputs = (drive.detach().requires_grad_(), *leaves)
    torch.library.opcheck(torch.ops.speedysnn.multistep, (*inputs, "cpu", constant, *rule.values()))
    real = torch.ops.speedysnn.multistep(drive, *rest, "cpu", constant, *rule.values())
    with FakeTensorMode() as mode:
        fake = torch.ops.speedysnn.multistep(*map(mode.from_tensor, (drive, *rest)), "cpu", constant, *rule.values())
    assert fake.stride() == real.stride()


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # of torch, on Python 3.13.0
def test_compiled_graphs_hold_the_operator_as_one_call() -> None:
    drive, theta, start = case(0, "channels first", 4, False, torch.float32, "channel")

    def layer(x: Tensor) -> Tensor:
        return multistep(x * 2, theta, start, Rule(4), backend="cpu") + 1

    graphs = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    assert torch.equal(torch.compile(layer, backend=keep, fullgraph=True)(drive), layer(drive))
    assert sum("multistep" in str(target) for target in graphs[0]) == 1


@pytest.mark.parametrize(("reading", "delay"), [("analog", 0), ("quantized", 0), ("spiking", 0), ("spiking", "full")])
def test_a_network_is_one_graph_to_a_compiler(reading: Reading, delay: Delay) -> None:
    snn, x = make("digits", 2, 4, None)
    snn.set_delay(delay)
    with torch.no_grad(), snn.reading(reading):
        out = torch.compile(snn, backend="eager", fullgraph=True)(x)
        assert torch.allclose(out, snn(x), rtol=1e-4, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_a_compiled_network_gives_the_same_answers() -> None:
    snn, x = make("resnet20", 2, 4, None)
    with torch.no_grad():
        assert torch.allclose(torch.compile(snn)(x), snn(x), rtol=1e-4, atol=1e-5)


def test_a_backend_that_cannot_run_says_so_once_and_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speedysnn.kernels.dispatch._warned", set())
    drive, rule, half = torch.randn(4, 3).to(torch.float16), Rule(2), torch.tensor(0.5)
    with pytest.warns(KernelWarning, match=r"'cpu' cannot run \(torch.float16 is not one of its types\)"):
        out = multistep(drive, torch.tensor(1.0), half, rule, backend="cpu")
    assert torch.equal(out, multistep(drive, torch.tensor(1.0), half, rule, backend="reference"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        multistep(drive, torch.tensor(1.0), half, rule, backend="cpu")
        multistep(drive, torch.tensor(1.0), half, rule)


def test_the_environment_and_the_block_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def forward(drive: Tensor, theta: Tensor, start: Tensor, rule: Rule, constant: bool) -> Tensor:
        calls.append("mine")
        return torch.zeros_like(drive)

    monkeypatch.setitem(BACKENDS, "mine", Backend(forward, BACKENDS["cpu"].backward, lambda *_: ""))
    drive, one, half = torch.ones(4, 3), torch.tensor(1.0), torch.tensor(0.5)
    assert not multistep(drive, one, half, Rule(2)).any()  # user entries win
    monkeypatch.setenv("SPEEDYSNN_KERNEL", "reference")
    assert multistep(drive, one, half, Rule(2)).any()
    with using("mine"):
        assert not multistep(drive, one, half, Rule(2)).any()
    assert calls == ["mine", "mine"]
    monkeypatch.setenv("SPEEDYSNN_KERNEL", "abacus")
    with pytest.raises(InputError, match="unknown kernel 'abacus'"):
        multistep(drive, one, half, Rule(2))
