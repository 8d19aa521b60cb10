"""One neuron operator, several backends: the rule is data, a backend turns drive into output."""

from speedysnn.kernels.dispatch import BACKENDS as BACKENDS
from speedysnn.kernels.dispatch import Backend as Backend
from speedysnn.kernels.dispatch import KernelWarning as KernelWarning
from speedysnn.kernels.dispatch import multistep as multistep
from speedysnn.kernels.dispatch import over_time as over_time
from speedysnn.kernels.dispatch import using as using
from speedysnn.kernels.dispatch import with_total as with_total
from speedysnn.kernels.reference import Rule as Rule
from speedysnn.kernels.spike_kinds import bits_per_spike as bits_per_spike
from speedysnn.kernels.spike_kinds import parse_spikes as parse_spikes
