"""Measure a spiking network's noise: how much, in which layer, from which cause, and what to do about it."""

from speedysnn.analysis import theory as theory
from speedysnn.analysis.columns import COLUMNS as COLUMNS
from speedysnn.analysis.columns import OUTPUTS as OUTPUTS
from speedysnn.analysis.columns import Column as Column
from speedysnn.analysis.compare import Comparison as Comparison
from speedysnn.analysis.compare import compare as compare
from speedysnn.analysis.cost import measure_cost as measure_cost
from speedysnn.analysis.delays import DelayChoice as DelayChoice
from speedysnn.analysis.delays import choose_delay as choose_delay
from speedysnn.analysis.details import LayerDetail as LayerDetail
from speedysnn.analysis.energy import CostReport as CostReport
from speedysnn.analysis.evaluate import Evaluation as Evaluation
from speedysnn.analysis.evaluate import evaluate as evaluate
from speedysnn.analysis.exits import Confidence as Confidence
from speedysnn.analysis.exits import choose_confidence as choose_confidence
from speedysnn.analysis.exits import early_exit as early_exit
from speedysnn.analysis.mixed import read_mixed as read_mixed
from speedysnn.analysis.noise import NoiseSums as NoiseSums
from speedysnn.analysis.noise import measure_noise as measure_noise
from speedysnn.analysis.noise_figures import figure_noise_distribution as figure_noise_distribution
from speedysnn.analysis.readout import delayed_readout as delayed_readout
from speedysnn.analysis.result import NoiseReport as NoiseReport
from speedysnn.analysis.sensitivity import Sensitivity as Sensitivity
from speedysnn.analysis.sensitivity import measure_sensitivity as measure_sensitivity
from speedysnn.analysis.sweep import sweep as sweep
