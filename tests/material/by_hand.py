"""Networks whose layers spike the constant that another reading gives, replaced by hand."""

import copy
import math

import torch


def by_hand(snn, readings):
    """A copy whose layers spike the constant that their other reading gives for the mean of their input."""
    out = copy.deepcopy(snn)

    def steady(neuron, reading):
        def spiking(x, *, constant=False, inplace=False):
            mean = x if constant else x.reshape(neuron.timesteps, -1, *x.shape[1:]).mean(0)
            held = getattr(neuron, reading)(mean)
            return held.repeat(neuron.timesteps, *[1] * (held.ndim - 1))

        return spiking

    for name, neuron in out.neurons.items():
        if readings[name] != "spiking":
            neuron.spiking = steady(neuron, readings[name])
    return out


def run_by_hand(changed, *x):
    """With gradients, since a max-pool without them rounds what it reads to whole spikes."""
    with torch.enable_grad():
        return changed(*x).detach()


def sqnr(snn, changed, x):
    source, reached = snn.read("analog", *x).detach().double(), run_by_hand(changed, *x).double()
    return 10 * math.log10(float((source**2).sum() / ((source - reached) ** 2).sum()))


def readings_of(snn, mode, layer):
    names = list(snn.neurons)
    here = names.index(layer)
    spikes = {"isolated": {here}, "prefix": set(range(here + 1)), "leave_one_out": set(range(len(names))) - {here}}
    return {name: "spiking" if i in spikes[mode] else "analog" for i, name in enumerate(names)}
