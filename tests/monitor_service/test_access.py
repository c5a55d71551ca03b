"""Who gets in: tokens with scopes, projects and ends; names, origins and rates; what browsers are told."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from monitor_service import tables, tokens
from monitor_service.limits import MAX_CLIENTS, Buckets
from monitor_service.store import open_engine, writing
from monitor_service.tokens import Scope

NOON_TOKEN = "th_000000000000_" + "A" * 43
Build = Callable[..., dict[str, Any]]
Make = Callable[..., str]


@pytest.fixture
def make(url: str, clock: Any) -> Make:
    """Make a token in the database; returns its secret."""

    def create(*scopes: str, **more: Any) -> str:
        engine = open_engine(url)
        with writing(engine) as connection, connection.begin():
            made = tokens.create(connection, "ana", [Scope(one) for one in scopes], clock(), **more)
        engine.dispose()
        return made[1]

    return create


def revoke(url: str, secret: str, now: Any) -> None:
    engine = open_engine(url)
    with writing(engine) as connection, connection.begin():
        tokens.revoke(connection, tokens.id_of(secret) or "", now)
    engine.dispose()


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def check(answer: Any, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    for word in words:
        assert word in answer.text


REGISTRATION = {"started_at": "2026-03-01T12:00:00Z"}


def test_what_each_scope_may(serve: Any, make: Make, batch: Build) -> None:
    secrets = {scope: make(scope) for scope in Scope}
    served = serve()
    run = "/api/v1/runs/demo"
    order = {"kind": "stop", "reason": "enough"}
    asked: dict[str, list[int]] = {}
    for scope in (Scope.INGEST, Scope.READ, Scope.CONTROL):
        mine = {"headers": bearer(secrets[scope])}
        asked[scope] = [
            served.put(run, json=REGISTRATION, **mine).status_code,
            served.post(f"{run}/exchange", json=batch(1), **mine).status_code,
            served.get(f"{run}/health", **mine).status_code,
            served.get("/metrics", **mine).status_code,
            served.get("/", **mine).status_code,
            served.post(f"{run}/commands", json=order, **mine).status_code,
        ]
    assert asked == {
        Scope.INGEST: [201, 200, 403, 403, 403, 403],
        Scope.READ: [403, 403, 200, 200, 200, 403],
        Scope.CONTROL: [403, 403, 403, 403, 403, 201],
    }
    (told,) = served.get(f"{run}/commands", headers=bearer(secrets[Scope.READ])).json()["items"]
    assert told["issued_by"] == "operator (token ana)"


def test_no_route_is_open_by_mistake(serve: Any, make: Make) -> None:
    make("read")
    served = serve()
    described = served.get("/openapi.json").json()
    for path, operations in described["paths"].items():
        for method in operations:
            answer = getattr(served, method)(path.replace("{run}", "x").replace("{command}", "y"))
            assert answer.status_code == (200 if path == "/healthz" else 401), path
            if answer.status_code == 401:
                check(answer, 401, "Authorization: Bearer")
                assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("wrong", [NOON_TOKEN, "secret", "", "th_\u00e4", "Bearer x"])
def test_a_wrong_token_is_401_also_where_the_secret_has_the_right_form(
    serve: Any, make: Make, wrong: str
) -> None:
    make("read")
    header = {"Authorization": f"Bearer {wrong}".encode()}
    check(serve().get("/api/v1/runs", headers=header), 401)


def test_the_id_of_a_token_without_its_secret_opens_nothing(serve: Any, make: Make) -> None:
    secret = make("read")
    other = secret[:16] + ("A" if secret[16] != "A" else "B") + secret[17:]
    served = serve()
    assert served.get("/api/v1/runs", headers=bearer(other)).status_code == 401
    assert served.get("/api/v1/runs", headers=bearer(secret)).status_code == 200


def test_a_token_ends_with_its_time(serve: Any, make: Make, clock: Any) -> None:
    secret = make("read", expires_at=clock() + timedelta(hours=1))
    served = serve()
    assert served.get("/api/v1/runs", headers=bearer(secret)).status_code == 200
    clock.advance(3600)
    check(served.get("/api/v1/runs", headers=bearer(secret)), 401, "has ended")


def test_a_revoked_token_opens_nothing_and_the_door_stays_shut(
    serve: Any, make: Make, url: str, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor_service.access.RELOAD_S", 0.0)
    secret = make("read")
    served = serve()
    assert served.get("/api/v1/runs", headers=bearer(secret)).status_code == 200
    revoke(url, secret, clock())
    check(served.get("/api/v1/runs", headers=bearer(secret)), 401, "revoked")
    check(served.get("/api/v1/runs"), 401)


def test_the_first_token_shuts_the_door_of_a_running_monitor(
    monitor: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert monitor.get("/api/v1/runs").status_code == 200
    make("read")
    monkeypatch.setattr("monitor_service.access.RELOAD_S", 0.0)
    assert monitor.get("/api/v1/runs").status_code == 401


def test_a_token_for_a_monitor_that_needs_none_does_no_harm(monitor: Any) -> None:
    assert monitor.get("/api/v1/runs", headers=bearer(NOON_TOKEN)).status_code == 200


def test_a_public_address_is_never_open(serve: Any) -> None:
    assert serve(host="0.0.0.0").get("/api/v1/runs").status_code == 401


def test_the_database_knows_no_secret(make: Make, url: str) -> None:
    secret = make("read")
    engine = open_engine(url)
    with engine.connect() as connection:
        row = connection.execute(tables.tokens.select()).one()
    engine.dispose()
    assert row.hash == tokens.hash_of(secret)
    assert secret.split("_", 2)[2] not in str(tuple(row))


def test_a_project_sees_its_own_runs_only(serve: Any, make: Make, batch: Build) -> None:
    everything = bearer(make(*Scope))
    maps = bearer(make("read", "control", project="maps"))
    sender = bearer(make("ingest", project="maps"))
    served = serve()
    served.put("/api/v1/runs/other", json=REGISTRATION, headers=everything)
    check(served.put("/api/v1/runs/mine", json=REGISTRATION, headers=sender), 403, "maps", "default")
    in_maps = {**REGISTRATION, "project": "maps"}
    assert served.put("/api/v1/runs/mine", json=in_maps, headers=sender).status_code == 201
    check(served.put("/api/v1/runs/other", json=in_maps, headers=sender), 403, "another project")
    check(served.post("/api/v1/runs/other/exchange", json=batch(1), headers=sender), 403)
    listed = served.get("/api/v1/runs?project=default", headers=maps).json()["items"]
    assert [run["run"] for run in listed] == ["mine"]
    for path in ("", "/health", "/events", "/checkpoints", "/commands", "/series?name=loss"):
        check(served.get(f"/api/v1/runs/other{path}", headers=maps), 404, "no run 'other'")
    order = {"kind": "stop", "reason": "enough"}
    check(served.post("/api/v1/runs/other/commands", json=order, headers=maps), 404)
    check(served.get("/metrics", headers=maps), 403)
    assert served.get("/runs/other", headers=maps).status_code == 404
    assert "other" not in served.get("/", headers=maps).text
    assert served.get("/api/v1/runs/other", headers=everything).json()["project"] == "default"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("", 421),
        ("127.0.0.1.evil.example:8321", 421),
        ("localhost:8321", 200),
        ("[::1]:8321", 200),
        ("10.1.2.3", 200),
        ("monitor:80", 200),
    ],
)
def test_a_request_for_a_name_that_is_not_ours_is_refused(serve: Any, host: str, status: int) -> None:
    answer = serve(allowed_hosts="monitor, Other").get("/api/v1/runs", headers={"Host": host})
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1"}, 201),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({}, 201),
    ],
)
def test_a_page_elsewhere_cannot_order_anything(monitor: Any, headers: dict[str, str], status: int) -> None:
    order = {"kind": "stop", "reason": "enough"}
    answer = monitor.post("/api/v1/runs/demo/commands", json=order, headers=headers)
    assert answer.status_code == status, answer.text
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_every_answer_carries_the_security_headers(monitor: Any) -> None:
    for path in ("/api/v1/runs", "/api/v1/runs/nobody", "/metrics", "/nowhere", "/login", "/static/run.js"):
        headers = monitor.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert "default-src" in headers["content-security-policy"], path
        assert headers["referrer-policy"] == "same-origin", path


def test_who_asks_too_often_is_told_when_to_come_again(serve: Any) -> None:
    served = serve(rate_limit_per_s=5)
    answers = [served.get("/api/v1/runs") for _ in range(30)]
    refused = next(answer for answer in answers if answer.status_code != 200)
    check(refused, 429, "5 requests a second")
    assert refused.headers["retry-after"] == "1"


def test_only_batches_count_against_the_limit_of_batches(serve: Any, batch: Build) -> None:
    """A run may be called ``exchange``, and whoever looks at it is no trainer."""
    monitor = serve(rate_limit_per_s=3, rate_limit_ingest_per_s=1000)
    assert monitor.register().status_code == 201
    asked = [monitor.get("/api/v1/runs/exchange").status_code for _ in range(4)]
    assert (asked[0], asked[-1]) == (404, 429)
    assert monitor.get("/nowhere/exchange").status_code == 429
    assert {monitor.send(batch(seq)).status_code for seq in range(1, 9)} == {200}


def test_guesses_are_slowed_down_but_a_good_token_still_passes(serve: Any, make: Make) -> None:
    secret = make("read")
    served = serve()
    codes = [served.get("/api/v1/runs", headers=bearer(NOON_TOKEN)).status_code for _ in range(40)]
    assert codes[0] == 401
    assert codes[-1] == 429
    assert served.get("/api/v1/runs", headers=bearer(secret)).status_code == 200


def test_buckets_fill_again_and_stay_bounded() -> None:
    now = [0.0]
    buckets = Buckets(2.0, clock=lambda: now[0])
    for _ in range(2):
        buckets.take("a")
    with pytest.raises(Exception, match=r"come again in 1 s"):
        buckets.take("a")
    now[0] = 0.5
    buckets.take("a")
    for n in range(MAX_CLIENTS + 10):
        buckets.take(str(n))
    assert len(buckets) == MAX_CLIENTS


def test_the_access_log_names_the_token_and_holds_no_secret(serve: Any, make: Make, tmp_path: Path) -> None:
    secret = make("read")
    file = tmp_path / "access.log"
    served = serve(access_log=str(file))
    served.get(f"/api/v1/runs?status=lost&project={secret}", headers=bearer(secret))
    served.get("/api/v1/runs")
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first["path"], first["status"], first["principal"]) == ("/api/v1/runs", 200, "ana")
    assert (second["status"], second["principal"], second["token"]) == (401, None, None)
    assert secret not in file.read_text()


def form(html: str, **fields: str) -> dict[str, str]:
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', html)
    assert found, html
    return {"form_token": found[1], **fields}


HTML = {"Accept": "text/html"}


def test_a_person_signs_in_looks_and_signs_out(serve: Any, make: Make) -> None:
    secret = make(*Scope)
    served = serve()
    sent = served.get("/runs/demo", headers=HTML)
    assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=/runs/demo")
    page = served.get(sent.headers["location"])
    entered = served.post("/login", data=form(page.text, token=secret, next="/runs/demo"))
    assert (entered.status_code, entered.headers["location"]) == (303, "/runs/demo")
    cookie = entered.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"))
    assert secret not in cookie
    lasting = [one for one in entered.headers.get_list("set-cookie") if "Max-Age=43200" in one]
    assert {one.partition("=")[0] for one in lasting} == {"trainhealth_session", "trainhealth_form"}
    fleet = served.get("/", headers=HTML)
    assert "Sign out" in fleet.text
    assert served.put("/api/v1/runs/demo", json=REGISTRATION).status_code == 403, "a session may not ingest"
    kept = dict(served._client.cookies)
    assert served.post("/logout", data=form(fleet.text)).status_code == 303
    served._client.cookies.update(kept)
    assert served.get("/", headers=HTML).status_code == 303, (
        "the server forgot the session, not only the browser"
    )


def test_signing_in_leads_back_to_the_very_question(serve: Any, make: Make) -> None:
    secret = make(*Scope)
    served = serve()
    served.put("/api/v1/runs/demo", json=REGISTRATION, headers=bearer(secret))
    asked = "/runs/demo/order?kind=stop&to_step="
    page = served.get(served.get(asked, headers=HTML).headers["location"])
    goal = unescape(re.search(r'name="next" value="([^"]*)"', page.text)[1])  # type: ignore[index]
    entered = served.post("/login", data=form(page.text, token=secret, next=goal))
    assert entered.headers["location"] == asked


def test_who_may_order_but_not_read_sees_no_order_s_page(serve: Any, make: Make) -> None:
    blind = make("control")
    served = serve()
    refused = served.get("/runs/demo/order?kind=stop", headers={**HTML, **bearer(blind)})
    assert refused.status_code == 403
    assert "this needs read" in refused.text


def test_who_may_only_read_gets_no_buttons_and_a_page_that_says_why(
    serve: Any, make: Make, batch: Build
) -> None:
    reader, trainer, boss = make("read"), make("ingest"), make("read", "control")
    served = serve()
    served.put("/api/v1/runs/demo", json=REGISTRATION, headers=bearer(trainer))
    served.post("/api/v1/runs/demo/exchange", json=batch(1, [0, 1]), headers=bearer(trainer))
    shown = {
        who: served.get("/runs/demo", headers={**HTML, **bearer(secret)}).text
        for who, secret in (("reader", reader), ("boss", boss))
    }
    assert "ordering needs one with the scope “control”" in shown["reader"]
    assert "/order?kind=stop" not in shown["reader"]
    assert "/order?kind=stop" in shown["boss"]
    refused = served.get("/runs/demo/order?kind=stop", headers={**HTML, **bearer(reader)})
    assert refused.status_code == 403
    assert "<h1>Not allowed</h1>" in refused.text
    assert "has scope read; this needs control" in refused.text
    asked = served.get("/runs/demo/order?kind=stop", headers={**HTML, **bearer(boss)})
    sent = served.post(
        "/runs/demo/order",
        data=form(asked.text, kind="stop", reason="enough", issued_by="nobody"),
        headers={**HTML, **bearer(boss)},
    )
    assert sent.status_code == 303
    (command,) = served.get("/api/v1/runs/demo/commands", headers=bearer(boss)).json()["items"]
    assert command["issued_by"] == "nobody (token ana)", "whatever name is typed, the token is on record"


def test_a_form_from_elsewhere_does_not_sign_anybody_in(serve: Any, make: Make) -> None:
    secret = make("read")
    served = serve()
    check(served.post("/login", data={"token": secret}), 403, "not from a page")
    page = served.get("/login")
    fields = form(page.text, token=secret)
    check(served.post("/login", data=fields, headers={"Origin": "http://evil.example"}), 403)
    check(served.post("/login", data={**fields, "form_token": "0" * 64}), 403)
    check(served.post("/login", json=fields), 415)
    check(served.post("/login", data={**fields, "token": "x" * 9000}), 413)
    assert served.get("/", headers=HTML).status_code == 303


def test_wrong_tokens_at_the_form_are_counted_with_those_of_the_api(serve: Any, make: Make) -> None:
    secret = make("read")
    served = serve()
    page = served.get("/login").text
    codes = [served.post("/login", data=form(page, token=NOON_TOKEN)).status_code for _ in range(40)]
    assert codes[0] == 401
    assert codes[-1] == 429
    check(served.get("/api/v1/runs", headers=bearer(NOON_TOKEN)), 429)
    assert served.post("/login", data=form(page, token=secret)).status_code == 303


def test_a_wrong_token_at_the_form_is_said_on_the_page(
    serve: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor_service.access.RELOAD_S", 0.0)
    make("read")
    served = serve()
    answer = served.post("/login", data=form(served.get("/login").text, token=NOON_TOKEN))
    assert answer.status_code == 401
    assert "was revoked; send another" in answer.text
    sender = make("ingest")
    answer = served.post("/login", data=form(served.get("/login").text, token=sender))
    assert answer.status_code == 403
    assert "may not read" in answer.text


@pytest.mark.parametrize("goal", ["//evil.example", "https://evil.example", "/\\evil.example", "\nx"])
def test_signing_in_leads_nowhere_else(serve: Any, make: Make, goal: str) -> None:
    secret = make("read")
    served = serve()
    answer = served.post("/login", data=form(served.get("/login").text, token=secret, next=goal))
    assert answer.headers["location"] == "/"


def test_a_session_ends_with_the_token_that_opened_it(
    serve: Any, make: Make, url: str, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor_service.access.RELOAD_S", 0.0)
    secret = make("read")
    served = serve()
    served.post("/login", data=form(served.get("/login").text, token=secret))
    assert served.get("/", headers=HTML).status_code == 200
    revoke(url, secret, clock())
    assert served.get("/", headers=HTML).status_code == 303


def test_a_session_opens_no_other_that_outlives_the_token(
    serve: Any, make: Make, url: str, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor_service.access.RELOAD_S", 0.0)
    secret = make("read")
    session = make("read", parent=tokens.id_of(secret))
    second = make("read", parent=tokens.id_of(session))
    third = make("read", parent=tokens.id_of(second))
    served = serve()
    answer = served.post("/login", data=form(served.get("/login").text, token=session))
    assert (answer.status_code, "session" in answer.headers.get("set-cookie", "")) == (403, False)
    revoke(url, secret, clock())
    asked = [served.get("/api/v1/runs", headers=bearer(one)).status_code for one in (session, second, third)]
    assert asked == [401, 401, 401]


def test_a_cookie_of_another_program_does_not_hide_the_session(serve: Any, make: Make) -> None:
    secret = make("read", parent=tokens.id_of(make("read")))
    cookie = f'other={{"x": 1, "y": 2}}; trainhealth_session={secret}'
    assert serve().get("/api/v1/runs", headers={"Cookie": cookie}).status_code == 200


def test_tokens_that_cannot_be_read_are_503_and_not_an_open_door(
    serve: Any, tmp_path: Path, make: Make
) -> None:
    make("read")
    served = serve()
    for file in tmp_path.glob("monitor.db*"):
        file.write_bytes(b"damaged " * 1000)
    check(served.get("/api/v1/runs"), 503, "access tokens cannot be read")


def test_a_text_with_nul_is_refused_before_any_database_sees_it(monitor: Any) -> None:
    for path in ("/api/v1/runs?search=%00", "/api/v1/runs/a%00b", "/runs/%00", "/?cursor=%00"):
        check(monitor.get(path), 422, "NUL")
