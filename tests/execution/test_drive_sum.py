"""A drive's sum over its steps comes with the spikes that are written over it, and is the neuron's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speedysnn.kernels import over_time, using, with_total
from speedysnn.kernels.dispatch import multistep
from speedysnn.neurons import IFNeuron
from tests.kernels.test_kernels import KINDS, rule


@given(
    kind=st.sampled_from(list(KINDS)), steps=st.integers(1, 9), delay=st.integers(0, 9), images=st.integers(0, 3),
    channels=st.integers(1, 7), size=st.integers(1, 9), seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), backend=st.sampled_from(["cpu", "reference"]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)  # fmt: skip
def test_spikes_and_total_are_those_of_one_after_the_other(
    kind, steps, delay, images, channels, size, seed, dtype, backend, layout
):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps * images, channels, size, size, generator=generator).to(dtype).contiguous(memory_format=layout)
    theta = (torch.rand(1, channels, 1, 1, generator=generator) + 0.2).to(dtype)
    how = rule(steps, min(delay, steps), kind)
    spikes, total = multistep(x, theta, torch.tensor(0.5, dtype=dtype), how), over_time(x, steps)
    with using(backend):
        got, sums = with_total(x.clone(memory_format=torch.preserve_format), theta, torch.tensor(0.5, dtype=dtype), how)
    assert torch.equal(got, spikes)
    assert torch.equal(sums, total)
    assert sums.shape == (images, channels, size, size)


@pytest.mark.parametrize("wanted", [True, False])
def test_what_gradients_need_is_left_as_it_is(wanted):
    neuron, x = IFNeuron(timesteps=4), torch.randn(8, 5, requires_grad=wanted)
    before = x.detach().clone()
    with torch.set_grad_enabled(wanted):
        out, total = neuron.spiking_and_total(x * 1)
    assert torch.equal(total, neuron.total(before))
    assert out.requires_grad is wanted
