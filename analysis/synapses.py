"""Synapses that a spike of each layer reaches on average: the weights of a budget of synaptic operations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from speedysnn.analysis.counter import Counter
from speedysnn.network import SpikingNetwork


def spike_fan_out(snn: SpikingNetwork, example: Sequence[Tensor] | None = None) -> dict[str, float]:
    """Mean fan-out of each neuron layer, in synapses a spike, exact for strides, padding, groups and joins.

    f_l = (synapses that leave layer l, those of max-pooled spikes included) / (its neurons). For
    `finetune.fit(..., fan_out=)` with `budget_of="synops"`.

    Args:
        snn: the network.
        example: one tensor an input, (1, ...); zeros if left out.
    """
    one = example or [torch.zeros(1, *shape) for shape in snn.input_shapes]
    with torch.no_grad():
        counter = Counter(snn, one)
    out = dict.fromkeys(snn.neurons, 0.0)
    for reached in counter.reached.values():
        for leaf, fan_out in reached.items():
            if leaf in out:
                out[leaf] += float(fan_out.sum()) / max(1, fan_out.numel())
    return out
