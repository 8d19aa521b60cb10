"""An amplitude that is not the threshold: every backend alike, and gradients by their definition."""

import numpy as np
import pytest
import torch
from torch import Tensor

from speedysnn import IFNeuron
from speedysnn.kernels import BACKENDS, Backend, Rule, multistep, over_time, reference, with_total
from speedysnn.kernels import quantizer as kernels
from speedysnn.kernels.jit import AVAILABLE
from speedysnn.kernels.quantizer import quantize, step_gradient

KINDS = {"binary": (0, 1, False), "ternary": (-1, 1, False), "graded": (0, 3, False), "signed": (0, 2, True),
         "powers": (-4, 4, False), "signed powers": (-4, 4, True)}  # fmt: skip
SHAPES = {"channels first": (2, 5, 7, 6), "channels last": (2, 5, 7, 6), "units": (3, 700), "several blocks": (2, 8, 40, 11)}
PER = ("layer", "channel", "theta a layer", "amplitude a layer")
needs_numba = pytest.mark.skipif(not AVAILABLE, reason="numba is not installed")


def parameters(shape: tuple[int, ...], per: str, seed: int = 0) -> list[Tensor]:
    """Theta, v_init and amplitude, of the layer or of each channel."""
    g = torch.Generator().manual_seed(seed)
    each, one = (1, shape[1], *[1] * (len(shape) - 2)), ()
    sizes = {"layer": (one, one), "channel": (each, each), "theta a layer": (one, each), "amplitude a layer": (each, one)}
    theta, amplitude = sizes[per]
    return [torch.rand(theta, generator=g) + 0.3, torch.rand(each, generator=g), torch.rand(amplitude, generator=g) + 0.3]


def case(shape: str, per: str, dtype: torch.dtype, steps: int = 4, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    size = SHAPES[shape]
    drive = torch.randn((steps * size[0], *size[1:]), generator=torch.Generator().manual_seed(seed)).add(0.3).to(dtype)
    return drive.contiguous(memory_format=torch.channels_last) if shape == "channels last" else drive, parameters(size, per)


def run(backend: str, drive: Tensor, own: list[Tensor], rule: Rule, constant: bool) -> list[Tensor]:
    x, theta, start, unit = (value.clone().requires_grad_() for value in (drive, *own))
    out = multistep(x, theta, start, rule, amplitude=unit, constant=constant, backend=backend)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, (x, theta, start, unit), weight)]


@needs_numba
@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_compiled_neuron_equals_the_reference(shape: str, per: str, kind: str) -> None:
    for delay, constant, dtype, surrogate in (
        (0, False, torch.float32, "rectangle"), (1, False, torch.float64, "rectangle"),
        (4, True, torch.float32, "atan"), (0, False, torch.bfloat16, "triangle"),
    ):  # fmt: skip
        rule = Rule(4, delay, *KINDS[kind][:2], surrogate, 0.7, delay == 1, KINDS[kind][2])
        drive, own = case(shape, per, dtype)
        ours, expected = (run(backend, drive, own, rule, constant) for backend in ("cpu", "reference"))
        assert torch.equal(ours[0], expected[0])
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
        for mine, theirs in zip(ours[1:], expected[1:], strict=True):
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
            assert float((mine - theirs).double().norm()) <= tolerance * float(theirs.double().norm() + 1)
        with torch.no_grad():
            over = multistep(drive.clone(), *own[:2], rule, amplitude=own[2], constant=constant, backend="cpu", inplace=True)
        assert torch.equal(over, ours[0])


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_drive_s_sum_comes_with_it(per: str, dtype: torch.dtype) -> None:
    drive, (theta, start, unit) = case("several blocks", per, dtype)
    expected, total = multistep(drive, theta, start, Rule(4), amplitude=unit, backend="reference"), over_time(drive, 4)
    out, found = with_total(drive.clone(), theta, start, Rule(4), unit)
    assert torch.equal(out, expected)
    assert torch.equal(found, total)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("detach", [False, True])
