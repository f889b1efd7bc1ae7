"""What is reported of several values."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation, as the field reports them; the deviation of one value is 0."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
