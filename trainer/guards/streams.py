"""Random numbers that come again: a stream that somebody seeded anew repeats what was drawn already."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from xxhash import xxh3_64_intdigest

from shared.events import Finding, Severity
from trainer.guards.base import StepView, finding
from trainer.guards.randomness import Randomness

_FIRST, _RECENT = 32, 128
_JSON_BITS = (1 << 53) - 1


class Streams:
    """No step begins with the random states of an earlier one: else it draws the same times, noise and order.

    What seeds anew is a resume that forgot its states, or code that samples amid training. Either leads to
    states of the run's beginning, or of a while ago: so the first 32 and the last 128 are remembered, and
    saved with the run. A rollback takes back the memory with the states, so its steps are new again. Steps
    that draw nothing leave the states as they are, which is no repetition; one that drew, by what ``drawn``
    notes, and is followed by a step that begins as it did, is: something seeds each step alike.

    A warning, at the first, second, fourth, eighth ... repetition. Costs two hashes of 5 KB a step.
    """

    name = "streams"
    scans = False

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._recent: dict[int, int] = {}
        self._last = self._repeats = 0
        self._drew = False
        self._untold: tuple[int, int] | None = None

    def note(self, random: Randomness, iteration: int) -> None:
        """The states with which this step begins."""
        print_ = _print_of(random)
        if print_ == self._last and not self._drew:
            return
        self._last, self._drew = print_, False
        earlier = self._first.get(print_, self._recent.get(print_))
        if earlier is not None:
            self._repeats += 1
            if self._repeats & (self._repeats - 1) == 0:
                self._untold = iteration, earlier
        elif len(self._first) < _FIRST:
            self._first[print_] = iteration
        else:
            self._recent[print_] = iteration
            for old in list(islice(self._recent, max(len(self._recent) - _RECENT, 0))):
                del self._recent[old]

    def drawn(self, random: Randomness) -> None:
        """The states after this step's passes, before anything between steps can seed them anew."""
        self._drew = _print_of(random) != self._last

    def inspect(self, view: StepView) -> Finding | None:
        if self._untold is None:
            return None
        (iteration, earlier), self._untold = self._untold, None
        message = (
            f"random numbers come again: batch {iteration} begins with the random states of batch {earlier}; "
            "something seeds them anew"
        )
        count = float(self._repeats)
        return finding(self.name, view, Severity.WARNING, message, earlier=float(earlier), count=count)

    def state_dict(self) -> dict[str, Any]:
        rows = {
            "first": list(map(list, self._first.items())),
            "recent": list(map(list, self._recent.items())),
        }
        return {**rows, "last": self._last, "repeats": self._repeats, "drew": self._drew}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._first, self._recent = dict(state["first"]), dict(state["recent"])
        self._last, self._repeats = state["last"], state["repeats"]
        self._drew = state.get("drew", False)
        self._untold = None


def _print_of(random: Randomness) -> int:
    """53 bits, which JSON holds; the states are on the host already."""
    print_ = 0
    for state in random.tensors().values():
        print_ = xxh3_64_intdigest(state.numpy().data, print_)
    return print_ & _JSON_BITS
