"""Confidence intervals of means over maps that share their buildings."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

CONFIDENCE = 0.95


def margin(values: Sequence[float], groups: Sequence[str]) -> float | None:
    """Half the width of the 95 % interval around the mean of ``values``; None with fewer than two groups.

    Student's t over the means of the groups: maps of one window share its buildings, so that two of them say
    little more than one. A bootstrap over so few groups would give intervals that are too narrow.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        return None
    means = [
        np.mean([value for value, group in zip(values, groups, strict=True) if group == name])
        for name in names
    ]
    return student_t(len(names) - 1) * float(np.std(means, ddof=1)) / math.sqrt(len(names))


@cache
def student_t(degrees: int, confidence: float = CONFIDENCE) -> float:
    """What Student's t stays below in absolute value with that probability; good to five digits.

    With t = sqrt(degrees) * tan(angle) the density is cos(angle)^(degrees - 1): a sum over a quarter turn.
    """
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (degrees - 1)
    probability = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    angle = np.interp(confidence, probability / probability[-1], angles)
    return math.sqrt(degrees) * math.tan(angle)
