"""The batches that were carried out, and whose numbers are still on their way to the host."""

from collections import deque
from collections.abc import Iterator, Sequence

from trainer.guards.vitals import Meter
from trainer.taken import Taken


class UnderWay:
    """Brings the numbers of all meters together, batch by batch, in the order in which they were taken."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        self._meters, self._waiting = list(meters), deque[Taken]()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, taken: Taken) -> None:
        """Its phases are over, and every meter has sent its numbers off."""
        self._waiting.append(taken)

    def forget(self) -> None:
        """They are of a stretch that is given up."""
        self._waiting.clear()

    def arrived(self, wait: bool) -> Iterator[Taken]:
        """Those of which all numbers have come; with ``wait`` all. They may be forgotten on the way."""
        for meter in self._meters:
            for vitals in meter.arrived(wait=wait):
                next(t for t in self._waiting if t.iteration == vitals.iteration).vitals.append(vitals)
        while self._waiting and len(self._waiting[0].vitals) == len(self._meters):
            yield self._waiting.popleft()
