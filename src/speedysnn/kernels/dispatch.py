"""Choose the backend of the multi-step neuron; user entries in BACKENDS win."""

from collections.abc import Callable

from torch import Tensor

from speedysnn.errors import InputError
from speedysnn.kernels import reference
from speedysnn.kernels.rule import Rule

Backend = Callable[[Tensor, Tensor, Tensor, Rule, bool], Tensor]

BACKENDS: dict[str, Backend] = {"reference": reference.multistep}


def multistep(
    drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, *, constant: bool = False, backend: str = "reference"
) -> Tensor:
    """Output theta * s[t] of a layer of neurons for T steps.

    Shapes: drive (T*B, ...) time-major, or (B, ...) if `constant`; theta and v_init broadcast against (B, ...);
    result (T*B, ...). v_init is a fraction of theta.

    Raises:
        InputError: the drive's first dimension is no multiple of T, or the backend is unknown.

    Reference: castagnetti2023
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown kernel {backend!r}: expected one of {', '.join(sorted(BACKENDS))}")
    if not constant and drive.shape[0] % rule.timesteps:
        raise InputError(
            f"time-batched drive: expected a first dimension that is a multiple of T={rule.timesteps}, "
            f"got shape {tuple(drive.shape)}"
        )
    return BACKENDS[backend](drive, theta, v_init, rule, constant)
