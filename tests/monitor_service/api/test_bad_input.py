"""Bad input: each answers with a problem that names what was found and what would do, and leaves no trace."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from monitor_service.api.refusals import MOST_LINES, Refusals
from monitor_service.errors import NotAuthenticated, NotFound

JSON = {"Content-Type": "application/json"}
GZIP = {**JSON, "Content-Encoding": "gzip"}
EXCHANGE = "/api/v1/runs/demo/exchange"

ROLLBACK = {
    "type": "rollback",
    "step": 5,
    "from_step": 5,
    "to_step": 1,
    "source": "snapshot",
    "reason": "weights",
    "trigger": "guard",
    "seconds": 1,
}
CHECKPOINT = {"type": "checkpoint", "step": 1, "checkpoint": "c1", "state": "good"}

Build = Callable[..., dict[str, Any]]


def check(answer: Any, status: int, *words: str) -> None:
    """It is a problem of that status which says all the words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["type"].startswith("urn:trainhealth:problem:")
    for word in words:
        assert word in json.dumps(problem), f"{word!r} is not in {problem}"


@pytest.fixture(autouse=True)
def _no_trace(monitor: Any) -> Any:
    before = monitor.tell()
    yield
    assert monitor.tell() == before
    assert monitor.tell("/events")["items"] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seq": 0}, ("seq", "0", "greater than or equal to 1")),
        ({"seq": "first"}, ("seq", "first")),
        ({"seq": 2**63}, ("seq", str(2**63), "9223372036854775807")),
        ({"attempt": 0}, ("attempt", "greater than or equal to 1")),
        ({"session": ""}, ("session", "at least 1")),
        ({"sesion": "s1"}, ("sesion", "not permitted")),
        ({"hold_s": 31}, ("hold_s", "30")),
        ({"columns": {"step": [1], "time": []}}, ("time has 0 values for 1 steps",)),
        ({"columns": {"step": [2, 2], "time": [1, 2]}}, ("step 2 follows step 2", "rise strictly")),
        ({"columns": {"step": [-1], "time": [1]}}, ("step -1 is negative",)),
        ({"columns": {"step": [2**63], "time": [1]}}, ("columns.step.0", str(2**63))),
        ({"columns": {"step": [1], "time": [1], "series": {"loss": []}}}, ("series 'loss' has 0 values",)),
        ({"columns": {"step": [1], "time": [1], "series": {"loss": ["nope"]}}}, ("loss", "nope")),
        ({"columns": {"step": [1], "time": [1], "series": {"lo ss": [1]}}}, ("lo ss",)),
        ({"events": [{"type": "finding", "step": 1}]}, ("guard", "Field required")),
        ({"events": [{"step": 1}]}, ("type",)),
        ({"events": [{"type": "x", "step": 1, "time": "2026-01-01T00:00:00"}]}, ("needs a zone",)),
        ({"events": [{"type": "x", "step": 1, "time": "0001-01-01T00:00:00+14:00"}]}, ("out of range",)),
        ({"events": [{"type": "x", "step": 2**63}]}, ("events.0.step",)),
        ({"events": [{**ROLLBACK, "from_step": 10**400}]}, ("events.0.from_step", "9223372036854775807")),
        ({"events": [{**ROLLBACK, "to_step": 2**63}]}, ("events.0.to_step",)),
        ({"events": [{**CHECKPOINT, "size_bytes": 10**400}]}, ("events.0.size_bytes",)),
        ({"events": [{**CHECKPOINT, "size_bytes": -(10**400)}]}, ("events.0.size_bytes",)),
    ],
)
def test_a_malformed_batch_is_422_with_field_and_limit(
    monitor: Any, batch: Build, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    check(monitor.send({**batch(1), **change}), 422, *words)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"seq": 1,}'])
def test_what_is_not_json_is_400(monitor: Any, body: bytes) -> None:
    check(monitor.post(EXCHANGE, content=body, headers=JSON), 400, "not JSON")


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, ("Content-Type", "application/json")),
        ({"Content-Type": "text/plain"}, ("Content-Type", "text/plain")),
        ({**JSON, "Content-Encoding": "br"}, ("Content-Encoding", "br", "gzip", "zstd")),
    ],
)
def test_another_form_of_body_is_415(monitor: Any, headers: dict[str, str], words: tuple[str, ...]) -> None:
    check(monitor.post(EXCHANGE, content=b"{}", headers=headers), 415, *words)


