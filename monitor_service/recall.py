"""Facts of each run beside the text they were written as: a row that still holds it need not be parsed.

A row that another monitor wrote, or whose last writing was undone, holds another text and is parsed.
"""

from collections import OrderedDict

from monitor_service.facts import Facts

MOST = 4096
"""Runs whose facts are kept, well above those that ``/metrics`` tells of; those written longest ago leave."""


class Recall:
    """What the thread that writes knows of runs; nobody else may ask it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[str, Facts]] = OrderedDict()

    def facts_in(self, run: int, text: str) -> Facts:
        """The facts that the row of a run says. They are the caller's own, to be changed."""
        known, facts = self._kept.pop(run, (None, None))
        return facts if facts is not None and known == text else Facts.model_validate_json(text)

    def keep(self, run: int, text: str, facts: Facts) -> None:
        """Remember facts that were written as ``text``; from here on nobody changes them."""
        self._kept[run] = text, facts
        self._kept.move_to_end(run)
        if len(self._kept) > MOST:
            self._kept.popitem(last=False)
