"""Judges a run by its facts, and does in the same transaction what follows: one failure, one command."""

import json
import logging
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, update

from monitor_service import commands, notices, policy, rulebook, tables
from monitor_service.concerns import Judgement, Suggestion
from monitor_service.errors import StoreUnavailable
from monitor_service.facts import Facts
from monitor_service.health import Health, RunStatus, assess
from monitor_service.landmarks import Unanswered
from monitor_service.policy import Advice
from monitor_service.prepared import Prepared
from monitor_service.recall import Recall
from monitor_service.risk import risk_of
from monitor_service.rules import Case, judge
from monitor_service.settings import RunRules, Settings
from shared.commands import Command, CommandKind, CommandRequest

log = logging.getLogger(__name__)

_KEEP = Prepared(
    update(tables.runs)
    .where(tables.runs.c.id == bindparam("run"), tables.runs.c.status == bindparam("seen"))
    .values(facts=bindparam("told"), reasons=bindparam("why"))
)


def settle(
    connection: Connection, run: Row[Any], facts: Facts, now: datetime, settings: Settings, recall: Recall
) -> bool:
    """Judge the run, order what the policy asks for, and write all that down; whether an order was given.

    The caller holds the run.
    """
    rules = rulebook.rules_of(settings, run.rules)
    health = judge_facts(facts, run.checkpoint_interval_steps, now, rules)
    is_diverged = health.status is RunStatus.DIVERGED
    has_open_rollback = is_diverged and bool(commands.open_of_kind(connection, run.id, CommandKind.ROLL_BACK))
    advice = policy.advise(health, facts, has_open_rollback=has_open_rollback, now=now, config=rules)
    _heed(facts, health, advice, now)
    if advice is not None:
        health = Health(health.status, (*health.reasons, advice.words))
        if advice.order is not None:
            order_automatically(connection, run, facts, advice.order, now)
    _write_down(connection, run, facts, health, now, recall)
    return advice is not None and advice.order is not None


def judge_facts(facts: Facts, interval: int | None, now: datetime, rules: RunRules) -> Health:
    """The status at ``now``; concerns and risk go into the facts."""
    judged = facts.judged
    if facts.ended is not None:
        facts.judged = Judgement()
        return assess(facts, now, rules)
    judged.pending, judged.concerns = judge(Case(facts, now, rules, interval))
    health = assess(facts, now, rules)
    judged.risk = risk_of(facts, health.status, rules)
    return health


def is_due(run: Any, now: datetime, settings: Settings) -> bool:
    """Whether time alone has changed what is to be said about a run."""
    facts = Facts.model_validate_json(run.facts)
    before = [concern.rule for concern in facts.judged.concerns]
    rules = rulebook.rules_of(settings, run.rules)
    health = judge_facts(facts, run.checkpoint_interval_steps, now, rules)
    return health.status != run.status or [one.rule for one in facts.judged.concerns] != before


def _heed(facts: Facts, health: Health, advice: Advice | None, now: datetime) -> None:
    """Let a suggestion stand as long as it is made, and a call for a person until one came or all is well."""
    judged = facts.judged
    reason, known = None if advice is None else advice.suggests, judged.suggestion
    if reason is None:
        judged.suggestion = None
    elif known is None:
        judged.suggestion = Suggestion(id=f"{now:%Y%m%d-%H%M%S-%f}", reason=reason, since=now)
    else:
        judged.suggestion = known.model_copy(update={"reason": reason})
    if advice is not None and advice.needs_person is not None:
        judged.needs_person = advice.needs_person
    elif policy.is_settled(health, facts, now):
        judged.needs_person = facts.taken_back = None


def order_automatically(
    connection: Connection, run: Row[Any], facts: Facts, request: CommandRequest, now: datetime
) -> Command:
    """Order a rollback for which nobody was asked. The caller has asked the policy, and stores the facts."""
    facts.note_order(now)
    return order(connection, run, facts, request, now)


def order(
    connection: Connection, run: Row[Any], facts: Facts, request: CommandRequest, now: datetime
) -> Command:
    """Order a command; the caller stores the facts. Raises Conflict."""
    command = commands.order(connection, run.id, facts.attempt, request, now)
    facts.unanswered = facts.unanswered or Unanswered.of(command)
    notices.tell(connection, run.name)
    log.info("run %s: %s ordered by %s: %s", run.name, command.kind, command.issued_by, command.reason)
    return command


def store_facts(connection: Connection, run: Row[Any], facts: Facts) -> None:
    """Write the facts of a run that the caller holds."""
    known = tables.runs.c
    text = facts.model_dump_json()
    connection.execute(update(tables.runs).where(known.id == run.id).values(facts=text))


def _write_down(
    connection: Connection, run: Row[Any], facts: Facts, health: Health, now: datetime, recall: Recall
) -> None:
    """Compare and set: the status moves only from the one that was seen, so one failure is one transition."""
    reasons = json.dumps(health.reasons)
    told = facts.model_dump_json()
    if not _KEEP.change(connection, run=run.id, seen=run.status, told=told, why=reasons):
        raise StoreUnavailable(f"another worker moved run {run.name!r} on")
    recall.keep(run.id, told, facts)
    if health.status != run.status:
        connection.execute(
            update(tables.runs)
            .where(tables.runs.c.id == run.id)
            .values(status=health.status, status_since=now)
        )
        move = {"from_status": run.status, "to_status": health.status, "reasons": reasons}
        where = {"run_id": run.id, "at": now, "step": facts.reached}
        connection.execute(insert(tables.transitions).values({**where, **move}))
        log.info("run %s: %s -> %s: %s", run.name, run.status, health.status, "; ".join(health.reasons))