def test_a_form_on_another_site_cannot_order_a_rollback(monitor: Any) -> None:
    form = {"kind": "roll_back", "reason": "x"}
    check(monitor.post("/api/v1/runs/demo/commands", data=form), 415, "application/json")


def test_a_gzipped_batch_is_read_and_a_damaged_one_is_400(monitor: Any, batch: Build) -> None:
    packed = gzip.compress(json.dumps({**batch(1), "seq": 0}).encode())
    check(monitor.post(EXCHANGE, content=packed, headers=GZIP), 422, "seq")  # read as far as its content
    check(monitor.post(EXCHANGE, content=packed[:-9], headers=GZIP), 400, "cut short")
    check(monitor.post(EXCHANGE, content=packed + b"x", headers=GZIP), 400, "follows")
    check(monitor.post(EXCHANGE, content=b"{}", headers=GZIP), 400, "not gzip")


def test_too_many_bytes_are_413_packed_or_not(serve: Any, monitor: Any) -> None:
    small = serve(max_body_bytes=2000, max_unpacked_bytes=4000)
    check(small.post(EXCHANGE, content=b" " * 2001, headers=JSON), 413, "2000 bytes")
    check(small.post(EXCHANGE, content=gzip.compress(b" " * 4001), headers=GZIP), 413, "4000 bytes")
    check(small.post(EXCHANGE, content=gzip.compress(b" " * 4000), headers=GZIP), 400, "not JSON")


def test_a_flood_of_mistakes_is_counted_and_not_described_one_by_one(monitor: Any, batch: Build) -> None:
    flood = {**batch(1), **{f"unknown_{number}": 0 for number in range(5000)}}
    check(monitor.send(flood), 422, "5000 mistakes", "too many")


def test_a_column_full_of_mistakes_ends_at_the_first(monitor: Any, batch: Build) -> None:
    flood = batch(1, range(5000), loss=["x"] * 5000)
    answer = monitor.send(flood)
    check(answer, 422, "columns.series.loss.0")
    assert len(answer.json()["errors"]) == 1


def test_a_bomb_is_refused_without_unpacking_it(monitor: Any) -> None:
    bomb = gzip.compress(bytes(200_000_000), 9)
    check(monitor.post(EXCHANGE, content=bomb, headers=GZIP), 413, "unpacked")


@pytest.mark.parametrize("path", ["", "/health", "/series?name=loss", "/events", "/checkpoints", "/commands"])
def test_an_unknown_run_is_404_that_says_how_to_register(monitor: Any, path: str) -> None:
    check(monitor.get(f"/api/v1/runs/radio-7{path}"), 404, "radio-7", "PUT /api/v1/runs/radio-7")


def test_a_batch_or_command_for_an_unknown_run_is_404(monitor: Any, batch: Build) -> None:
    check(monitor.send(batch(1), run="radio-7"), 404, "radio-7")
    wish = {"kind": "stop", "reason": "x"}
    check(monitor.post("/api/v1/runs/radio-7/commands", json=wish), 404, "radio-7")


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/runs/demo/series?name=lose", 404, ("lose", "known: none yet")),
        ("/runs/demo/series", 422, ("query.name",)),
        ("/runs/demo/series?name=loss&attempt=last", 404, ("loss",)),
        ("/runs/demo/series?name=loss&buckets=0", 422, ("buckets", "greater than or equal to 1")),
        ("/runs/demo/series?name=loss&from_step=-1", 422, ("from_step",)),
        ("/runs/demo/series?name=loss&to_step=9223372036854775808", 422, ("to_step",)),
        ("/runs/demo/series?name=loss&buckets=9&attempt=all", 422, ("query.attempt", "all")),
        ("/runs/demo/events?severity=bad", 422, ("severity", "warning")),
        ("/runs/demo/events?limit=1001", 422, ("limit", "1000")),
        ("/runs?status=ok", 422, ("status", "healthy")),
        ("/runs?limit=0", 422, ("limit",)),
        ("/runs?cursor=%F0", 422, ("cursor", "next_cursor")),
        ("/runs?cursor=cnVuOng=", 422, ("cursor",)),
        ("/runs/demo/commands/c9", 404, ("c9",)),
        ("/runs/%20x", 422, ("run",)),
        ("/nothing", 404, ("Not found",)),
    ],
)
def test_a_bad_question_is_answered_with_what_would_do(
    monitor: Any, path: str, status: int, words: tuple[str, ...]
) -> None:
    check(monitor.get(f"/api/v1{path}"), status, *words)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"kind": "explode", "reason": "x"}, ("kind", "roll_back")),
        ({"kind": "stop"}, ("reason",)),
        ({"kind": "stop", "reason": "x", "to_step": 3}, ("to_step goes with roll_back only",)),
        ({"kind": "roll_back", "reason": "x", "to_step": 2**63}, ("to_step",)),
        ({"kind": "stop", "reason": "x", "valid_for_s": 0}, ("valid_for_s", "greater than 0")),
    ],
)
def test_a_bad_order_is_422(monitor: Any, wish: dict[str, Any], words: tuple[str, ...]) -> None:
    check(monitor.post("/api/v1/runs/demo/commands", json=wish), 422, *words)


