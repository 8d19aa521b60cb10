"""What the compiled sums of a block share: its rows of work and its bins; and how they are compiled."""

from functools import partial
from pathlib import Path
from typing import Any

from speedysnn.kernels.compiled import together

Array = Any
BLOCK = 4096
BINS, PER_STEP = 64, 32  # over [-1, 1] steps; one more below, one above, and one for what is left out
TOTAL, ERROR, MEAN, STEP, SQUARE, NEXT, ENDS, PER, INVERSE = range(9)  # rows of `work`
ROWS = INVERSE + 1  # PER is 1 / theta, INVERSE is 1 / step

FILES = sorted(Path(__file__).parent.glob("sum*.py"))
summed = together(FILES)  # what numba keeps is renewed when one of these files changes


@partial(together, fastmath=("reassoc",))(FILES)
def plus(total: float, value: float) -> float:  # pragma: no cover - compiled
    """One more term of a sum whose terms may come in any order, so that several are added at once."""
    return total + value
