"""Bad input, word by word: a problem that names field, value and limit, and not a byte of the data changes.

The many forms of each word are in ``api/test_bad_input.py``; here every one is walked through once, on both
databases, in front of a run that has something to lose, and the whole database is compared.
"""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from monitor_service import tokens
from monitor_service.store import writing
from monitor_service.tables import metadata
from monitor_service.tokens import Scope

pytestmark = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
RUN = "/api/v1/runs/demo"
JSON, GZIP = {"Content-Type": "application/json"}, {"Content-Encoding": "gzip"}
MAX_UNPACKED = 1_000_000
WISH = {"kind": "save_checkpoint", "reason": "x"}


def columns(step: list[Any], loss: list[Any] | None = None, time: list[Any] | None = None) -> dict[str, Any]:
    rows = [1.0] * len(step)
    return {"step": step, "time": rows if time is None else time, "series": {"loss": loss or rows}}


def batch(**changes: Any) -> bytes:
    """The next batch of the run, with these changes."""
    whole = {"session": "s1", "seq": 3, "attempt": 1, "columns": columns([5, 6]), **changes}
    return json.dumps(whole).encode()


@dataclass(frozen=True)
class Bad:
    """One request that will not do, and what must be said about it."""

    body: bytes | None
    status: int
    says: tuple[str, ...]
    method: str = "POST"
    path: str = f"{RUN}/exchange"
    token: str = "trainer"
    headers: Mapping[str, str] = field(default_factory=dict)


RISING = "steps in a batch rise strictly"
WALK = {
    "unknown run": Bad(
        batch(), 404, ("'radio-7'", "PUT /api/v1/runs/radio-7"), path="/api/v1/runs/radio-7/exchange"
    ),
    "wrong type: a text for a number": Bad(batch(seq="first"), 422, ("seq", "'first'", "valid integer")),
    "wrong type: a list for a map": Bad(batch(columns=[]), 422, ("columns", "[]")),
    "wrong type: a series of texts": Bad(
        batch(columns=columns([5], ["much"])), 422, ("columns.series.loss.0", "'much'")
    ),
    "steps that fall": Bad(batch(columns=columns([6, 5])), 422, ("step 5 follows step 6", RISING)),
    "a step twice": Bad(batch(columns=columns([5, 5])), 422, ("step 5 follows step 5", RISING)),
    "a negative step": Bad(batch(columns=columns([-1])), 422, ("step -1 is negative", "count from 0")),
    "a negative step of an event": Bad(
        batch(events=[{"type": "finding", "step": -1, "guard": "g", "severity": "error", "message": "m"}]),
        422,
        ("events.0.finding.step", "-1", "greater than or equal to 0"),
    ),
    "a step beyond every column": Bad(
        batch(columns=columns([2**63])), 422, ("columns.step.0", str(2**63), str(2**63 - 1))
    ),
    "columns of unequal length": Bad(
        batch(columns=columns([5, 6], [1.0])), 422, ("series 'loss' has 1 values for 2 steps",)
    ),
    "times of unequal length": Bad(
        batch(columns=columns([5, 6], time=[1.0])), 422, ("time has 1 values for 2 steps",)
    ),
    "too many steps": Bad(batch(columns=columns(list(range(20_001)))), 422, ("columns.step", "20000 items")),
    "too many events": Bad(batch(events=[{"type": "x", "step": 1}] * 2_001), 422, ("events", "2000 items")),
    "an oversized batch": Bad(b" " * 500_001, 413, ("500000 bytes", "smaller batches"), headers=JSON),
    "a zip bomb": Bad(
        gzip.compress(bytes(200 * MAX_UNPACKED)), 413, ("unpacked", f"{MAX_UNPACKED} bytes"), headers=GZIP
    ),
    "no token": Bad(batch(), 401, ("no token was sent",), token=""),
    "a wrong token": Bad(batch(), 401, ("unknown",), token="th_000000000000_nobody"),
    "a token without the scope": Bad(batch(), 403, ("'reader' has scope read", "ingest"), token="reader"),
    "a token of another project": Bad(batch(), 403, ("'demo'", "'foreign'"), token="foreign"),
    "a number of a batch with other content": Bad(
        batch(seq=2), 409, ("'s1'", "seq 2", "number each batch once")
    ),
    "an attempt of another process": Bad(batch(session="s2", seq=1), 409, ("attempt 1", "s1", "s2")),
    "a name of another training": Bad(
        b'{"started_at": "2026-03-01T12:00:00Z", "identity": "77aa01bc"}',
        409,
        ("5f0c2a9e", "77aa01bc", "a name of its own"),
        method="PUT",
        path=RUN,
    ),
    "an order under the key of another": Bad(
        json.dumps(WISH).encode(),
        422,
        ("'night-1'", "another order", "roll_back"),
        path=f"{RUN}/commands",
        token="person",
        headers={"Idempotency-Key": "night-1"},
    ),
    "a cancelling of no command": Bad(
        None, 404, ("'c9'",), method="DELETE", path=f"{RUN}/commands/c9?reason=x", token="person"
    ),
    "an ill-formed cursor": Bad(
        None,
        422,
        ("cursor", "'%%%'", "next_cursor"),
        method="GET",
        path="/api/v1/runs?cursor=%25%25%25",
        token="reader",
    ),
    "a limit beyond the largest": Bad(
        None, 422, ("limit", "1001", "1000"), method="GET", path=f"{RUN}/events?limit=1001", token="reader"
    ),
    "a series that was never sent": Bad(
        None, 404, ("lose", "known: loss"), method="GET", path=f"{RUN}/series?name=lose", token="reader"
    ),
}