def test_a_bad_registration_is_422(monitor: Any) -> None:
    check(monitor.register(total_steps=0), 422, "total_steps")
    check(monitor.register(total_steps=2**63), 422, "total_steps")
    check(monitor.put("/api/v1/runs/demo", json={}), 422, "started_at")


def test_a_wrong_method_is_a_problem_too(monitor: Any) -> None:
    check(monitor.post("/api/v1/runs/demo/health"), 405)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("alerts", {"foo": 1}, "422: body: expected Alertmanager's webhook"),
        ("runs/demo/commands", {"kind": "roll_back"}, "422: reason: Field required"),
        ("runs/nobody/commands", {"kind": "stop", "reason": "r", "issued_by": "a"}, "404: no run 'nobody'"),
        ("runs/nobody/exchange", {"session": "s1", "seq": 1, "attempt": 1}, "404: no run 'nobody'"),
        ("runs/demo/exchange", {}, "422: session: Field required"),
    ],
)
def test_what_is_refused_stands_in_the_log_once_a_minute(
    monitor: Any, caplog: pytest.LogCaptureFixture, path: str, body: Any, words: str
) -> None:
    for _ in range(3):
        assert monitor.post(f"/api/v1/{path}", json=body).status_code in (404, 422)
    monitor.get("/api/v1/runs/nobody")
    (line,) = [one.getMessage() for one in caplog.records if "refused" in one.getMessage()]
    assert line.startswith(f"POST /api/v1/{path} from ")
    assert words in line


def test_a_webhook_without_its_token_is_told_how_to_send_one_and_stands_in_the_log(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = serve(host="0.0.0.0", allowed_hosts="testserver,monitor")
    answer = monitor.post("/api/v1/alerts", json={})
    assert answer.status_code == 401
    assert "send Authorization: Bearer TOKEN" in answer.json()["detail"]
    (line,) = [one.getMessage() for one in caplog.records if "refused" in one.getMessage()]
    assert "POST /api/v1/alerts from " in line
    assert "401: no token was sent" in line


def test_whoever_asks_for_ever_new_paths_gets_one_line(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for number in range(2_000):
        scope = {"method": "POST", "path": f"/{number}\n", "client": ("10.0.0.1", 1)}
        refusals.note(scope, 404, NotFound(f"no {number}"))
    (line,) = [one.getMessage() for one in caplog.records]
    assert line == r"POST /0\n from 10.0.0.1 refused, 404: no 0"


def test_without_a_token_new_paths_fill_no_log(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    monitor = serve(host="0.0.0.0", allowed_hosts="testserver,monitor")
    for number in range(5):
        assert monitor.post(f"/api/v1/x{number}", json={}).status_code == 401
        assert monitor.put(f"/api/v1/runs/x{number}", json={}).status_code == 401
    assert len([one for one in caplog.records if "refused" in one.getMessage()]) == 2


def test_all_addresses_together_write_a_bounded_number_of_lines_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals, now = Refusals(), 0.0
    monkeypatch.setattr("monitor_service.api.refusals.time.monotonic", lambda: now)

    def knock(address: int) -> None:
        scope = {"method": "POST", "path": "/api/v1/alerts", "client": (f"10.0.0.{address}", 1)}
        refusals.note(scope, 401, NotAuthenticated("no token"))

    for address in range(2 * MOST_LINES):
        knock(address)
    assert len(caplog.records) == len(refusals._said) == MOST_LINES
    now = 61.0
    knock(1)
    assert (len(caplog.records), len(refusals._said)) == (MOST_LINES + 1, 1)
