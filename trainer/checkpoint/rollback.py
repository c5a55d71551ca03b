"""The ladder: what to do next about a step that was refused, or about a state that is corrupt.

    refused, and its replay is clean     nothing more: the replay was applied
    refused again, sample named          the sample is set aside, and the run goes on
    3rd left unexplained in 100 steps    back 100 steps before the first, past its data, LR x 0.7
    4th in the window                    stop

    1st corruption in the window         the newest snapshot before it
    2nd                                  an older one, since the newest may hold the fault; LR x 0.7
    3rd                                  a good checkpoint from before the first of them; LR x 0.5, clip x 0.7
    4th, or the budget used up           stop, with the reason

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
        32,
        ge=1,
        description="Refused updates allowed in a row; the next one stops. The 32nd spike in a row is no "
        "refusal to count: there the spike guard takes a new level of loss for what it is.",
    )
    cluster: int = Field(
        100, ge=1, description="Three unexplained refusals within this many steps go back as many, steps."
    )
    skip_batches: int = Field(
        200, ge=0, description="Such a rollback goes on so many batches past the first of them."
    )
    lower_lr: float = Field(0.7, gt=0, le=1, description="Factor on the learning rate at a second fault.")
    lower_lr_more: float = Field(0.5, gt=0, le=1, description="And at a third corruption.")
    lower_clip: float = Field(0.7, gt=0, le=1, description="Factor on the clipping norm there.")
    rewarm: int = Field(50, ge=0, description="Steps in which a lowered rate is reached from nearly 0.")


@dataclass(frozen=True)
class Refuse:
    """Nothing more to do: the update did not happen."""


@dataclass(frozen=True)
class Easing:
    """What a rollback turns down: factors on learning rate and clipping norm, and steps of a new warm-up."""

    lr: float = 1.0
    clip: float = 1.0
    rewarm: int = 0


AS_BEFORE = Easing()


@dataclass(frozen=True)
class RestoreSnapshot:
    """Go back to the snapshot of this step; ``past`` is a batch's number from which data are skipped to."""

    step: int
    easing: Easing = AS_BEFORE
    past: int | None = None


