"""Alertmanager's webhook, version 4, as it comes in, and what the monitor answers about each alert."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from shared.base import Message, Moment

MAX_ALERTS = 2_000
EXPECTED = (
    'Alertmanager\'s webhook: {"version": "4", "alerts": [{"status": "firing", "labels": {…}, '
    '"annotations": {…}, "startsAt": TIME, "fingerprint": TEXT}]}'
)
_NEVER = "0001-01-01T"
"""How Go writes a time that is not set."""


class Result(StrEnum):
    """What became of an alert that was received."""

    ORDERED = "ordered"
    REPEATED = "repeated"
    COVERED = "covered"
    RESOLVED = "resolved"
    NOTED = "noted"
    UNKNOWN_RUN = "unknown_run"
    RUN_OVER = "run_over"
    NOT_NOW = "not_now"


OPEN_RESULTS = frozenset({Result.UNKNOWN_RUN, Result.COVERED, Result.NOT_NOW})
"""What may be decided otherwise when the same alert comes again; every other decision stands."""


def _unset_is_none(value: object) -> object:
    return None if isinstance(value, str) and value.startswith(_NEVER) else value


class Alert(Message):
    """One alert. Newer versions of Alertmanager send more; what is not needed here is not looked at."""

    model_config = ConfigDict(extra="ignore")

    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str] = Field(default_factory=dict)
    starts_at: Moment = Field(alias="startsAt")
    ends_at: Annotated[Moment | None, BeforeValidator(_unset_is_none)] = Field(None, alias="endsAt")
    fingerprint: str = Field(min_length=1, max_length=64)

    @property
    def name(self) -> str:
        return self.labels.get("alertname", "an alert without a name")


class Webhook(Message):
    """A group of alerts, as ``webhook_configs`` sends it."""

    model_config = ConfigDict(extra="ignore")

    version: Literal["4"]
    alerts: list[Alert] = Field(max_length=MAX_ALERTS)
    truncated: int = Field(0, ge=0, alias="truncatedAlerts", description="Alerts that were left out.")


class AlertOutcome(Message):
    """What became of one alert."""

    fingerprint: str
    starts_at: Moment
    status: Literal["firing", "resolved"]
    alertname: str
    run: str | None
    result: Result
    detail: str
    command: str | None = Field(None, description="The command that it ordered, now or before.")


class AlertsReceived(Message):
    """What became of each alert, in the order in which they came."""

    alerts: list[AlertOutcome]
    truncated: int = Field(0, description="Alerts that Alertmanager left out of its message.")


class AlertView(AlertOutcome):
    """An alert as it is kept."""

    id: int
    labels: dict[str, str]
    annotations: dict[str, str]
    ends_at: Moment | None
    first_received_at: Moment
    last_received_at: Moment
    times: int = Field(description="How often it came.")


class AlertPage(Message):
    """Alerts, those that came first last."""

    items: list[AlertView]
    next_before: int | None = Field(description="Ask with ``before`` for the next page.")
