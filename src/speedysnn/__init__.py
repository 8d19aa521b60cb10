"""speedysnn: spiking networks from trained PyTorch networks, with the quantization noise measured and trained away.

from speedysnn import analysis, convert, finetune

snn = convert.to_spiking(ann, calibration, timesteps=4)
noise = analysis.measure_noise(snn, data)
result = finetune.fit(snn, train)
"""

from speedysnn.artifact import load as load
from speedysnn.artifact import save as save
from speedysnn.errors import SpeedySNNError as SpeedySNNError
from speedysnn.network import SpikingNetwork as SpikingNetwork
from speedysnn.neurons import IFNeuron as IFNeuron

__version__ = "0.1.0"