@pytest.fixture
def secrets_of(serve: Any, clock: Any) -> Any:
    """A monitor with tokens, and a run in it: two batches, a finding, a rollback on its way."""
    monitor = serve(max_body_bytes=500_000, max_unpacked_bytes=MAX_UNPACKED)
    asked: dict[str, tuple[Scope, str | None]] = {
        "trainer": (Scope.INGEST, None),
        "reader": (Scope.READ, None),
        "person": (Scope.CONTROL, None),
        "foreign": (Scope.INGEST, "other"),
    }
    with writing(monitor.monitor.store.engine) as connection, connection.begin():
        made = {
            name: tokens.create(
                connection, name, [scope], clock(), project=project, expires_at=clock() + timedelta(days=1)
            )[1]
            for name, (scope, project) in asked.items()
        }
    monitor.monitor.door.forget()

    def ask(one: Bad) -> Any:
        secret = made.get(one.token, one.token)
        who = {"Authorization": f"Bearer {secret}"} if secret else {}
        headers = {**(JSON if one.body is not None else {}), **who, **one.headers}
        return monitor.request(one.method, one.path, content=one.body, headers=headers)

    spec = b'{"started_at": "2026-03-01T12:00:00Z", "identity": "5f0c2a9e", "project": "maps"}'
    told = {"type": "finding", "step": 2, "guard": "g", "severity": "error", "message": "m"}
    order = json.dumps({"kind": "roll_back", "reason": "x"}).encode()
    for good in (
        Bad(spec, 201, (), method="PUT", path=RUN),
        Bad(batch(seq=1, columns=columns([1, 2]), events=[told]), 200, ()),
        Bad(order, 201, (), path=f"{RUN}/commands", token="person", headers={"Idempotency-Key": "night-1"}),
        Bad(batch(seq=2, columns=columns([3, 4])), 200, ()),
    ):
        answer = ask(good)
        assert answer.status_code == good.status, answer.text
    return monitor, ask


def everything(monitor: Any) -> dict[str, list[Any]]:
    """Every row of every table."""
    with monitor.monitor.store.reading() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
            if table.name != "leases"
        }


@pytest.mark.parametrize("word", WALK)
def test_bad_input_is_told_with_field_value_and_limit_and_changes_nothing(secrets_of: Any, word: str) -> None:
    monitor, ask = secrets_of
    bad, before = WALK[word], everything(monitor)
    answer = ask(bad)
    assert answer.status_code == bad.status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = json.dumps(answer.json(), ensure_ascii=False)
    assert [words for words in bad.says if words not in told] == [], told
    assert len(told) < 2_000
    assert everything(monitor) == before


def test_an_event_of_a_type_from_the_future_is_kept_as_it_came_and_shown(secrets_of: Any) -> None:
    _, ask = secrets_of
    unknown = {"type": "quantum_flip", "step": 5, "time": "2026-03-01T12:00:00Z", "spin": [1, {"up": "NaN"}]}
    assert ask(Bad(batch(events=[unknown]), 200, ())).status_code == 200
    shown = ask(Bad(None, 200, (), method="GET", path=f"{RUN}/events?type=quantum_flip", token="reader"))
    assert [event["data"] for event in shown.json()["items"]] == [unknown]
    page = ask(Bad(None, 200, (), method="GET", path="/runs/demo", token="reader"))
    assert "quantum_flip" in page.text


def test_word_of_a_command_that_is_settled_or_of_another_run_changes_no_command(secrets_of: Any) -> None:
    monitor, ask = secrets_of

    def say(seq: int, state: str, run: str = "demo") -> None:
        said = {"type": "command", "step": 5, "command": command, "state": state}
        body = batch(seq=seq, columns=columns([]), events=[said])
        assert ask(Bad(body, 200, (), path=f"/api/v1/runs/{run}/exchange")).status_code == 200

    command = next(row[0] for row in everything(monitor)["commands"])
    spec = b'{"started_at": "2026-03-01T12:00:00Z"}'
    assert ask(Bad(spec, 201, (), method="PUT", path="/api/v1/runs/other")).status_code == 201
    before = everything(monitor)["command_history"]
    say(1, "succeeded", run="other")
    assert everything(monitor)["command_history"] == before
    say(3, "succeeded")
    settled = everything(monitor)["command_history"]
    assert len(settled) == len(before) + 1
    for seq, state in enumerate(("accepted", "failed", "succeeded", "cancelled", "refused"), 4):
        say(seq, state)
    assert everything(monitor)["command_history"] == settled
