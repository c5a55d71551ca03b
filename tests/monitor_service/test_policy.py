"""Policy: what follows from a diverged run, and from nothing else."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from monitor_service.concerns import Judgement
from monitor_service.facts import Facts
from monitor_service.health import Health, RunStatus
from monitor_service.landmarks import TakenBack
from monitor_service.policy import Advice, advise, is_settled
from monitor_service.settings import PolicyConfig

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def minutes_ago(*minutes: float) -> list[datetime]:
    return [NOON - timedelta(minutes=one) for one in minutes]


def ask(
    policy: str = "act",
    status: RunStatus = RunStatus.DIVERGED,
    has_open_rollback: bool = False,
    needs_person: str | None = None,
    **known: Any,
) -> Advice | None:
    facts = Facts(last_seen=NOON, progress_at=NOON, judged=Judgement(needs_person=needs_person), **known)
    config = PolicyConfig.model_validate({"policy": policy})
    health = Health(status, ("the last 5 losses are not finite",))
    return advise(health, facts, has_open_rollback=has_open_rollback, now=NOON, config=config)


@pytest.mark.parametrize(
    ("asked", "words", "orders"),
    [
        ({}, "rollback ordered", True),
        ({"policy": "suggest"}, "suggested: roll back", False),
        ({"needs_person": "a person must look"}, "a person must look", False),
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


@pytest.mark.parametrize(
    ("asked", "suggests", "calls"),
    [
        ({"policy": "suggest"}, True, False),
        ({"policy": "act"}, False, False),
        ({"automatic_orders": minutes_ago(5)}, False, False),
        ({"automatic_orders": minutes_ago(50, 40, 20)}, True, True),
        ({"needs_person": "a person must look"}, True, True),
        ({"policy": "suggest", "has_open_rollback": True}, False, False),
    ],
)
def test_what_waits_for_a_person_is_suggested_with_the_reason(
    asked: dict[str, Any], suggests: bool, calls: bool
) -> None:
    advice = ask(**asked)
    assert advice is not None
    assert advice.suggests == ("the last 5 losses are not finite" if suggests else None)
    assert (advice.needs_person is not None) is calls


@pytest.mark.parametrize(
    ("status", "orders", "settled"),
    [
        (RunStatus.DIVERGED, [], False),
        (RunStatus.DIVERGED, minutes_ago(20), False),
        (RunStatus.HEALTHY, minutes_ago(20), False),
        (RunStatus.HEALTHY, minutes_ago(61), True),
        (RunStatus.FINISHED, minutes_ago(61), True),
        (RunStatus.SUSPECT, minutes_ago(61), False),
        (RunStatus.RECOVERING, minutes_ago(61), False),
        (RunStatus.STALLED, minutes_ago(61), False),
        (RunStatus.LOST, minutes_ago(61), False),
    ],
)
def test_the_call_for_a_person_stands_until_an_hour_went_well(
    status: RunStatus, orders: list[datetime], settled: bool
) -> None:
    facts = Facts(last_seen=NOON, progress_at=NOON, automatic_orders=orders)
    assert is_settled(Health(status, ("x",)), facts, NOON) is settled


@pytest.mark.parametrize("minutes", [20, 61])
def test_what_a_person_took_back_calls_for_one_only_where_a_rollback_is_wanted_again(minutes: int) -> None:
    taken_back = TakenBack(at=minutes_ago(minutes)[0], words="ben cancelled a rollback: the wrong run")
    facts = Facts(last_seen=NOON, progress_at=NOON, taken_back=taken_back)
    assert is_settled(Health(RunStatus.HEALTHY, ("x",)), facts, NOON) is (minutes > 60)
    assert ask(status=RunStatus.HEALTHY, taken_back=taken_back) is None
    advice = ask(taken_back=taken_back)
    assert advice is not None
    assert (advice.order, advice.needs_person) == (None, taken_back.words)


def test_a_policy_that_is_off_says_nothing() -> None:
    assert ask(policy="off") is None


def test_the_order_says_who_gave_it_and_why() -> None:
    advice = ask()
    assert advice is not None
    assert advice.order is not None
    assert advice.order.issued_by == "policy"
    assert "5 losses are not finite" in advice.order.reason
