"""What is odd about an item that may be trained on all the same: a map or a condition that says nothing."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from trainer.data.items import Item


class Oddity:
    """Tells of a map of one value, and of a plane of the condition that has one value and never should.

    Which planes those are is asked of the data themselves at the start: the ones that vary in each of the
    ``usual`` items. A data set in which some places have no cars, say, is not told of every such place.
    """

    def __init__(self, channels: Sequence[str] = (), usual: Sequence[Item] = ()) -> None:
        planes = set.intersection(*(_varying(item["cond"]) for item in usual)) if usual else set()
        self._planes = {channels[plane]: plane for plane in sorted(planes, reverse=True)}

    def __call__(self, item: Item) -> str | None:
        """What is odd, in words, or None."""
        if not _varying(item["image"]):
            return f"its map is {item['image'].flatten()[0]:g} throughout"
        varying = _varying(item["cond"])
        silent = sorted(name for name, plane in self._planes.items() if plane not in varying)
        if not silent:
            return None
        return f"its condition says nothing of {' and '.join(silent)}: one value throughout"


def _varying(planes: Tensor) -> set[int]:
    """Which of (C, H, W) hold more than one value."""
    flat = planes.flatten(1).numpy()
    return set(np.flatnonzero((flat != flat[:, :1]).any(axis=1)).tolist())
