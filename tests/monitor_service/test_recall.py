"""Recall: facts that are kept are those that their text says, and nobody else's."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from monitor_service import recall
from monitor_service.facts import Facts
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
        recall.keep(text, kept)
        assert recall.facts_in(text) is kept
        read = Facts.model_validate_json(text)


def test_what_another_monitor_wrote_is_read() -> None:
    ours = Facts.at_registration(NOON)
    recall.keep(ours.model_dump_json(), ours)
    theirs = Facts.at_registration(NOON).model_copy(update={"step": 7})
    assert recall.facts_in(theirs.model_dump_json()).step == 7


def test_facts_belong_to_the_one_who_took_them() -> None:
    facts = Facts.at_registration(NOON)
    text = facts.model_dump_json()
    recall.keep(text, facts)
    assert recall.facts_in(text) is not recall.facts_in(text)


def test_no_more_facts_are_kept_than_a_bound() -> None:
    some = [Facts.at_registration(NOON + timedelta(seconds=second)) for second in range(recall.MOST + 1)]
    texts = [facts.model_dump_json() for facts in some]
    for text, facts in zip(texts, some, strict=True):
        recall.keep(text, facts)
    assert recall.facts_in(texts[0]) is not some[0]
    assert recall.facts_in(texts[1]) is some[1]
