"""Files that come with the package: the digits images and two networks trained on them (made by `assets.digits`)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from speedysnn.errors import SpeedySNNError

__all__ = ["DIGITS", "asset_path", "weights_name"]

DIGITS = "digits.npz"


def weights_name(pool: str) -> str:
    """File name of the trained digits network with this pooling, "avg" or "max"."""
    return f"digits_{pool}.safetensors"


def asset_path(name: str) -> Path:
    """Path of one bundled file.

    Raises:
        SpeedySNNError: the installation lacks the file.
    """
    path = Path(str(files("speedysnn.assets").joinpath(name)))
    if not path.is_file():
        raise SpeedySNNError(
            f"the bundled file {name!r} is missing from this installation; reinstall speedysnn, "
            "or make the file again with `python -m speedysnn.assets.digits` (needs scikit-learn)"
        )
    return path