def test_gradients_split_into_what_is_emitted_and_when_it_fires(kind: str, detach: bool) -> None:
    """Those of an amplitude equal to theta add up to theta's; an amplitude's own is the sum of grad s."""
    rule = Rule(4, 1, *KINDS[kind][:2], "triangle", 1.0, detach, KINDS[kind][2])
    drive, (theta, start, unit) = case("units", "channel", torch.float64)
    theta, start, unit = (value.double() for value in (theta, start, unit))
    weight = torch.randn(drive.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, th, v0 = (value.clone().requires_grad_() for value in (drive, theta, start))
    tied = torch.autograd.grad(reference.multistep(x, th, v0, rule, False), (x, th, v0), weight)
    apart = run_reference(drive, [theta, start, theta], rule, weight)
    torch.testing.assert_close(apart[2] + apart[4], tied[1])
    torch.testing.assert_close(apart[1], tied[0])
    found = run_reference(drive, [theta, start, unit], rule, weight)
    spikes = (found[0] / unit).round()
    torch.testing.assert_close(found[4], (weight * spikes).sum(0, keepdim=True))
    # what is emitted scales with A: the same spikes with grad A/theta, through the threshold alone
    scaled = run_reference(drive, [theta, start, theta], rule, weight * (unit / theta))
    for i in (1, 2, 3):
        torch.testing.assert_close(found[i], scaled[i])


def run_reference(drive: Tensor, own: list[Tensor], rule: Rule, weight: Tensor) -> list[Tensor]:
    leaves = [value.clone().requires_grad_() for value in (drive, *own)]
    out = reference.multistep(*leaves[:3], rule, False, leaves[3])
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


@needs_numba
@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("signed", [False, True])
def test_the_quantizer_equals_its_definition(shape: str, per: str, signed: bool) -> None:
    """Compiled against plain torch, and plain torch against numpy in float64."""
    z, (theta, start, unit) = case(shape, per, torch.float32, 1)
    grad = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    low, high = -8 if signed else 0, 8
    given, span = (z, theta, start), (4, low, high)
    assert kernels.numba_supports(*given, unit)
    assert torch.equal(kernels.numba_forward(*given, *span, unit), reference.quantize_reference(*given, *span, unit))
    found, plain = kernels.numba_backward(grad, *given, *span, unit), reference.gradients_reference(grad, *given, *span, unit)
    x, th, v0, a, g = (value.double().numpy() for value in (*given, unit, grad))
    n = np.clip(np.floor(4 * x / th + v0), low, high)
    inside = (x > th * low / 4) & (x < th * high / 4)
    own = [g * inside * a / th, -g * inside * a / th * x / th, g * inside * a / 4, g * n / 4]
    for mine, theirs, by_hand, value in zip(found, plain, own, (z, theta, start, unit), strict=True):
        assert mine.shape == theirs.shape == value.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(theirs.double(), torch.from_numpy(by_hand).sum_to_size(value.shape), rtol=1e-3, atol=2e-3)


def test_the_quantizer_s_gradients_add_up_and_keep_lsq_s_scale() -> None:
    z, (theta, start, unit) = case("channels first", "channel", torch.float64, 1)
    found = {}
    for scaled in (False, True):
        for name, extra in (("tied", None), ("apart", theta.clone()), ("mixed", unit.mean())):
            leaves = [value.clone().requires_grad_() for value in (z, theta, start, *([] if extra is None else [extra]))]
            own = leaves[3] if len(leaves) > 3 else None
            out = quantize(*leaves[:3], 4, 2, amplitude=own, scaled=scaled)
            found[name, scaled] = torch.autograd.grad(out.sum(), leaves)
    for scaled in (False, True):
        apart, tied = found["apart", scaled], found["tied", scaled]
        torch.testing.assert_close(apart[1] + apart[3], tied[1], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(apart[0], tied[0])
    plain, scaled = found["mixed", False], found["mixed", True]
    features = z[0].numel()
    torch.testing.assert_close(scaled[3], plain[3] / (features * 4) ** 0.5)
    torch.testing.assert_close(scaled[1], plain[1] / (features / theta.numel() * 4) ** 0.5)


@pytest.mark.parametrize("rule", ["surrogate", "step", "mixed"])
def test_the_step_gradient_splits_alike(rule: str) -> None:
    """A neuron whose amplitude is set to theta has theta's gradient in two parts, in every rule."""
    grads = []
    for own in (False, True):
        neuron = IFNeuron(torch.tensor([0.5, 0.9]), timesteps=4)
        neuron.threshold_gradient = rule
        if own:
            neuron.set_amplitude(neuron.threshold)
        x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)).add(0.4).requires_grad_()
        out = neuron.spiking(x)
        (out * torch.arange(24.0).view(12, 2).cos()).sum().backward()
        parts = [neuron.log_threshold.grad] + ([neuron.log_amplitude.grad] if neuron.log_amplitude is not None else [])
        grads.append((out.detach(), x.grad, torch.stack(parts).sum(0)))
    assert torch.equal(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1])
    torch.testing.assert_close(grads[0][2], grads[1][2])


