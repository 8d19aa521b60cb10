"""The integer reading: a spiking network in whole numbers, as a chip or a C program computes it, bit for bit."""

from speedysnn.integer.chip import Chip as Chip
from speedysnn.integer.chip import to_integer as to_integer
from speedysnn.integer.profiles import PROFILES as PROFILES
from speedysnn.integer.profiles import Misfit as Misfit
from speedysnn.integer.profiles import Profile as Profile
from speedysnn.integer.profiles import misfits as misfits
from speedysnn.integer.program import Program as Program
from speedysnn.integer.store import is_chip as is_chip
from speedysnn.integer.store import load as load
from speedysnn.integer.store import save as save
