"""What every formula of noise theory asks of its neuron."""

import math

import numpy as np

from speedysnn.errors import InputError


def check_whole(least: int = 1, **numbers: int) -> None:
    """Refuse what is no whole number or below `least`, by its name.

    Raises:
        InputError: one of them is not.
    """
    for name, value in numbers.items():
        if not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def check_neuron(timesteps: int, v_init: float, highest: int = 1, theta: float = 1.0) -> None:
    """Refuse what no neuron can have.

    Raises:
        InputError: T or N no whole number of at least 1, v_init outside 0..1, theta not positive and finite.
    """
    check_whole(timesteps=timesteps, highest=highest)
    if not 0 <= v_init <= 1:
        raise InputError(f"v_init: expected a fraction of theta between 0 and 1, got {v_init!r}")
    if not (theta > 0 and math.isfinite(theta)):
        raise InputError(f"theta: expected a positive finite threshold, got {theta!r}")
