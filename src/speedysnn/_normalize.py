"""Normalisation of images by name or by numbers: (x - mean) / std a channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from speedysnn.errors import InputError


@dataclass(frozen=True)
class Normalizer:
    """(x - mean) / std for each channel of a (C, H, W) image."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str

    def __call__(self, image: Tensor) -> Tensor:
        """Normalise one image."""
        mean, std = (image.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (image - mean) / std

    def require_fits(self, shape: tuple[int, ...], where: str) -> None:
        """Check that images of this shape can be normalised.

        Raises:
            InputError: not (C, H, W), or another number of channels.
        """
        if len(shape) != 3 or shape[0] != len(self.mean):
            came = f"{shape[0]} channel(s)" if len(shape) == 3 else f"the shape {shape}"
            raise InputError(
                f"{where}: normalize={self.name!r} is for {len(self.mean)} channel(s), the images have {came}; "
                "give one mean and one standard deviation a channel, as '0.5/0.25' or '0.5,0.5,0.5/0.2,0.2,0.2'"
            )


NORMALIZERS: dict[str, Normalizer] = {
    "imagenet": Normalizer((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "imagenet"),
    "cifar10": Normalizer((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "cifar10"),
}


def parse_normalize(text: str | None) -> Normalizer | None:
    """None or 'none', a name in `NORMALIZERS`, or 'means/deviations' with commas between channels.

    Raises:
        InputError: anything else, or a deviation that is not above 0.
    """
    if text is None or text == "none":
        return None
    if text in NORMALIZERS:
        return NORMALIZERS[text]
    expected = f"'none', {', '.join(map(repr, NORMALIZERS))} or 'MEAN,.../STD,...' as '0.5,0.5,0.5/0.2,0.2,0.2'"
    try:
        means, deviations = (tuple(float(value) for value in part.split(",")) for part in text.split("/"))
    except ValueError:
        raise InputError(f"normalize={text!r} is not understood; expected {expected}") from None
    if len(means) != len(deviations) or not all(map(math.isfinite, means)):
        raise InputError(f"normalize={text!r} has {len(means)} means and {len(deviations)} deviations, not one each")
    if not all(math.isfinite(value) and value > 0 for value in deviations):
        raise InputError(f"normalize={text!r}: every standard deviation must be above 0; expected {expected}")
    return Normalizer(means, deviations, text)
