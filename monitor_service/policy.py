"""What the monitor itself does about a run: a function of health, facts and the present moment."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from monitor_service.facts import Facts, orders_within_an_hour
from monitor_service.health import OVER, Health, RunStatus
from monitor_service.settings import PolicyConfig, PolicyMode
from shared.commands import CommandKind, CommandRequest

ISSUER = "policy"


@dataclass(frozen=True)
class Advice:
    """What would help, in words: an order if the monitor may act, or what a person is told to accept."""

    words: str
    order: CommandRequest | None = None
    suggests: str | None = None
    """The reason of a rollback that nobody ordered."""
    needs_person: str | None = None


@dataclass(frozen=True)
class Hindrance:
    """Why no rollback may be ordered now without a person."""

    words: str
    needs_person: bool = False
    """Waiting alone does not help."""


def advise(
    health: Health, facts: Facts, *, has_open_rollback: bool, now: datetime, config: PolicyConfig
) -> Advice | None:
    """Roll back a diverged run, within cooldown and budget; ``None`` where nothing is to be said."""
    if config.policy is PolicyMode.OFF or health.status is not RunStatus.DIVERGED:
        return None
    if has_open_rollback:
        return Advice("a rollback is ordered already")
    reason = health.reasons[0]
    if config.policy is PolicyMode.SUGGEST:
        words = "suggested: roll back (the policy is 'suggest', so nothing was ordered)"
        return Advice(words, suggests=reason)
    hinders = hindrance(facts, now, config)
    if hinders is not None:
        if hinders.needs_person:
            return Advice(hinders.words, suggests=reason, needs_person=hinders.words)
        return Advice(hinders.words)
    wish = CommandRequest(kind=CommandKind.ROLL_BACK, reason=reason[:500], issued_by=ISSUER)
    return Advice("rollback ordered by the policy", order=wish)


def hindrance(facts: Facts, now: datetime, config: PolicyConfig) -> Hindrance | None:
    """What stands against a rollback ordered by a rule or an alert; ``None`` if nothing does."""
    if facts.judged.needs_person is not None:
        return Hindrance(facts.judged.needs_person, needs_person=True)
    if facts.taken_back is not None:
        return Hindrance(facts.taken_back.words, needs_person=True)
    orders = orders_within_an_hour(facts.automatic_orders, now)
    if len(orders) >= config.policy_budget:
        words = f"the budget of {config.policy_budget} rollbacks an hour is used up; a person must look"
        return Hindrance(words, needs_person=True)
    if orders and now - orders[-1] < timedelta(seconds=config.policy_cooldown_s):
        return Hindrance(f"no further rollback within {config.policy_cooldown_s:g} s of the last")
    return None


def is_settled(health: Health, facts: Facts, now: datetime) -> bool:
    """Well an hour after the last order: no call for a person stands, nor what one took back."""
    meddled = [*facts.automatic_orders, *([facts.taken_back.at] if facts.taken_back else [])]
    is_well = health.status is RunStatus.HEALTHY or health.status in OVER
    return is_well and not orders_within_an_hour(meddled, now)
