"""The integer reading: a spiking network in whole numbers, as a chip or a C program computes it, bit for bit."""

from speedysnn.integer.chip import Chip as Chip
from speedysnn.integer.chip import to_integer as to_integer
from speedysnn.integer.program import Program as Program
