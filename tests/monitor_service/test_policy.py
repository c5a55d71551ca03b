"""Policy: what follows from a diverged run, and from nothing else."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from monitor_service.facts import Facts
from monitor_service.health import RunStatus
from monitor_service.policy import Advice, advise
from monitor_service.settings import PolicyConfig

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def minutes_ago(*minutes: float) -> list[datetime]:
    return [NOON - timedelta(minutes=one) for one in minutes]


def ask(
    policy: str = "act",
    status: RunStatus = RunStatus.DIVERGED,
    has_open_rollback: bool = False,
    **known: Any,
) -> Advice | None:
    facts = Facts(last_seen=NOON, progress_at=NOON, nonfinite_losses=5, **known)
    config = PolicyConfig.model_validate({"policy": policy})
    return advise(status, facts, has_open_rollback=has_open_rollback, now=NOON, config=config)


@pytest.mark.parametrize(
    ("asked", "words", "orders"),
    [
        ({}, "rollback ordered", True),
        ({"policy": "suggest"}, "suggested: roll back", False),
        ({"has_open_rollback": True}, "ordered already", False),
        ({"automatic_orders": minutes_ago(59, 40)}, "rollback ordered", True),
        ({"automatic_orders": minutes_ago(59, 40, 20)}, "budget of 3", False),
        ({"automatic_orders": minutes_ago(60, 40, 20)}, "rollback ordered", True),
        ({"automatic_orders": minutes_ago(599 / 60)}, "within 600 s", False),
        ({"automatic_orders": minutes_ago(10)}, "rollback ordered", True),
        ({"automatic_orders": minutes_ago(-5)}, "rollback ordered", True),
    ],
)
def test_a_diverged_run_is_rolled_back_within_cooldown_and_budget(
    asked: dict[str, Any], words: str, orders: bool
) -> None:
    advice = ask(**asked)
    assert advice is not None
    assert words in advice.words
    assert (advice.order is not None) is orders


@pytest.mark.parametrize("status", [status for status in RunStatus if status is not RunStatus.DIVERGED])
def test_nothing_follows_from_any_other_status(status: RunStatus) -> None:
    assert ask(status=status) is None


def test_a_policy_that_is_off_says_nothing() -> None:
    assert ask(policy="off") is None


def test_the_order_says_who_gave_it_and_why() -> None:
    advice = ask()
    assert advice is not None
    assert advice.order is not None
    assert advice.order.issued_by == "policy"
    assert "5 losses are not finite" in advice.order.reason
