"""The integer reading is exact: batched, step by step, in NumPy, and where weights fit also the network's own spikes."""

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from speedysnn.execution.observers import LayerRecord
from speedysnn.integer import to_integer
from speedysnn.integer.simulate import run
from tests.integer.reference import logits
from tests.material.integer_networks import Maker, images


@settings(max_examples=40, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 10**6), bits=st.sampled_from((2, 4, 8, 12)), state=st.sampled_from((8, 12, 16, 32)),
       granularity=st.sampled_from(("channel", "layer")), steps=st.sampled_from((None, None, None, 16, 64)))  # fmt: skip
def test_all_ways_to_run_a_program_agree(seed, bits, state, granularity, steps) -> None:
    snn = Maker(seed, timesteps=steps).network()
    chip = to_integer(snn, bits, state, granularity=granularity, mean=0.4, std=0.25)
    x = images(snn, 4)
    batched = chip(x)
    assert batched.dtype == torch.int64
    assert torch.equal(torch.cat([chip(x[:1]), chip(x[1:])]), batched)
    assert torch.equal(chip(x, step_by_step=True), batched)
    assert np.array_equal(logits(chip.program, x.numpy()), batched.numpy())


@pytest.mark.parametrize("seed", range(40))
def test_where_integers_hold_the_weights_every_spike_is_the_networks_own(seed) -> None:
    snn = Maker(seed, exact=True).network()
    chip = to_integer(snn, 8, 32, mean=0.0, std=1 / 255)
    x = torch.randint(0, 3, (5, *snn.input_shapes[0]), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    ours, theirs = {}, {}
    run(chip.program, x, None, lambda op, value: ours.update({op.name: value}))

    def keep(record: LayerRecord) -> None:
        amplitude = snn.neurons[record.name].amplitude
        theirs[record.name] = torch.round(record.output / amplitude)

    with torch.no_grad():
        snn.read("spiking", x.float(), per_step=True, observer=keep, at_once=True)
    for name, spikes in theirs.items():
        assert torch.equal(ours[name].flatten(0, 1), spikes.to(torch.int64)), name
