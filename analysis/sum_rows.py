"""What the compiled sums of a block share: its rows of work and its bins; and how they are compiled."""

from pathlib import Path
from typing import Any

from speedysnn.kernels.compiled import together

Array = Any
BLOCK = 1024
BINS, PER_STEP = 64, 32  # over [-1, 1] steps; one more below, one above, and one for what is left out
AIMED, REACHED, FIRED, MEAN, ERROR, OWN, STEP, SQUARE, NEXT, ENDS, PER = range(11)  # rows of `work`; PER is 1/theta

summed = together(Path(__file__).parent.glob("sum*.py"))  # what numba keeps is renewed when one of these files changes