def test_the_step_gradient_s_definition() -> None:
    z, theta, unit = torch.tensor([[-1.0, 0.3, 5.0]]), torch.full((1, 1), 0.8), torch.full((1, 1), 0.6)
    th, a = theta.clone().requires_grad_(), unit.clone().requires_grad_()
    out = multistep(z, theta, torch.tensor(0.5), Rule(4), amplitude=unit, constant=True)
    step_gradient(out, z, th, Rule(4), scaled=False, amplitude=a).view(4, 3).mean(0).sum().backward()
    n = (out / unit).view(4, 3).sum(0)
    assert float(th.grad) == pytest.approx(-0.6 / 0.8 * 0.3 / 0.8)
    assert float(a.grad) == pytest.approx(float(n.sum()) / 4)


def test_a_backend_of_the_user_that_knows_no_amplitude() -> None:
    calls: list[str] = []

    def forward(drive: Tensor, theta: Tensor, start: Tensor, rule: Rule, constant: bool) -> Tensor:
        calls.append("mine")
        return reference.multistep(drive, theta, start, rule, constant)

    def backward(grad: Tensor, drive: Tensor, theta: Tensor, start: Tensor, rule: Rule, constant: bool):
        return reference._adjoint((drive, theta, start, None), grad, rule, constant)[:3]

    drive, own = case("units", "channel", torch.float64)
    BACKENDS["mine"] = Backend(forward, backward, lambda *call: "" if len(call) == 4 else "wrong")
    try:
        ours = run("mine", drive, own, Rule(4), False)
    finally:
        del BACKENDS["mine"]
    expected = run("reference", drive, own, Rule(4), False)
    assert calls == ["mine"]
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@needs_numba
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("constant", [False, True])
def test_torch_accepts_the_operator(constant: bool) -> None:
    drive, own = case("channels last", "theta a layer", torch.float32)
    leaves = [value.clone().requires_grad_() for value in (drive, *own)]
    call = (*leaves[:3], "cpu", constant, *Rule(4, 1).values(), leaves[3])
    torch.library.opcheck(torch.ops.speedysnn.multistep, call)
    given = torch.randn(torch.ops.speedysnn.multistep(*call).shape)
    traced = torch.autograd.grad(torch.ops.speedysnn.multistep(*call), leaves, given)
    direct = torch.autograd.grad(multistep(*leaves[:3], Rule(4, 1), amplitude=leaves[3], constant=constant), leaves, given)
    for one, other in zip(traced, direct, strict=True):
        assert torch.equal(one, other)


@needs_numba
def test_compiled_graphs_hold_it() -> None:
    drive, (theta, start, unit) = case("units", "channel", torch.float32)
    layer = torch.compile(lambda x: multistep(x, theta, start, Rule(4), amplitude=unit) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(layer(drive), multistep(drive, theta, start, Rule(4), amplitude=unit) + 1)
