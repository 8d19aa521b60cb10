"""One neuron operator, several backends: the rule is data, a backend turns drive into output."""

from speedysnn.kernels.dispatch import BACKENDS as BACKENDS
from speedysnn.kernels.dispatch import multistep as multistep
from speedysnn.kernels.rule import Rule as Rule
from speedysnn.kernels.rule import parse_spikes as parse_spikes
