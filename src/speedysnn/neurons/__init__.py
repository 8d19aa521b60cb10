"""Layers of integrate-and-fire neurons: threshold, v_init, the readings and the streaming state."""

from speedysnn.errors import InputError as InputError
from speedysnn.kernels.dispatch import multistep as multistep
from speedysnn.kernels.dispatch import over_time as over_time
from speedysnn.kernels.dispatch import with_total as with_total
from speedysnn.kernels.quantizer import levels as levels
from speedysnn.kernels.quantizer import quantize as quantize
from speedysnn.kernels.quantizer import step_gradient as step_gradient
from speedysnn.kernels.reference import Rule as Rule
from speedysnn.kernels.reference import fire as fire
from speedysnn.kernels.reference import parse_spikes as parse_spikes
from speedysnn.neurons.layer import IFNeuron as IFNeuron
from speedysnn.neurons.layer import Window as Window
from speedysnn.neurons.parameters import READINGS as READINGS
from speedysnn.neurons.parameters import THRESHOLD_GRADIENTS as THRESHOLD_GRADIENTS
from speedysnn.neurons.parameters import Delay as Delay
from speedysnn.neurons.parameters import NeuronParameters as NeuronParameters
from speedysnn.neurons.parameters import Reading as Reading
from speedysnn.neurons.parameters import check_range as check_range
from speedysnn.neurons.parameters import check_steps as check_steps
from speedysnn.surrogate import SURROGATES as SURROGATES
