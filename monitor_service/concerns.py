"""What the monitor makes of a run besides its status: concerns, the risk, a suggestion."""

from enum import StrEnum

from pydantic import Field

from monitor_service.record import Record
from shared.base import Message, Moment
from shared.events import Severity


class Rule(StrEnum):
    """What the monitor itself looks out for in every run."""

    LOSS_RISEN = "loss_risen"
    LOSS_DIVERGED = "loss_diverged"
    NO_VALID_CHECKPOINT = "no_valid_checkpoint"
    ROLLBACK_LOOP = "rollback_loop"
    SPOOL_GROWING = "spool_growing"
    REPORTS_DROPPED = "reports_dropped"
    SEQUENCE_GAP = "sequence_gap"
    COMMAND_UNANSWERED = "command_unanswered"


class Concern(Message):
    """A rule that speaks, since when, and why in words that stay true."""

    rule: Rule
    severity: Severity
    since: Moment
    words: str


class RiskLevel(StrEnum):
    """How likely it is that the run diverges."""

    NONE = "none"
    RAISED = "raised"
    HIGH = "high"


class Risk(Message):
    """The risk of divergence, and what speaks for it."""

    level: RiskLevel = RiskLevel.NONE
    reasons: list[str] = Field(default_factory=list)


class Suggestion(Message):
    """A rollback that the policy would order, if it might: a person accepts it by its id."""

    id: str
    reason: str
    since: Moment


class Acceptance(Message):
    """A person takes up a suggestion."""

    suggestion: str = Field(min_length=1, max_length=64, description="Its id, as health tells it.")
    issued_by: str = Field("operator", min_length=1, max_length=100)


class Judgement(Record):
    """What was made of a run's facts, kept with them."""

    pending: dict[Rule, Moment] = Field(
        default_factory=dict, description="Since when the condition of a rule holds; it speaks only later."
    )
    concerns: list[Concern] = Field(default_factory=list)
    risk: Risk = Field(default_factory=Risk)
    suggestion: Suggestion | None = None
    needs_person: str | None = Field(None, description="Why nothing more is ordered without a person.")
