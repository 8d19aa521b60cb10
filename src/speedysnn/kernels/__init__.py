"""One neuron operator, several backends: the rule is data, a backend turns drive into output."""

from speedysnn.kernels.dispatch import KernelWarning as KernelWarning
from speedysnn.kernels.dispatch import multistep as multistep
from speedysnn.kernels.dispatch import over_time as over_time
from speedysnn.kernels.dispatch import using as using
from speedysnn.kernels.dispatch import with_total as with_total
from speedysnn.kernels.operator import BACKENDS as BACKENDS
from speedysnn.kernels.operator import Backend as Backend
from speedysnn.kernels.rule import Rule as Rule
from speedysnn.kernels.rule import parse_spikes as parse_spikes
