"""Layers of integrate-and-fire neurons: threshold, v_init, the readings and the streaming state."""

from speedysnn.neurons.layer import IFNeuron as IFNeuron
from speedysnn.neurons.layer import NeuronState as NeuronState
from speedysnn.neurons.parameters import READINGS as READINGS
from speedysnn.neurons.parameters import THRESHOLD_GRADIENTS as THRESHOLD_GRADIENTS
from speedysnn.neurons.parameters import Delay as Delay
from speedysnn.neurons.parameters import NeuronParameters as NeuronParameters
from speedysnn.neurons.parameters import Reading as Reading
from speedysnn.neurons.parameters import check_range as check_range
from speedysnn.neurons.parameters import check_steps as check_steps
