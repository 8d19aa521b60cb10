"""The neuron's identities: conservation, the soft-reset neuron, the quantizer, pacing, and every gradient."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speedysnn.errors import InputError
from speedysnn.kernels import Rule, multistep, parse_spikes
from speedysnn.kernels.quantizer import levels, quantize
from speedysnn.surrogate import SURROGATES, slope

# lowest, highest, signed
KINDS = {
    "binary": (0, 1, False),
    "ternary": (-1, 1, False),
    "graded:3": (0, 3, False),
    "signed": (0, 1, True),
    "signed graded:2": (0, 2, True),
    "power2:3": (-4, 4, False),
    "signed power2:4": (-8, 8, True),
}


def least(kind: str) -> int:
    """The lowest spike count of a step that the quantizer's range is made of."""
    return -KINDS[kind][1] if KINDS[kind][2] else 0


def power_near(u: float, count: float, most: int, signed: bool) -> float:
    """The signed power of two, or 0, nearest to u - 1/2; between two of them by the half that floor would choose."""
    sizes = [2**k for k in range(most.bit_length())]
    edges = [1, *(0.75 * size + 0.5 for size in sizes[1:])]
    up = [size for size, edge in zip(sizes, edges, strict=True) if u >= edge]
    down = [size for size, edge in zip(sizes, edges, strict=True) if u < 1 - edge and (signed or size <= count)]
    return float(max(up, default=0) - max(down, default=0))


