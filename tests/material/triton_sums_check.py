"""Compare a layer's sums made by Triton with their definition in torch: on a GPU, or with TRITON_INTERPRET=1."""

from itertools import product

import torch
from triton_interpreter import patch_once

from speedysnn.analysis.noise.sums_reference import added, reference_sums
from speedysnn.analysis.noise.triton_backend import RunningThere
from speedysnn.execution.observers import LayerRecord
from speedysnn.kernels import using
from speedysnn.neurons import IFNeuron

STEPS = 4
KINDS = {"binary": {}, "ternary": {"spikes": "ternary"}, "graded": {"spikes": "graded:3"}, "signed": {"floor": None},
         "clipped": {"ceiling": 1.0}, "looking ahead": {"delay": 1}}  # fmt: skip
SHAPES = {"pictures": (7, 5, 3, 4), "sequences": (6, 9, 2), "tokens": (5, 4, 3), "units": (9, 6), "many": (3, 300)}


def compare(number: int, kind: str, shape: str, constant: bool, device: str) -> None:
    """Two passes of images, with gradually larger values, with and without sums of steps."""
    g = torch.Generator().manual_seed(number)
    size, dim = SHAPES[shape], 2 if shape == "tokens" else 1
    theta = torch.rand(size[dim], generator=g) + 0.3 if number % 3 else torch.tensor(0.7)
    start = torch.rand(size[dim], generator=g) if number % 2 else torch.tensor(0.5)
    neuron = IFNeuron(theta, start, timesteps=STEPS, channel_dim=dim, **KINDS[kind])
    source = IFNeuron(1.0, steps=4, ceiling=2.0, timesteps=STEPS) if number % 5 == 4 else neuron
    if number % 4 == 1:
        neuron.set_amplitude(torch.rand(size[dim], generator=g) + 0.3)
    th, v0, unit = neuron.threshold.detach(), neuron.v_init.detach(), neuron.amplitude.detach()
    most = STEPS * neuron.levels_per_step
    options = {"timesteps": STEPS, "max_count": most, "min_count": -most if neuron.signed else 0, "trains": True, "lags": True}
    ours, expected = None, {}
    for scale in (1.0, 1.5):
        z = torch.randn(size, generator=g) * scale
        drive = z if constant else torch.randn(STEPS * size[0], *size[1:], generator=g) * scale + z.repeat(STEPS, *[1] * (z.ndim - 1))
        if z.ndim == 4:
            z, drive = (x.contiguous(memory_format=torch.channels_last) for x in (z, drive))
        with torch.no_grad(), using("reference"):
            out, twin = neuron.spiking(drive, constant=constant), neuron.quantized(z)
        tap = LayerRecord("layer", neuron, drive, out, constant, False)
        plain = reference_sums(z, source, twin, tap, th, v0, unit)
        expected = added(expected, {**plain, "events": torch.tensor([int(plain["pulses"].sum()), z.numel(), len(z)])})
        there = [x.to(device) for x in (z, th, v0, unit)]
        ours = ours or RunningThere(there[0], dim, there[1], there[2], amplitude=there[3], **options)
        seen, held = tap.received()
        clip = (source.floor, source.ceiling) if source.steps is None else source.analog(z).to(device)
        z, twin, seen, out = (x.detach().to(device) for x in (z, twin, seen, out))
        assert ours.fits(z, True)
        assert int(ours.add(z, z, clip, twin, seen, held, out, None)) == int(plain["pulses"].sum())
    found = ours.found()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.dtype == torch.float64:
            scale = value.abs().max()
            assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-12 * float(scale)), (name, number, kind, shape)
        else:
            assert torch.equal(found[name].to(value.dtype), value), (name, number, kind, shape, constant)


def main(device: str = "cpu") -> None:
    """All cases; prints how many were compared."""
    if device == "cpu":
        patch_once()
    cases = list(product(KINDS, SHAPES, (False, True)))
    for number, case in enumerate(cases):
        compare(number, *case, device)
    print(len(cases))
