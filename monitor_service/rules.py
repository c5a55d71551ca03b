"""The monitor's own rules: functions of the facts about a run and the present moment.

Each looks at running statistics that every batch has moved on (``history``, ``wire``, ``facts``), so none
reads history. A rule's condition must hold for a while before it speaks; the words name moments and steps,
not durations, so that they stay true.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from monitor_service.concerns import Concern, Judgement, Rule
from monitor_service.facts import Facts
from monitor_service.settings import RuleConfig
from shared.events import Severity

HOUR = timedelta(hours=1)
GAP_FORGOTTEN_AFTER = timedelta(days=1)
"""A batch that is missing for so long will not come: the list of sessions has it, nobody need look now."""


@dataclass(frozen=True)
class Case:
    """What a rule looks at."""

    facts: Facts
    now: datetime
    config: RuleConfig
    checkpoint_interval_steps: int | None


@dataclass(frozen=True)
class Watch:
    """One rule: what it finds, and for how long that must hold."""

    rule: Rule
    severity: Severity
    finds: Callable[[Case], str | None]
    holds_for_s: Callable[[RuleConfig], float] = lambda config: 0.0


def judge(case: Case) -> tuple[dict[Rule, datetime], list[Concern]]:
    """Since when each condition holds that holds now, and the concerns that follow."""
    pending: dict[Rule, datetime] = {}
    concerns: list[Concern] = []
    for watch in WATCHES:
        words = watch.finds(case)
        if words is None:
            continue
        since = _since(case.facts.judged, watch.rule, case.now)
        pending[watch.rule] = since
        if case.now - since >= timedelta(seconds=watch.holds_for_s(case.config)):
            concerns.append(Concern(rule=watch.rule, severity=watch.severity, since=since, words=words))
    return pending, concerns


def _since(judged: Judgement, rule: Rule, now: datetime) -> datetime:
    """A moment that lies ahead was noted by a clock that was put back since."""
    return min(judged.pending.get(rule, now), now)


def _loss_risen(case: Case) -> str | None:
    return _above(case, case.config.loss_risen_factor)


def _loss_diverged(case: Case) -> str | None:
    return _above(case, case.config.loss_diverged_factor)


def _above(case: Case, factor: float) -> str | None:
    losses = case.facts.losses
    if not factor or not losses.has_risen(factor):
        return None
    return f"the smoothed loss is more than {factor:g} times the {losses.low:.4g} that it has come down to"


def _no_valid_checkpoint(case: Case) -> str | None:
    facts, interval = case.facts, case.checkpoint_interval_steps
    limit = case.config.no_checkpoint_intervals
    begin = facts.last_valid.step if facts.last_valid else facts.attempt_step
    if not limit or not interval or begin is None or facts.step is None:
        return None
    if facts.step - begin <= limit * interval:
        return None
    last = f"since step {begin}" if facts.last_valid else "at all"
    return f"no checkpoint has passed its checks {last}; one is due every {interval} steps"


def _rollback_loop(case: Case) -> str | None:
    facts, limit = case.facts, case.config.rollback_loop_count
    times = facts.rollback_times[-limit:]
    if not limit or len(times) < limit or times[-1] - times[0] > HOUR:
        return None
    if facts.returned_at is None or case.now - facts.returned_at > HOUR:
        return None
    return f"{limit} rollbacks between {_clock(times[0])} and {_clock(times[-1])}"


def _spool_growing(case: Case) -> str | None:
    wire, limit = case.facts.wire, case.config.spool_growing_batches
    if not limit or wire.growing_since is None or wire.waiting < limit:
        return None
    if case.now - wire.growing_since < timedelta(seconds=case.config.spool_growing_for_s):
        return None
    return f"reports come slower than the run makes them: {wire.waiting} batches wait with the trainer"


def _reports_dropped(case: Case) -> str | None:
    wire = case.facts.wire
    told_for = timedelta(seconds=case.config.reports_dropped_for_s)
    if wire.lost_at is None or case.now - wire.lost_at >= told_for:
        return None
    lost = ", ".join(f"{count} {what}" for what, count in sorted(wire.lost.items()))
    return f"the trainer could not keep all of its reports: {lost} lost so far (rejected are batches)"


def _sequence_gap(case: Case) -> str | None:
    wire, after_s = case.facts.wire, case.config.sequence_gap_after_s
    if not after_s or wire.gap_since is None:
        return None
    if not timedelta(seconds=after_s) <= case.now - wire.gap_since < GAP_FORGOTTEN_AFTER:
        return None
    return f"{wire.missing} batches are missing since {_clock(wire.gap_since)}, later ones are here"


def _command_unanswered(case: Case) -> str | None:
    waits, after_s = case.facts.unanswered, case.config.command_unanswered_after_s
    if waits is None or not after_s or case.now >= waits.expires_at:
        return None
    if case.now - waits.since < timedelta(seconds=after_s):
        return None
    return f"the trainer has not answered the {waits.kind} of {_clock(waits.since)} (command {waits.command})"


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


WATCHES = (
    Watch(Rule.LOSS_DIVERGED, Severity.CRITICAL, _loss_diverged, lambda config: config.loss_diverged_for_s),
    Watch(Rule.LOSS_RISEN, Severity.WARNING, _loss_risen, lambda config: config.loss_risen_for_s),
    Watch(Rule.NO_VALID_CHECKPOINT, Severity.WARNING, _no_valid_checkpoint),
    Watch(Rule.ROLLBACK_LOOP, Severity.CRITICAL, _rollback_loop),
    Watch(Rule.SPOOL_GROWING, Severity.WARNING, _spool_growing),
    Watch(Rule.REPORTS_DROPPED, Severity.WARNING, _reports_dropped),
    Watch(Rule.SEQUENCE_GAP, Severity.WARNING, _sequence_gap),
    Watch(Rule.COMMAND_UNANSWERED, Severity.CRITICAL, _command_unanswered),
)
"""In the order in which they are told."""
