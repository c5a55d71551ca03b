"""The ladder: what to do next about a step that was refused, or about a state that is corrupt.

    refused step               nothing more: the device kept the weights
    1st corruption in window   the newest snapshot before it
    2nd                        an older snapshot, since the newest may hold the fault
    3rd and later              a good checkpoint from before the first of them
    budget used up             stop, with the reason

Only decides: no tensors, no disk, no clock. Where a rung has nothing to offer the next best is taken, and
``Stop`` is the answer only when nothing is left or the budget is. A ladder must outlive the rollbacks that it
orders: keep the live one when a state is restored, and load its memory only in a new process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from trainer.section import Section


class LadderConfig(Section):
    """How long the ladder remembers, and when it gives up."""

    window: int = Field(
        1000, ge=1, description="Corruptions within this many steps of each other climb, steps."
    )
    max_rollbacks: int = Field(8, ge=0, description="Rollbacks allowed in a run; the next one stops it.")
    max_refused_in_row: int = Field(
        40,
        ge=1,
        description="Refused updates allowed in a row; the next one stops. Above the 32 flags after which "
        "the spike guard takes a new level of loss for what it is.",
    )


@dataclass(frozen=True)
class Refuse:
    """Nothing more to do: the update did not happen."""


@dataclass(frozen=True)
class RestoreSnapshot:
    """Go back to the snapshot of this step."""

    step: int


@dataclass(frozen=True)
class LoadCheckpoint:
    """Go back to the newest good checkpoint of a smaller step than this."""

    before_step: int


@dataclass(frozen=True)
class Stop:
    """End the run: going on would loop."""

    reason: str


Rung = Refuse | RestoreSnapshot | LoadCheckpoint | Stop


class Ladder:
    """Remembers what happened and answers the next rung."""

    def __init__(self, config: LadderConfig) -> None:
        self.config = config
        self.num_rollbacks = 0
        self._corrupt_at: list[int] = []
        self._refused_in_row = 0

    def applied(self) -> None:
        """An update was applied, all of it: a row of refusals is over."""
        self._refused_in_row = 0

    def refused(self, step: int) -> Refuse | Stop:
        """An update, or a part of it, was refused; ``step`` is the number it has or would have had."""
        self._refused_in_row += 1
        if self._refused_in_row > self.config.max_refused_in_row:
            return Stop(f"{self._refused_in_row} updates refused in a row at step {step}")
        return Refuse()

    def corrupt(
        self, step: int, *, snapshots: Sequence[int], checkpoints: Sequence[int]
    ) -> RestoreSnapshot | LoadCheckpoint | Stop:
        """The state was found corrupt at ``step``; every answer but ``Stop`` counts as a rollback.

        Args:
            snapshots, checkpoints: steps of what could be loaded, in any order. What is not from before
                ``step`` may hold the fault and is left out.
        """
        self._corrupt_at = [at for at in self._corrupt_at if at > step - self.config.window] + [step]
        self._refused_in_row = 0
        if self.num_rollbacks >= self.config.max_rollbacks:
            return Stop(
                f"corrupt again at step {step} after {self.num_rollbacks} rollbacks, all that are allowed"
            )
        rung = self._next_rung(step, _before(snapshots, step), _before(checkpoints, step))
        if rung is None:
            return Stop(f"corrupt at step {step} and no snapshot or checkpoint from before it")
        self.num_rollbacks += 1
        return rung

    def state_dict(self) -> dict[str, Any]:
        """The memory, as JSON."""
        return {
            "num_rollbacks": self.num_rollbacks,
            "corrupt_at": list(self._corrupt_at),
            "refused_in_row": self._refused_in_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the memory of an earlier process; all of it or, on a ``KeyError``, nothing."""
        memory = state["num_rollbacks"], list(state["corrupt_at"]), state["refused_in_row"]
        self.num_rollbacks, self._corrupt_at, self._refused_in_row = memory

    def _next_rung(
        self, step: int, snapshots: list[int], checkpoints: list[int]
    ) -> RestoreSnapshot | LoadCheckpoint | None:
        """The first choice that is at hand. Both lists hold steps before ``step``, newest first."""
        first = min(self._corrupt_at)
        newest = [RestoreSnapshot(at) for at in snapshots[:1]]
        older = [RestoreSnapshot(at) for at in snapshots[1:2]]
        oldest = [RestoreSnapshot(at) for at in snapshots[-1:]]
        checkpoint = [LoadCheckpoint(step)] if checkpoints else []
        before_first = [LoadCheckpoint(first)] if _before(checkpoints, first) else []
        choices: dict[int, list[RestoreSnapshot | LoadCheckpoint]] = {
            1: [*newest, *checkpoint],
            2: [*older, *checkpoint, *newest],
            3: [*before_first, *checkpoint, *oldest],
        }
        return next(iter(choices[min(len(self._corrupt_at), 3)]), None)


def _before(steps: Sequence[int], step: int) -> list[int]:
    return sorted((at for at in steps if at < step), reverse=True)
