"""Strict JSON: no NaN, no Infinity, no numpy."""

import math
from typing import Any


def plain(value: Any) -> Any:
    """A figure as JSON data: infinities as the words "inf" and "-inf", NaN and what was not measured as None."""
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return None
    return "inf" if value > 0 else "-inf"
