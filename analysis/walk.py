"""The law of a Gaussian drive's running sum, on a grid, carried from step to step."""

import math
from dataclasses import dataclass

import numpy as np

from speedysnn.analysis.continuous import Array
from speedysnn.analysis.drive import Drive
from speedysnn.errors import InputError

_SPAN = 7.0  # standard deviations on either side that the grid holds
_CELLS = 24  # of the grid in one theta, at least
_PER_STEP = 2.0  # and in one standard deviation of a step's noise
_LARGEST = 2**23  # cells times counts


@dataclass(frozen=True)
class Walk:
    """Cells of y, their borders on the quantizer's at the last step; theta is 1.

    Attributes:
        drive: of theta = 1.
        v_init: initial membrane.
        low: lower border of the first cell.
        width: of a cell.
        cells: how many.
    """

    drive: Drive
    v_init: float
    low: float
    width: float
    cells: int

    @staticmethod
    def of(drive: Drive, timesteps: int, v_init: float, levels: int) -> "Walk":
        """A grid that resolves theta and the noise of every step, over `_SPAN` deviations of the last sum."""
        from scipy.fft import next_fast_len

        growth = drive.between / drive.within
        last = 1 + timesteps * growth
        noise = math.sqrt(drive.within * last / (1 + (timesteps - 1) * growth))  # of the last step, as of S[T]
        width = 1 / last / math.ceil(max(_CELLS, _PER_STEP / noise))
        reach = _SPAN * math.sqrt(timesteps * drive.within / last)
        cells = 2 * reach / width + 2
        if cells * (levels + 1) > _LARGEST:
            raise InputError(
                f"drive: between {drive.between:g} over within {drive.within:g} (in units of theta squared) at T = "
                f"{timesteps} needs a grid of {cells * (levels + 1):.1e} cells, more than {_LARGEST:.1e}; take fewer "
                "steps, or early_spikes; where within is tiny next to 1, next to no error is left"
            )
        border = -(v_init + timesteps * drive.mean) / last
        low = border - math.ceil((reach + border) / width) * width
        return Walk(drive, v_init, low, width, int(next_fast_len(math.ceil(cells), real=True)))

    def scale(self, k: int) -> float:
        """1 + k a, what one y is of S[k]."""
        return 1 + k * self.drive.between / self.drive.within

    def variance(self, k: int) -> float:
        """Var y_k = k within / (1 + k a)."""
        return k * self.drive.within / self.scale(k)

    def start(self, k: int) -> Array:
        """The law of y_k, (cells,)."""
        from scipy.special import ndtr

        borders = self.low + self.width * np.arange(self.cells + 1)
        return np.asarray(np.diff(ndtr(borders / math.sqrt(self.variance(k)))))

    def spread(self, mass: Array, variance: float) -> Array:
        """Rows (n, cells) convolved with a Gaussian."""
        from scipy.fft import irfft, rfft

        wave = 2 * np.pi * np.arange(self.cells // 2 + 1) / (self.cells * self.width)
        out: Array = irfft(rfft(mass, axis=1) * np.exp(-(wave**2) * variance / 2), n=self.cells, axis=1)
        return out

    def reached(self, k: int, t: int, rows: int) -> Array:
        """The part of each cell where (t/k) S[k] + v_init >= q, for q = 1..rows - 1; (rows - 1, cells)."""
        step = (t / k) * self.scale(k)
        low = (t / k) * k * self.drive.mean + self.v_init + step * (self.low + self.width * np.arange(self.cells))
        share = (low + step * self.width - np.arange(1, rows)[:, None]) / (step * self.width)
        return np.asarray(np.clip(share, 0.0, 1.0))
