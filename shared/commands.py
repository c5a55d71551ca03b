"""What a monitor may ask of a trainer, and the life of such a command."""

from enum import StrEnum

from pydantic import Field, model_validator

from shared.base import Message, Moment


class CommandKind(StrEnum):
    """The three things a monitor may ask."""

    ROLL_BACK = "roll_back"
    STOP = "stop"
    SAVE_CHECKPOINT = "save_checkpoint"


class CommandState(StrEnum):
    """``pending -> delivered -> accepted -> succeeded | failed | refused | expired``.

    Taken back while pending it is ``cancelled`` at once; while delivered it is ``cancelling`` until the
    trainer says that it dropped it, or that it was faster.
    """

    PENDING = "pending"
    DELIVERED = "delivered"
    ACCEPTED = "accepted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


OPEN_COMMAND_STATES = frozenset(
    {CommandState.PENDING, CommandState.DELIVERED, CommandState.ACCEPTED, CommandState.CANCELLING}
)


class Command(Message):
    """An order to one attempt of one run, carried out at most once, at a step boundary."""

    id: str = Field(min_length=1, max_length=64)
    kind: CommandKind
    reason: str = Field(min_length=1, max_length=500)
    issued_by: str = Field(min_length=1, max_length=100)
    issued_at: Moment
    expires_at: Moment
    attempt: int = Field(ge=1, description="The attempt it was meant for; a younger attempt refuses it.")
    to_step: int | None = Field(
        None, ge=0, description="Go back to this step or before; default: the newest good."
    )


class Withdrawal(Message):
    """A command is taken back; ``id`` is the command's."""

    id: str


Asked = Command | Withdrawal
"""What a trainer is asked for."""


class CommandRequest(Message):
    """What a person, a rule or an alert asks the monitor to order."""

    kind: CommandKind
    reason: str = Field(min_length=1, max_length=500)
    issued_by: str = Field("operator", min_length=1, max_length=100)
    to_step: int | None = Field(None, ge=0)
    valid_for_s: float = Field(
        300.0, gt=0, le=86_400, description="The order lapses after this time, seconds."
    )

    @model_validator(mode="after")
    def _only_rollbacks_have_a_goal(self) -> "CommandRequest":
        if self.to_step is not None and self.kind is not CommandKind.ROLL_BACK:
            raise ValueError(f"to_step goes with roll_back only, not with {self.kind}; leave it out")
        return self
