"""Landmarks of a run: the newest alarm, return, end, checkpoints, prediction, and the order that waits."""

from pydantic import BaseModel, Field

from shared.base import Moment
from shared.commands import Command
from shared.events import Severity


class Alarm(BaseModel):
    """The newest finding of severity error or critical."""

    attempt: int
    step: int
    words: str


class Return(BaseModel):
    """The newest rollback."""

    to_step: int
    words: str


class End(BaseModel):
    """The trainer said that it ended."""

    attempt: int
    status: str
    message: str
    at: Moment
    step: int | None = Field(None, ge=0)


class GoodCheckpoint(BaseModel):
    """The newest checkpoint in state good."""

    checkpoint: str
    step: int


class ValidCheckpoint(BaseModel):
    """The newest checkpoint that passed every check, good already or not."""

    step: int


class Prediction(BaseModel):
    """The newest finding that predicts a divergence."""

    attempt: int
    step: int
    severity: Severity
    words: str


class Unanswered(BaseModel):
    """The oldest command that the trainer has said nothing about."""

    command: str
    kind: str
    since: Moment
    expires_at: Moment

    @classmethod
    def of(cls, command: Command) -> "Unanswered":
        return cls(
            command=command.id, kind=command.kind, since=command.issued_at, expires_at=command.expires_at
        )


class TakenBack(BaseModel):
    """A rollback that a person cancelled."""

    at: Moment
    words: str