def drive(steps: int, seed: int, neurons: int = 40, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uneven input (T, neurons), some of it negative."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, neurons, generator=generator, dtype=dtype) * 0.8 + 0.3


def rule(steps: int, delay: int = 0, kind: str = "binary", **options: object) -> Rule:
    low, high, signed = KINDS[kind]
    return Rule(steps, delay, low, high, signed=signed, **options)  # type: ignore[arg-type]


def naive(x: Tensor, theta: float, v_init: float, steps: int, delay: int, kind: str) -> Tensor:
    """The rule of the design in plain Python, one neuron at a time."""
    low, high, signed = KINDS[kind]
    out = torch.zeros_like(x)
    for i in range(x.shape[1]):
        n = 0
        for t in range(1, steps + 1):
            k = min(t + delay, steps)
            total = 0.0
            for j in range(k):
                total += x[j, i].item()
            u = (total * (t / k) if k != t else total) / theta + v_init - n
            s = min(max(math.floor(u), least(kind)), high)
            if low < -1:
                s = power_near(u, n, high, signed)
            elif low < 0 and not signed and u < 0 and n > 0:
                s = -1
            n += s
            out[t - 1, i] = s * theta
    return out


@pytest.mark.parametrize("kind", KINDS)
@given(steps=st.integers(1, 12), seed=st.integers(0, 10**6), theta=st.floats(0.2, 3), v_init=st.floats(0, 0.99))
def test_rule_equals_the_definition(kind: str, steps: int, seed: int, theta: float, v_init: float) -> None:
    x = drive(steps, seed, neurons=6)
    for delay in {0, 1, steps // 2, steps} & set(range(steps + 1)):
        out = multistep(x, torch.tensor(theta, dtype=x.dtype), torch.tensor(v_init, dtype=x.dtype), rule(steps, delay, kind))
        assert torch.equal(out, naive(x, theta, v_init, steps, delay, kind))


@given(steps=st.integers(1, 32), seed=st.integers(0, 10**6), sixteenths=st.integers(4, 40))
def test_no_look_ahead_is_the_soft_reset_neuron(steps: int, seed: int, sixteenths: int) -> None:
    """Dyadic values, so that both forms are exact."""
    x = torch.round(drive(steps, seed) * 16) / 16
    theta = torch.tensor(sixteenths / 16, dtype=x.dtype)
    u, spikes = torch.full((40,), 0.5, dtype=x.dtype) * theta, []
    for t in range(steps):
        v = u + x[t]
        s = (v >= theta).to(x.dtype)
        u = v - theta * s
        spikes.append(theta * s)
    assert torch.equal(multistep(x, theta, torch.tensor(0.5, dtype=x.dtype), rule(steps)), torch.stack(spikes))


@given(steps=st.integers(1, 32), seed=st.integers(0, 10**6), theta=st.floats(0.2, 3), v_init=st.floats(0, 0.99))
def test_conservation(steps: int, seed: int, theta: float, v_init: float) -> None:
    """sum y = sum x + u[0] - u[T], with the final membrane from an independent simulation."""
    x = drive(steps, seed)
    y = multistep(x, torch.tensor(theta, dtype=x.dtype), torch.tensor(v_init, dtype=x.dtype), rule(steps))
    u = torch.full((40,), v_init * theta, dtype=x.dtype)
    for t in range(steps):
        u = u + x[t] - y[t]
        assert ((y[t] == 0) | (y[t] == theta)).all()
    torch.testing.assert_close(y.sum(0), x.sum(0) + v_init * theta - u, rtol=1e-12, atol=1e-12)
    fired_early = y.sum(0) == 0
    assert (u[fired_early] < theta * (1 + 1e-12)).all(), "a silent neuron ended above its threshold"


@pytest.mark.parametrize("v_init", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)  # of 32 drives at 64 T each: a call costs the same for one drive as for many
@given(z=st.lists(st.floats(-2, 6, width=32), min_size=32, max_size=32), theta=st.floats(0.125, 4, width=32))
def test_constant_drive_counts_what_the_quantizer_says(kind: str, v_init: float, z: list[float], theta: float) -> None:
    x, th, v0 = (torch.tensor(value, dtype=torch.float64) for value in (z, theta, v_init))
    for steps in range(1, 65):
        y = multistep(x[None], th, v0, rule(steps, 0, kind), constant=True).view(steps, -1)
        expected = levels(x[None], th, v0, steps, KINDS[kind][1], KINDS[kind][2])[0]
        assert ((y / th).sum(0) - expected).abs().max() <= rule(steps, 0, kind).most_missed, steps


@pytest.mark.parametrize("kind", KINDS)
@given(steps=st.integers(1, 24), seed=st.integers(0, 10**6), theta=st.floats(0.2, 3))
def test_full_look_ahead_is_the_quantizer_of_the_mean(kind: str, steps: int, seed: int, theta: float) -> None:
    x, th, v0 = drive(steps, seed), torch.tensor(theta, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    y = multistep(x, th, v0, rule(steps, steps, kind))
    expected = torch.floor(x.cumsum(0)[-1] / th + v0).clamp(steps * least(kind), steps * KINDS[kind][1])
    assert (torch.round((y / th).sum(0)) - expected).abs().max() <= rule(steps, steps, kind).most_missed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    x = drive(8, 1).to(dtype)
    th, v0 = torch.tensor(0.5), torch.tensor(0.5)
    y = multistep(x, th, v0, rule(8))
    assert y.dtype == dtype
    assert set(y.unique().tolist()) == {0.0, 0.5}
    reference = multistep(x.to(torch.float64), th, v0, rule(8))
    assert (y.to(torch.float64) != reference).float().mean() < (0.01 if dtype is not torch.float64 else 1e-9)


class Spike(torch.autograd.Function):
    """floor(u) clipped, with the surrogate summed over its thresholds: the independent oracle's step."""

    @staticmethod
    def forward(ctx, v, theta, count, kind, name, width):
        low, high, signed = KINDS[kind]
        u = v / theta
        s = torch.floor(u).clamp(least(kind), high)
        if low < -1:
            each = zip(u.tolist(), count.tolist(), strict=True)
            s = torch.tensor([power_near(*pair, high, signed) for pair in each], dtype=u.dtype)
        elif low < 0 and not signed:
            s = s - ((u < 0) & (count > 0)).to(u.dtype)
        ctx.save_for_backward(u, theta, count)
        ctx.setting = (kind, name, width)
        return s

    @staticmethod
    def backward(ctx, grad):
        u, theta, count = ctx.saved_tensors
        kind, name, width = ctx.setting
        low, high, signed = KINDS[kind]
        to_v, to_theta = torch.zeros_like(u), torch.zeros_like(u)
        if low < -1:  # a jump of height j between every two powers, smoothed over j widths
            for power in (2**k for k in range(high.bit_length())):
                j, first = max(power // 2, 1), 0.75 * power + 0.5 if power > 1 else 1.0
                for level, here in ((first, True), (1 - first, (count >= power) | signed)):
                    h = j * slope(name, u - level, width * j) / theta * here
                    to_v, to_theta = to_v + h, to_theta - level * h
            return grad * to_v, (grad * to_theta).sum(), None, None, None, None
        for level in range(1, high + 1):
            h = slope(name, u - level, width) / theta
            to_v, to_theta = to_v + h, to_theta - level * h
        for level in range(high if signed else 0):
            h = slope(name, u + level, width) / theta
            to_v, to_theta = to_v + h, to_theta + level * h
        if low < 0 and not signed:
            to_v = to_v + (count > 0) * slope(name, u, width) / theta
        return grad * to_v, (grad * to_theta).sum(), None, None, None, None


def oracle(x, theta, v_init, steps, delay, kind, name, width, detach, constant):
    """The same neuron out of torch operations, differentiated by autograd."""
    n, out = torch.zeros_like(x[0]), []
    for t in range(1, steps + 1):
        k = min(t + delay, steps)
        total = x[0] * t if constant else x[:k].sum(0) * (t / k)
        v = total + v_init * theta - (n.detach() if detach else n) * theta
        s = Spike.apply(v, theta, n.detach(), kind, name, width)
        n = n + s
        out.append(theta * s)
    return torch.stack(out)


CASES = list(itertools.product(KINDS, [0, 1, 3, 5], [False, True], [False, True]))


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize(("kind", "delay", "detach", "constant"), CASES)
def test_gradients_equal_autograd(name: str, kind: str, delay: int, detach: bool, constant: bool) -> None:
    steps, width = 5, 0.8
    x = drive(1 if constant else steps, 7).requires_grad_()
    theta = torch.tensor(0.7, dtype=x.dtype, requires_grad=True)
    v_init = torch.tensor(0.4, dtype=x.dtype, requires_grad=True)
    weights = torch.randn(steps, 40, dtype=x.dtype, generator=torch.Generator().manual_seed(9))
    ours = multistep(x, theta, v_init, rule(steps, delay, kind, surrogate=name, width=width, detach_reset=detach),
                     constant=constant)  # fmt: skip
    theirs = oracle(x, theta, v_init, steps, delay, kind, name, width, detach, constant)
    torch.testing.assert_close(ours, theirs)
    for got, expected in zip(
        torch.autograd.grad((ours * weights).sum(), (x, theta, v_init)),
        torch.autograd.grad((theirs * weights).sum(), (x, theta, v_init)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SURROGATES)
def test_threshold_gradient_identity(name: str) -> None:
    """d(sum y)/dtheta = v_init - du[T]/dtheta, by the forward recursion dv = du; ds = h (dv - 1)."""
    steps, theta, v_init = 8, 0.7, 0.5
    x = drive(steps, 11)
    u, du = torch.full((40,), v_init * theta, dtype=x.dtype), torch.full((40,), v_init, dtype=x.dtype)
    for t in range(steps):
        v, dv = u + x[t], du
        s = (v >= theta).to(x.dtype)
        ds = slope(name, v / theta - 1, 1.0) / theta * (dv - 1)
        u, du = v - theta * s, dv - s - theta * ds
    parameter = torch.full((40,), theta, dtype=x.dtype, requires_grad=True)
    out = multistep(x, parameter, torch.tensor(v_init, dtype=x.dtype), rule(steps, surrogate=name))
    (gradient,) = torch.autograd.grad(out.sum(), parameter)
    torch.testing.assert_close(gradient, v_init - du, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("signed", [False, True])
def test_quantizer_gradient_is_the_learned_step_sizes(signed: bool) -> None:
    z = torch.linspace(-2, 2, 301, dtype=torch.float64).view(1, -1).requires_grad_()
    theta = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    v_init, steps = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), 4
    grad = torch.randn(1, 301, dtype=torch.float64)
    for scaled in (False, True):
        y = quantize(z, theta, v_init, steps, signed=signed, scaled=scaled)
        to_z, to_theta, to_start = torch.autograd.grad((y * grad).sum(), (z, theta, v_init))
        n = torch.floor(z * steps / theta + 0.5).clamp(-steps if signed else 0, steps)
        inside, scale = (z > (-theta if signed else 0)) & (z < theta), 1 / math.sqrt(301 * steps) if scaled else 1.0
        expected = torch.where(inside, n / steps - z / theta, n / steps)
        torch.testing.assert_close(to_z, grad * inside)
        torch.testing.assert_close(to_theta, (grad * expected).sum() * scale)
        torch.testing.assert_close(to_start, (grad * inside * theta / steps).sum() * scale)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_surrogates_integrate_to_one(name: str, width: float) -> None:
    m = torch.linspace(-2000, 2000, 8_000_001, dtype=torch.float64)
    assert torch.trapezoid(slope(name, m, width), m).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rule(0),
        lambda: Rule(4, 5),
        lambda: Rule(4, surrogate="step"),
        lambda: Rule(4, width=0.0),
        lambda: parse_spikes("graded:0"),
        lambda: parse_spikes("unary"),
        lambda: parse_spikes("power2:0"),
        lambda: parse_spikes("power2:17"),
        lambda: Rule(4, 0, -2, 3),
        lambda: Rule(4, 0, -3, 3),
        lambda: multistep(torch.zeros(5, 2), torch.tensor(1.0), torch.tensor(0.5), Rule(4)),
        lambda: multistep(torch.zeros(4, 2), torch.tensor(1.0), torch.tensor(0.5), Rule(4), backend="abacus"),
        lambda: slope("step", torch.zeros(1), 1.0),
    ],
)
def test_mistakes_are_named(make) -> None:
    with pytest.raises(InputError, match="expected"):
        make()
