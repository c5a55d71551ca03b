"""A command before it is ordered: where it leads, what it costs, and what stands in its way."""

from dataclasses import dataclass

from sqlalchemy import Connection

from monitor_service import queries
from monitor_service.concerns import Suggestion
from monitor_service.facts import Facts
from monitor_service.health import OVER
from monitor_service.views import CheckpointView, RunDetail
from monitor_service.web import words
from shared.commands import OPEN_COMMAND_STATES, CommandKind
from shared.events import CheckpointState

_DOES = {
    CommandKind.STOP: "The trainer ends at the next step boundary, and keeps a checkpoint of that moment.",
    CommandKind.SAVE_CHECKPOINT: "The trainer keeps a checkpoint at the next step boundary and goes on.",
}


@dataclass(frozen=True)
class Proposal:
    """What the page of an order tells; with an ``obstacle`` there is nothing to confirm."""

    run: RunDetail
    kind: CommandKind
    to_step: int | None
    goal: CheckpointView | None
    step_seconds: float | None
    obstacle: str | None
    suggestion: Suggestion | None = None

    @classmethod
    def read(
        cls, connection: Connection, run: str, kind: CommandKind, to_step: int | None, suggestion: str = ""
    ) -> "Proposal":
        """What it would do; ``suggestion`` is the id of one that it accepts. Raises NotFound: no such run."""
        detail = queries.run_detail(connection, run)
        facts = Facts.model_validate_json(queries.run_row(connection, run).facts)
        known = queries.checkpoints(connection, run).items
        goal = _goal(known, to_step) if kind is CommandKind.ROLL_BACK else None
        obstacle = _obstacle(detail, kind) or _of_open(connection, run, kind)
        if obstacle is None and kind is CommandKind.ROLL_BACK:
            obstacle = _of_goal(known, goal, to_step)
        stands = facts.judged.suggestion
        if obstacle is None and suggestion and (stands is None or stands.id != suggestion):
            obstacle = "What was suggested has passed; look how the run is now."
        if obstacle is None and suggestion and (kind is not CommandKind.ROLL_BACK or to_step is not None):
            obstacle = "A suggestion is a rollback to the newest good checkpoint; take it up as it is."
        accepted = stands if suggestion else None
        return cls(detail, kind, to_step, goal, facts.step_seconds, obstacle, accepted)

    @property
    def label(self) -> str:
        """What is ordered, in a few words."""
        if self.goal is None:
            return words.COMMAND[self.kind]
        return f"Roll back to step {self.goal.step:,}"

    @property
    def steps_lost(self) -> int:
        """Updates that a rollback throws away, as far as is known now."""
        return max((self.run.step or 0) + 1 - self.goal.step, 0) if self.goal else 0

    @property
    def effect(self) -> str:
        """What the trainer does then."""
        if self.goal is None:
            return _DOES.get(self.kind, "")
        return (
            f"The trainer goes back from step {words.grouped(self.run.step)} to checkpoint "
            f"{self.goal.checkpoint}, if that passes every check, and begins attempt {self.run.attempt + 1}."
        )

    @property
    def price(self) -> str:
        """What is thrown away, in steps and in time."""
        if self.goal is None:
            return ""
        thrown = f"{words.steps(self.steps_lost)} {'is' if self.steps_lost == 1 else 'are'} thrown away"
        if self.step_seconds is None:
            return f"{thrown}; how long a step takes is not known yet."
        return f"{thrown}: about {words.seconds(self.steps_lost * self.step_seconds)} of training."


def _goal(known: list[CheckpointView], to_step: int | None) -> CheckpointView | None:
    """Where the trainer would go: the newest good checkpoint, at ``to_step`` or before."""
    good = (one for one in known if one.state is CheckpointState.GOOD)
    return next((one for one in good if to_step is None or one.step <= to_step), None)


def _obstacle(run: RunDetail, kind: CommandKind) -> str | None:
    if run.status in OVER:
        return f"The run is over ({run.status}); nobody would carry out a command."
    if run.attempt == 0:
        return "The run has not sent anything yet; there is nobody to obey."
    return None


def _of_open(connection: Connection, run: str, kind: CommandKind) -> str | None:
    for one in queries.commands(connection, run).items:
        if one.kind is kind and one.state in OPEN_COMMAND_STATES:
            return (
                f"A command of this kind, ordered by {one.issued_by}, is {one.state}; wait for its outcome."
            )
    return None


def _of_goal(known: list[CheckpointView], goal: CheckpointView | None, to_step: int | None) -> str | None:
    if goal is not None and to_step in (None, goal.step):
        return None
    asked = next((one for one in known if one.step == to_step), None)
    if asked is not None:
        fails = f" (it fails {asked.failed_check})" if asked.failed_check else ""
        return (
            f"Checkpoint {asked.checkpoint} is {asked.state}{fails}, and the trainer goes back to good ones "
            "only. Choose another."
        )
    if goal is None:
        where = "" if to_step is None else f" at step {to_step:,} or before"
        return f"There is no good checkpoint{where} to go back to."
    return None
