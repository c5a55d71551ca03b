"""How the condition shows where the antenna stands: one bright pixel, or the distance to it."""

import math
from typing import Literal

import numpy as np

from trainer.data.gray import Gray

AntennaForm = Literal["pixel", "distance"]


def antenna_plane(cell: tuple[int, int], side: int, form: AntennaForm) -> Gray:
    """The antenna's channel, (side, side), 255 at ``cell`` (row, column) in both forms.

    ``pixel`` is the published one: 0 everywhere else. ``distance`` falls with the logarithm of the distance
    to 0 at the map's diagonal, so each place knows how far away the antenna is; half a pixel counts as 0.
    """
    if form == "pixel":
        plane = np.zeros((side, side), dtype=np.uint8)
        plane[cell] = 255
        return plane
    rows, columns = np.ogrid[:side, :side]
    doubled = np.maximum(2 * np.hypot(rows - cell[0], columns - cell[1]), 1)
    gray: Gray = np.rint(255 * (1 - np.log(doubled) / math.log(2 * math.hypot(side, side)))).astype(np.uint8)
    return gray
