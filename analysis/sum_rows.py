"""What the compiled sums of a block share: its rows of work and its bins; and how they are compiled."""

from functools import partial
from typing import Any

from speedysnn.analysis.moments import BINS as BINS
from speedysnn.analysis.moments import PER_STEP as PER_STEP
from speedysnn.analysis.schema import FOLDER
from speedysnn.kernels.compiled import together

Array = Any
BLOCK = 4096
LANES = 16  # elements that a processor works on at once
TOTAL, ERROR, MEAN, STEP, SQUARE, NEXT, ENDS, PER, INVERSE = range(9)  # rows of `work`
ROWS = INVERSE + 1  # PER is 1 / theta, INVERSE is 1 / step

# Compiled code holds the places of the sums and the number of bins as constants, and calls functions of other files: it
# is compiled anew when any file of the folder that declares the sums changes, or any below it.
FILES = sorted(FOLDER.rglob("*.py"))
summed = together(FILES)


@partial(together, fastmath=("reassoc",))(FILES)
def plus(total: float, value: float) -> float:  # pragma: no cover - compiled
    """Add one more term to a sum whose terms may come in any order, so that several are added at once.

    Returns:
        The new total.
    """
    return total + value
