"""Compare the Triton kernels with the reference: on a GPU, or with TRITON_INTERPRET=1 in Triton's interpreter."""

from itertools import product

import torch
from triton_interpreter import patch_once

from speedysnn.bench.scaling import make
from speedysnn.kernels import Rule, multistep, using

STEPS = 4
KINDS = {"binary": (0, 1, False), "ternary": (-1, 1, False), "graded": (0, 3, False), "signed": (0, 2, True),
         "powers": (-4, 4, False), "signed powers": (-4, 4, True)}  # fmt: skip
SURROGATES = ("rectangle", "triangle", "sigmoid", "atan")


def compare(number: int, dtype: torch.dtype, kind: str, delay: int, constant: bool, device: str = "cpu") -> None:
    """One case, forward and backward; the reference runs on the CPU."""
    g = torch.Generator().manual_seed(number)
    lowest, highest, signed = KINDS[kind]
    rule = Rule(STEPS, delay, lowest, highest, SURROGATES[number % 4], 0.7, bool(number % 3 == 0), signed)
    shape = (2 if constant else 2 * STEPS, 5, 7, 6)
    drive = (torch.randn(shape, generator=g) + 0.3).to(dtype)
    if number % 2:
        drive = drive.contiguous(memory_format=torch.channels_last)
    theta = torch.rand(1, 5, 1, 1, generator=g) + 0.3 if number % 5 else torch.tensor(0.8)
    start = torch.rand(1, 5, 1, 1, generator=g) if number % 7 else torch.tensor(0.5)
    unit = torch.rand(1, 5, 1, 1, generator=g) + 0.3 if number % 4 else torch.tensor(0.6)
    amplitude = (unit,) if number % 3 else ()  # else a spike stands for theta
    results = []
    for backend, place in (("cuda", device), ("reference", "cpu")):
        leaves = [x.to(place, copy=True).requires_grad_() for x in (drive, theta, start, *amplitude)]
        own = leaves[3] if amplitude else None
        out = multistep(*leaves[:3], rule, amplitude=own, constant=constant, backend=backend)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(place, dtype)
        results.append([x.cpu() for x in (out.detach(), *torch.autograd.grad(out, leaves, weight))])
    ours, expected = results
    if dtype == torch.bfloat16 and device == "cpu":  # the interpreter cuts bfloat16 off where hardware rounds it
        assert bool(((ours[0] - expected[0]).abs() <= expected[0].abs() / 128).all())
    else:
        assert torch.equal(ours[0], expected[0])
        again, th, v0, *rest = (x.to(device, copy=True) for x in (drive, theta, start, *amplitude))
        options = {"amplitude": rest[0] if rest else None, "constant": constant, "backend": "cuda", "inplace": True}
        with torch.no_grad():
            over = multistep(again, th, v0, rule, **options)
        assert torch.equal(over.cpu(), expected[0])
    tolerance = 2e-3 if dtype == torch.bfloat16 else 1e-6
    for mine, theirs in zip(ours[1:], expected[1:], strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        # sums over neurons are rounded in another order: the scale is what was added up
        scale = theirs.double().norm() + (0 if theirs.shape == drive.shape else drive.numel() ** 0.5)
        assert (mine.double() - theirs.double()).norm() <= tolerance * scale


def graph(device: str) -> None:
    """A network whose neurons run there is one graph to torch.compile."""
    snn, x = make("digits", STEPS, 4, None, device=torch.device(device))
    with torch.no_grad(), using("cuda"):
        assert torch.equal(torch.compile(snn, backend="eager", fullgraph=True)(x), snn(x))


def main(part: str, device: str = "cpu") -> None:
    """All cases, or some: every kind, delay and drive once, in types that take turns. Prints how many were compared."""
    if device == "cpu":
        patch_once()
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    rules = list(product(sorted(KINDS), (0, 1, 2, 3, 4, 1), (False, True)))
    cases = list(enumerate(product(dtypes, range(len(rules)))))
    turn = [dtypes[(rule // 12 + rule // 2) % 3] for rule in range(len(rules))]
    chosen = cases if part == "all" else [(number, case) for number, case in cases if turn[case[1]] == case[0]]
    graph(device)
    for number, (dtype, rule) in chosen:
        compare(number, dtype, *rules[rule], device)
    print(len(chosen))
