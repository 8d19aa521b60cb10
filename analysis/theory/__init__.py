"""Closed forms of quantization and temporal noise."""

from speedysnn.analysis.theory.arrival import TemporalError as TemporalError
from speedysnn.analysis.theory.arrival import early_spikes as early_spikes
from speedysnn.analysis.theory.arrival import temporal_error as temporal_error
from speedysnn.analysis.theory.distributions import Activation as Activation
from speedysnn.analysis.theory.distributions import Distribution as Distribution
from speedysnn.analysis.theory.distributions import as_activation as as_activation
from speedysnn.analysis.theory.drive import Drive as Drive
from speedysnn.analysis.theory.drive import ErrorDensity as ErrorDensity
from speedysnn.analysis.theory.drive import check_neuron as check_neuron
from speedysnn.analysis.theory.drive import count_probabilities as count_probabilities
from speedysnn.analysis.theory.drive import error_density as error_density
from speedysnn.analysis.theory.drive import quantizer_edges as quantizer_edges
from speedysnn.analysis.theory.drive import spike_drive as spike_drive
from speedysnn.analysis.theory.quantization import decibels as decibels
from speedysnn.analysis.theory.quantization import effective_bits as effective_bits
from speedysnn.analysis.theory.quantization import floor_db as floor_db
from speedysnn.analysis.theory.quantization import granular_noise as granular_noise
from speedysnn.analysis.theory.quantization import optimal_threshold as optimal_threshold
from speedysnn.analysis.theory.quantization import overload_noise as overload_noise
from speedysnn.analysis.theory.quantization import rmse_steps as rmse_steps
from speedysnn.analysis.theory.quantization import signal_power as signal_power
from speedysnn.analysis.theory.quantization import sqnr_db as sqnr_db
from speedysnn.analysis.theory.quantization import uniform_sqnr_db as uniform_sqnr_db
