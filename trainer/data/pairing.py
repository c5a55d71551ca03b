"""Whether a map belongs to its condition: no signal is drawn inside the buildings it is said to have."""

import logging
from collections.abc import Sequence

import numpy as np

from trainer.data.items import Item

log = logging.getLogger(__name__)

_LEAST_INSIDE = 16  # pixels; fewer prove nothing
_LIT = -0.99  # a pixel above this has a signal: values lie in [-1, 1]
_DARK_SHARE = 0.01
_WRONG_SHARE = 0.1


class Pairing:
    """Refuses a map that is lit inside its buildings, in data where none is.

    The published maps have no signal inside buildings, to the last pixel (so have the embedded ones), while
    the buildings of another map stand where this one is lit: in at least a fifth of their pixels, in all
    pairs that were tried. Whether it holds is asked of the data themselves at the start, of the ``usual``
    items; where it does not, nothing is refused, and the log says so.
    """

    def __init__(self, channels: Sequence[str], usual: Sequence[Item]) -> None:
        self._plane = channels.index("buildings") if "buildings" in channels else None
        self.holds = self._plane is not None and self._holds_in(usual)
        if not self.holds:
            log.info("maps are lit inside buildings here: nothing tells a map that belongs elsewhere")

    def __call__(self, item: Item) -> str | None:
        """Why the item must not be trained on, or None."""
        share = self._lit_inside(item) if self.holds else None
        if share is None or share <= _WRONG_SHARE:
            return None
        return f"its condition is another map's: {share:.0%} of the pixels inside its buildings have a signal"

    def _holds_in(self, usual: Sequence[Item]) -> bool:
        shares = [self._lit_inside(item) for item in usual]
        known = [share for share in shares if share is not None]
        return bool(known) and max(known) <= _DARK_SHARE

    def _lit_inside(self, item: Item) -> float | None:
        """Share of the pixels wholly inside buildings that have a signal; None if there are too few."""
        plane = item["cond"][self._plane].numpy()
        inside = plane >= _INSIDE
        count = int(np.count_nonzero(inside))
        if count < _LEAST_INSIDE:
            return None
        return int(np.count_nonzero(item["image"][0].numpy()[inside] > _LIT)) / count


_INSIDE = 255 / 256 * 2 - 1  # of the two scales that conditions come in, the smaller one's full value
