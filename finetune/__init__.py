"""Train a spiking network's thresholds, and whatever else is asked, until its noise is gone."""

from speedysnn.finetune.blocks import ReconstructConfig as ReconstructConfig
from speedysnn.finetune.blocks.reconstruct import Reconstructed as Reconstructed
from speedysnn.finetune.blocks.reconstruct import reconstruct as reconstruct
from speedysnn.finetune.config import Config as Config
from speedysnn.finetune.config import Stage as Stage
from speedysnn.finetune.fit import fit as fit
from speedysnn.finetune.objectives import OBJECTIVES as OBJECTIVES
from speedysnn.finetune.objectives import Target as Target
from speedysnn.finetune.result import Result as Result
from speedysnn.finetune.train import TrainConfig as TrainConfig
from speedysnn.finetune.train import train as train
