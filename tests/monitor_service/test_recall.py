"""Recall: facts that are kept are those that their text says, and nobody else's."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from monitor_service.facts import Facts
from monitor_service.recall import MOST, Recall
from shared.exchange import Batch

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
Build = Callable[..., dict[str, Any]]
ODD = (0.5, "NaN", "Infinity", "-Infinity", -0.0, 1e308, 5e-324, None)


def events(chance: random.Random, step: int, attempt: int) -> list[dict[str, Any]]:
    common = {"step": step, "time": NOON.isoformat()}
    finding = {"type": "finding", "guard": "spike", "severity": "critical", "message": "far above"}
    back = {"type": "rollback", "from_step": step, "to_step": step - 1, "source": "snapshot"}
    back |= {"reason": "weights", "trigger": "guard", "seconds": 0.5}
    begun = {"type": "attempt_started", "attempt": attempt, "reason": "rollback"}
    ended = {"type": "run_ended", "status": "stopped", "message": "by hand"}
    return [
        {**common, **event} for event in chance.sample([finding, back, begun, ended], chance.randint(0, 4))
    ]


def test_facts_that_are_kept_fold_on_like_those_that_are_read(batch: Build) -> None:
    recall = Recall()
    chance, kept, read = random.Random(7), Facts.at_registration(NOON), Facts.at_registration(NOON)
    for seq in range(1, 200):
        values = {
            name: [chance.choice(ODD) for _ in range(3)] for name in ("loss", "grad_norm", "lr", "samples")
        }
        told = batch(seq, range(3 * seq, 3 * seq + 3), **values)
        told["attempt"] = attempt = 1 + seq // 50
        told["events"] = events(chance, 3 * seq, attempt)
        message, now = Batch.model_validate(told), NOON + timedelta(seconds=seq / 3)
        for facts in (kept, read):
            facts.take(message, now)
        text = kept.model_dump_json()
        assert text == read.model_dump_json()
        recall.keep(1, text, kept)
        assert recall.facts_in(1, text) is kept
        read = Facts.model_validate_json(text)


def at(second: int) -> tuple[str, Facts]:
    facts = Facts.at_registration(NOON + timedelta(seconds=second))
    return facts.model_dump_json(), facts


def test_a_row_that_another_monitor_wrote_is_read() -> None:
    recall = Recall()
    recall.keep(1, *at(0))
    theirs = Facts.at_registration(NOON).model_copy(update={"step": 7})
    assert recall.facts_in(1, theirs.model_dump_json()).step == 7


def test_what_was_undone_after_it_was_kept_is_read_from_the_row() -> None:
    recall, (before, facts), (after, _) = Recall(), at(0), at(1)
    recall.keep(1, before, facts)
    changed = recall.facts_in(1, before)
    changed.hear(NOON + timedelta(seconds=1))
    recall.keep(1, changed.model_dump_json(), changed)
    assert recall.facts_in(1, before).model_dump_json() == before != after


def test_facts_belong_to_the_one_who_took_them() -> None:
    recall, (text, facts) = Recall(), at(0)
    recall.keep(1, text, facts)
    assert recall.facts_in(1, text) is facts
    assert recall.facts_in(1, text) is not facts


def test_three_hundred_runs_in_turn_are_all_known_again() -> None:
    recall, known = Recall(), {run: at(run) for run in range(300)}
    for _ in range(3):
        for run, (text, facts) in known.items():
            recall.keep(run, text, facts)
        assert all(recall.facts_in(run, text) is facts for run, (text, facts) in known.items())


def test_those_written_longest_ago_leave_above_the_bound() -> None:
    recall, (text, facts) = Recall(), at(0)
    for run in (0, 1, *range(2, MOST), 0, MOST):  # 0 writes once more before the last comes
        recall.keep(run, text, facts)
    assert recall.facts_in(0, text) is facts
    assert recall.facts_in(1, text) is not facts
    assert recall.facts_in(2, text) is facts
