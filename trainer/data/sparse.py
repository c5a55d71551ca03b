"""Sparse measurements: a map's gain at a few outdoor places, and 0 wherever nothing was measured."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trainer.data.gray import Gray

Mask = NDArray[np.bool_]
"""A choice of pixels, (side, side)."""

_SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))
_DIAGONALS = ((-1, -1), (-1, 1), (1, -1), (1, 1))


@dataclass(frozen=True)
class Sampling:
    """Where a map is measured."""

    at: Literal["edges", "corners", "anywhere"]
    """All along the walls, at the corners of buildings only, or at random outdoor places."""

    scattered: bool = False
    """As many measurements as ``at`` tells, but at random outdoor places: what the chosen ones are worth."""


def measured(gain: Gray, places: Mask) -> Gray:
    """The gain at ``places``, else 0. A gain of 0 can't be told from no measurement, as upstream."""
    return np.where(places, gain, np.uint8(0))


def places_of(buildings: Gray, sampling: Sampling, number: int, rng: np.random.Generator) -> Mask:
    """Where to measure among these buildings (0 is outdoors, and nothing else).

    ``number`` counts for ``anywhere`` alone. All outdoor pixels are measured where there are fewer.
    """
    indoors = buildings > 0
    if sampling.at == "anywhere":
        return _scattered(indoors, number, rng)
    chosen = edges(indoors) if sampling.at == "edges" else corners(indoors)
    return _scattered(indoors, int(chosen.sum()), rng) if sampling.scattered else chosen


def edges(indoors: Mask) -> Mask:
    """Outdoor pixels that share a side with a building."""
    return ~indoors & _touches(indoors, _SIDES)


def corners(indoors: Mask) -> Mask:
    """Outdoor pixels that touch a building at its corner only: also along the stairs of a slanted wall."""
    return ~indoors & ~_touches(indoors, _SIDES) & _touches(indoors, _DIAGONALS)


def _touches(indoors: Mask, steps: tuple[tuple[int, int], ...]) -> Mask:
    (height, width), padded = indoors.shape, np.pad(indoors, 1)
    found = np.zeros_like(indoors)
    for down, right in steps:
        found |= padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
    return found


def _scattered(indoors: Mask, number: int, rng: np.random.Generator) -> Mask:
    outdoors = np.flatnonzero(~indoors)
    mask = np.zeros_like(indoors)
    mask.flat[rng.choice(outdoors, min(number, len(outdoors)), replace=False)] = True
    return mask