@dataclass(frozen=True)
class LoadCheckpoint:
    """Go back to the newest good checkpoint of a smaller step than this, and go on at batch ``past``.

    With ``good_first`` off it is the newest of all, where nothing speaks against the latest state.
    """

    before_step: int
    easing: Easing = AS_BEFORE
    past: int | None = None
    good_first: bool = True


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
        self._unexplained: list[tuple[int, int]] = []  # step and batch number
        self._jumped_at: int | None = None
        self._refused_in_row = 0

    def applied(self) -> None:
        """An update was applied, all of it, or a new level of loss accepted: a row of refusals is over."""
        self._refused_in_row = 0

    def refused(self, step: int) -> Refuse | Stop:
        """An update, or a part of it, was refused; ``step`` is the number it has or would have had."""
        self._refused_in_row += 1
        if self._refused_in_row > self.config.max_refused_in_row:
            return Stop(f"{self._refused_in_row} updates refused in a row at step {step}")
        return Refuse()

    def unexplained(
        self, step: int, batch: int, *, snapshots: Sequence[int], checkpoints: Sequence[int]
    ) -> Refuse | RestoreSnapshot | LoadCheckpoint | Stop:
        """A refused step stayed bad when it was replayed, and no sample could be set aside for it.

        Args:
            batch: its number in the order of the data.
            snapshots, checkpoints: as for ``corrupt``.
        """
        window, cluster = self.config.window, self.config.cluster
        if self._jumped_at is not None and abs(step - self._jumped_at) < window:
            return Stop(
                f"step {step} stays bad though the run went back and past its data at step {self._jumped_at}"
            )
        near = [one for one in self._unexplained if abs(one[0] - step) < cluster]
        self._unexplained = [*near, (step, batch)]
        if len(self._unexplained) < 3:
            return Refuse()
        first_step, first_batch = min(self._unexplained)
        easing = Easing(self.config.lower_lr)
        past = first_batch + self.config.skip_batches
        far, near_by = first_step - cluster + 1, first_step + 1
        choices: list[RestoreSnapshot | LoadCheckpoint] = [
            *[RestoreSnapshot(at, easing, past) for at in _before(snapshots, far)[:1]],
            *[LoadCheckpoint(far, easing, past) for _ in _before(checkpoints, far)[:1]],
            *[LoadCheckpoint(near_by, easing, past) for _ in _before(checkpoints, near_by)[:1]],
            *[RestoreSnapshot(at, easing, past) for at in _before(snapshots, near_by)[-1:]],
        ]
        if not choices:
            return Refuse()  # skipping goes on until too many in a row
        if self.num_rollbacks >= self.config.max_rollbacks:
            return Stop(self._spent(f"bad steps again at step {step}"))
        self.num_rollbacks += 1
        self._refused_in_row, self._unexplained, self._jumped_at = 0, [], step
        return choices[0]

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
            return Stop(self._spent(f"corrupt again at step {step}"))
        if len(self._corrupt_at) > 3:
            times = f"{len(self._corrupt_at)} times within {self.config.window} steps"
            return Stop(f"corrupt again at step {step}: {times}, and going back has not helped")
        rung = self._next_rung(step, _before(snapshots, step), _before(checkpoints, step))
        if rung is None:
            return Stop(f"corrupt at step {step} and no snapshot or checkpoint from before it")
        self.num_rollbacks += 1
        return rung

    def _spent(self, what: str) -> str:
        return f"{what} after {self.num_rollbacks} rollbacks, all that are allowed"

    def state_dict(self) -> dict[str, Any]:
        """The memory, as JSON."""
        return {
            "num_rollbacks": self.num_rollbacks,
            "corrupt_at": list(self._corrupt_at),
            "unexplained": [list(one) for one in self._unexplained],
            "jumped_at": self._jumped_at,
            "refused_in_row": self._refused_in_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the memory of an earlier process; all of it or, on a ``KeyError``, nothing."""
        memory = state["num_rollbacks"], list(state["corrupt_at"]), state["refused_in_row"]
        # a record of a version before these has none of them
        unexplained = [(step, batch) for step, batch in state.get("unexplained", [])]
        self.num_rollbacks, self._corrupt_at, self._refused_in_row = memory
        self._unexplained, self._jumped_at = unexplained, state.get("jumped_at")

    def _next_rung(
        self, step: int, snapshots: list[int], checkpoints: list[int]
    ) -> RestoreSnapshot | LoadCheckpoint | None:
        """The first choice that is at hand. Both lists hold steps before ``step``, newest first."""
        config, first, times = self.config, min(self._corrupt_at), len(self._corrupt_at)
        easing = {
            1: AS_BEFORE,
            2: Easing(config.lower_lr, rewarm=config.rewarm),
            3: Easing(config.lower_lr_more, config.lower_clip, config.rewarm),
        }[times]
        newest = [RestoreSnapshot(at, easing) for at in snapshots[:1]]
        older = [RestoreSnapshot(at, easing) for at in snapshots[1:2]]
        oldest = [RestoreSnapshot(at, easing) for at in snapshots[-1:]]
        checkpoint = [LoadCheckpoint(step, easing)] if checkpoints else []
        before_first = [LoadCheckpoint(first, easing)] if _before(checkpoints, first) else []
        choices: dict[int, list[RestoreSnapshot | LoadCheckpoint]] = {
            1: [*newest, *checkpoint],
            2: [*older, *checkpoint, *newest],
            3: [*before_first, *checkpoint, *oldest],
        }
        return next(iter(choices[times]), None)


def _before(steps: Sequence[int], step: int) -> list[int]:
    return sorted((at for at in steps if at < step), reverse=True)
