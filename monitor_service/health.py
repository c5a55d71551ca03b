"""How a run is, as a function of facts and the present moment: no clock, no database, no HTTP."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from monitor_service.facts import Facts
from monitor_service.settings import HealthConfig


class RunStatus(StrEnum):
    """How a run is. Silence is never ``failed``: that, as every end, only the trainer can say."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    RECOVERING = "recovering"
    DIVERGED = "diverged"
    STALLED = "stalled"
    LOST = "lost"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


OVER = frozenset({RunStatus.FINISHED, RunStatus.STOPPED, RunStatus.FAILED})
"""The run said that it ended; only a new attempt opens it again."""


@dataclass(frozen=True)
class Health:
    """A status with its reasons in words. They name moments, not durations, so that they stay true."""

    status: RunStatus
    reasons: tuple[str, ...]


def assess(facts: Facts, now: datetime, config: HealthConfig) -> Health:
    """The status at ``now``. The first rule that speaks decides; silence outweighs what was said before."""
    for rule in (_ended, _lost, _stalled, _recovering, _diverged, _suspect):
        health = rule(facts, now, config)
        if health is not None:
            return health
    where = "no step received yet" if facts.step is None else f"training, step {facts.step}"
    return Health(RunStatus.HEALTHY, (where,))


def stalled_after(facts: Facts, config: HealthConfig) -> timedelta:
    """How long this run may go without a new step."""
    own = config.stalled_after_step_times * (facts.step_seconds or 0.0)
    return timedelta(seconds=min(max(own, config.stalled_after_s), timedelta.max.total_seconds() / 2))


def _ended(facts: Facts, now: datetime, config: HealthConfig) -> Health | None:
    if facts.ended is None:
        return None
    said = f": {facts.ended.message}" if facts.ended.message else ""
    return Health(RunStatus(facts.ended.status), (f"the trainer reported {facts.ended.status}{said}",))


def _lost(facts: Facts, now: datetime, config: HealthConfig) -> Health | None:
    if now - facts.last_seen <= timedelta(seconds=config.lost_after_s):
        return None
    return Health(RunStatus.LOST, (f"nothing heard since {_clock(facts.last_seen)}",))


def _stalled(facts: Facts, now: datetime, config: HealthConfig) -> Health | None:
    if now - facts.progress_at <= stalled_after(facts, config):
        return None
    return Health(
        RunStatus.STALLED, (f"the trainer answers, but no new step since {_clock(facts.progress_at)}",)
    )


def _recovering(facts: Facts, now: datetime, config: HealthConfig) -> Health | None:
    if facts.obeying is not None:
        return Health(RunStatus.RECOVERING, (f"carrying out the rollback command {facts.obeying}",))
    returned = facts.returned
    if returned is None or facts.step is None or facts.step >= returned.to_step + config.recovering_for_steps:
        return None
    return Health(RunStatus.RECOVERING, (returned.words,))


def _diverged(facts: Facts, now: datetime, config: HealthConfig) -> Health | None:
    if facts.nonfinite_losses < config.diverged_after_steps or facts.loss is None:
        return None
    found = "NaN" if math.isnan(facts.loss) else str(facts.loss)
    words = f"the last {facts.nonfinite_losses} losses are not finite; at step {facts.step} it is {found}"
    return Health(RunStatus.DIVERGED, (words,))


def _suspect(facts: Facts, now: datetime, config: HealthConfig) -> Health | None:
    alarm = facts.alarm
    if alarm is None or facts.attempt > alarm.attempt:
        return None
    if facts.step is not None and facts.step >= alarm.step + config.suspect_for_steps:
        return None
    return Health(RunStatus.SUSPECT, (alarm.words,))


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
