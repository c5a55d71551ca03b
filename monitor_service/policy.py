"""What the monitor itself does about a run: a function of status, facts and the present moment."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from monitor_service.facts import Facts, orders_within_an_hour
from monitor_service.health import RunStatus
from monitor_service.settings import PolicyConfig, PolicyMode
from shared.commands import CommandKind, CommandRequest

ISSUER = "policy"


@dataclass(frozen=True)
class Advice:
    """What would help, in words, and the order to give if the monitor may act."""

    words: str
    order: CommandRequest | None = None


def advise(
    status: RunStatus, facts: Facts, *, has_open_rollback: bool, now: datetime, config: PolicyConfig
) -> Advice | None:
    """Roll back a diverged run, within cooldown and budget; ``None`` where nothing is to be said."""
    if config.policy is PolicyMode.OFF or status is not RunStatus.DIVERGED:
        return None
    if has_open_rollback:
        return Advice("a rollback is ordered already")
    if config.policy is PolicyMode.SUGGEST:
        return Advice("suggested: roll back (the policy is 'suggest', so nothing was ordered)")
    hinders = hindrance(facts, now, config)
    if hinders is not None:
        return Advice(hinders)
    reason = f"the last {facts.nonfinite_losses} losses are not finite"
    return Advice("rollback ordered by the policy", _rollback(reason))


def hindrance(facts: Facts, now: datetime, config: PolicyConfig) -> str | None:
    """Why no rollback may be ordered now without a person, by rule or by alert; ``None`` if one may."""
    orders = orders_within_an_hour(facts.automatic_orders, now)
    if len(orders) >= config.policy_budget:
        return f"the budget of {config.policy_budget} rollbacks an hour is used up; a person must look"
    if orders and now - orders[-1] < timedelta(seconds=config.policy_cooldown_s):
        return f"no further rollback within {config.policy_cooldown_s:g} s of the last"
    return None


def _rollback(reason: str) -> CommandRequest:
    return CommandRequest(kind=CommandKind.ROLL_BACK, reason=reason, issued_by=ISSUER)
