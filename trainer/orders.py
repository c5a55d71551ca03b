"""Carries out what the monitor asks: each command once, at a step boundary."""

from collections.abc import Sequence
from typing import Literal, Protocol

from shared.commands import Asked, Command, CommandKind, Withdrawal
from shared.events import CommandUpdate
from trainer.checkpoint.errors import NoValidCheckpoint
from trainer.reporting import Reporter
from trainer.state import TrainState

SAID_AGAIN = 8
"""Newest commands whose last word each process says again when it begins: so many arrive at one step."""

Outcome = Literal["accepted", "succeeded", "failed", "refused", "cancelled"]


class Obedient(Protocol):
    """A training that can be ordered about, between two of its steps."""

    @property
    def state(self) -> TrainState: ...

    def settle(self) -> None: ...
    def is_sound(self) -> bool: ...
    def save_checkpoint(self) -> None: ...
    def stop(self, reason: str) -> None: ...
    def go_back(
        self, reason: str, trigger: Literal["guard", "command"], *, command: str, at_most: int | None
    ) -> None: ...


class Orders:
    """Takes commands from the link, refuses those for another attempt, and reports how each went.

    A command whose time is over never gets here: the link knows that by the monitor's clock. The ids it has
    seen are in the run's record, which no rollback takes back and every restart reads: a command that comes
    twice is carried out once. So is the last word on each. What an earlier process did not finish is said to
    have failed; what it finished is said again, since the first word may have died with it.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._seen = set(reporter.record.commands_seen)
        self._told_before = list(reporter.record.commands_told)[-SAID_AGAIN:]
        self._saved: tuple[int, int] | None = None

    def carry_out(self, loop: Obedient, asked: Sequence[Asked]) -> None:
        """Do what has arrived since the last step."""
        self._say_what_may_be_lost(loop)
        for one in asked:
            if one.id in self._seen:
                continue
            loop.settle()
            self._seen.add(one.id)
            self._reporter.record.commands_seen.append(one.id)
            if isinstance(one, Withdrawal):
                self._tell(loop, one.id, "cancelled", "dropped before it was carried out")
            elif (refusal := self._refusal(one)) is not None:
                self._tell(loop, one.id, "refused", refusal)
            else:
                self._tell(loop, one.id, "accepted")
                self._tell(loop, one.id, *self._obey(loop, one))

    def _say_what_may_be_lost(self, loop: Obedient) -> None:
        """Once in each life, unasked: the monitor may have given those up when this process began."""
        for id_ in self._told_before:
            told = self._reporter.record.commands_told[id_]
            if told.state == "accepted":
                self._tell(loop, id_, "failed", "the process that carried it out ended before it was done")
            else:
                self._reporter.command(told)
        self._told_before = []

    def _refusal(self, command: Command) -> str | None:
        attempt = self._reporter.record.attempt
        if command.attempt != attempt:
            return f"it was meant for attempt {command.attempt}, the run is at attempt {attempt}"
        return None

    def _obey(self, loop: Obedient, command: Command) -> tuple[Outcome, str]:
        match command.kind:
            case CommandKind.ROLL_BACK:
                return self._roll_back(loop, command)
            case CommandKind.SAVE_CHECKPOINT:
                return self._save(loop)
            case CommandKind.STOP:
                loop.stop(f"{command.issued_by}: {command.reason}")
                return "succeeded", "stopping at this step with a checkpoint"

    def _save(self, loop: Obedient) -> tuple[Outcome, str]:
        here = self._reporter.record.attempt, loop.state.step
        if self._saved == here:
            return "succeeded", f"a checkpoint of step {loop.state.step} is being written already"
        if not loop.is_sound():
            return "failed", f"the state was corrupt; the run went back to step {loop.state.step}"
        loop.save_checkpoint()
        self._saved = here
        return "succeeded", f"a checkpoint of step {loop.state.step} is being written"

    def _roll_back(self, loop: Obedient, command: Command) -> tuple[Outcome, str]:
        before = loop.state.step
        try:
            loop.go_back(command.reason, "command", command=command.id, at_most=command.to_step)
        except (NoValidCheckpoint, OSError) as error:  # no file handle left, say: the run goes on as it was
            return "failed", str(error)
        return "succeeded", f"went back from step {before} to step {loop.state.step}"

    def _tell(self, loop: Obedient, id_: str, state: Outcome, message: str = "") -> None:
        update = CommandUpdate(step=loop.state.step, command=id_, state=state, message=message)
        self._reporter.record.commands_told[id_] = update
        self._reporter.command(update)
