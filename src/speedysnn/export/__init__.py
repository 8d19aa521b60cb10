"""Write a spiking network in the formats of other programs."""

from speedysnn.export.nir import to_nir as to_nir
from speedysnn.export.pt2 import to_pt2 as to_pt2
