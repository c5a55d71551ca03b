"""How a run is, as a function of facts and the present moment: no clock, no database, no HTTP."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from monitor_service.concerns import Concern, Rule
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


DIVERGED_BY = frozenset({Rule.LOSS_DIVERGED})
SUSPECT_BY = frozenset({Rule.LOSS_RISEN, Rule.NO_VALID_CHECKPOINT, Rule.ROLLBACK_LOOP})
"""Rules about the training itself. The others are about its reports, and leave the status alone."""


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
    if not config.stalled_after_s or now - facts.progress_at <= stalled_after(facts, config):
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
    blown_up = _concerned(facts, DIVERGED_BY)
    if blown_up is not None:
        return Health(RunStatus.DIVERGED, (blown_up.words,))
    limit = config.diverged_after_steps
    if not limit or facts.nonfinite_losses < limit or facts.loss is None:
        return None
    found = "NaN" if math.isnan(facts.loss) else str(facts.loss)
    words = f"the last {facts.nonfinite_losses} losses are not finite; at step {facts.step} it is {found}"
    return Health(RunStatus.DIVERGED, (words,))


def _suspect(facts: Facts, now: datetime, config: HealthConfig) -> Health | None:
    reasons = [concern.words for concern in facts.judged.concerns if concern.rule in SUSPECT_BY]
    alarm = facts.alarm
    if alarm is not None and is_recent(facts, alarm.attempt, alarm.step, config):
        reasons.insert(0, alarm.words)
    return Health(RunStatus.SUSPECT, tuple(reasons)) if reasons else None


def is_recent(facts: Facts, attempt: int, step: int, config: HealthConfig) -> bool:
    """Whether what was seen there still says something about the run as it is now."""
    if facts.attempt > attempt:
        return False
    return facts.step is None or facts.step < step + config.suspect_for_steps


def _concerned(facts: Facts, rules: frozenset[Rule]) -> Concern | None:
    return next((concern for concern in facts.judged.concerns if concern.rule in rules), None)


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
