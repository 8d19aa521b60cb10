"""Thresholds from data: histograms of drives and the rules that choose thresholds from them."""

from speedysnn.calibration.distributions import least_squares as least_squares
from speedysnn.calibration.histogram import ActivationHistogram as ActivationHistogram
from speedysnn.calibration.record import GIVEN as GIVEN
from speedysnn.calibration.record import Calibration as Calibration
from speedysnn.calibration.rules import CLIP as CLIP
from speedysnn.calibration.rules import RULES as RULES
from speedysnn.calibration.rules import Request as Request
from speedysnn.calibration.rules import Rule as Rule
from speedysnn.calibration.rules import ThresholdRule as ThresholdRule
from speedysnn.calibration.rules import choose as choose
from speedysnn.calibration.rules import predicted_rate as predicted_rate
