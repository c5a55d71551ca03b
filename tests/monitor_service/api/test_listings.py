"""Lists: runs in every order, cursors that are none, findings, incidents, and what has not changed."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

Build = Callable[..., dict[str, Any]]
INCIDENT = {
    "type": "incident",
    "step": 40,
    "incident": "i-1",
    "onset_step": 38,
    "guard": "nonfinite",
    "kind": "data",
    "message": "a pixel is NaN",
}


def names_of(monitor: Any, query: str) -> list[str]:
    """All pages, two runs each."""
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        url = f"/api/v1/runs?limit=2&{query}" + (f"&cursor={cursor}" if cursor else "")
        page = monitor.get(url).json()
        seen += [run["run"] for run in page["items"]]
        cursor = page["next_cursor"]
    return seen


def test_every_order_shows_each_run_once(monitor: Any, batch: Build, clock: Any) -> None:
    for name in ("c", "a", "b", "e", "d"):
        monitor.register(name)
    finding = {"type": "finding", "step": 1, "guard": "g", "severity": "error", "message": "m"}
    for name in ("e", "a"):
        clock.advance(1)
        monitor.send(batch(1, events=[finding]), run=name)
    assert names_of(monitor, "sort=newest") == ["d", "e", "b", "a", "c", "demo"]
    assert names_of(monitor, "sort=oldest") == ["demo", "c", "a", "b", "e", "d"]
    assert names_of(monitor, "sort=name") == ["a", "b", "c", "d", "demo", "e"]
    assert names_of(monitor, "sort=changed") == ["a", "e", "d", "b", "c", "demo"]


def test_runs_are_found_by_a_part_of_their_name(monitor: Any) -> None:
    for name in ("Radio-1", "radio_2", "other"):
        monitor.register(name)
    assert names_of(monitor, "search=rADIO") == ["radio_2", "Radio-1"]
    assert names_of(monitor, "search=_") == ["radio_2"]
    assert names_of(monitor, "search=%25") == []


def cursor_of(*told: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(told).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "%00",
        "====",
        "\u00fc",
        cursor_of("newest", "", "1"),
        cursor_of("newest", "", -1),
        cursor_of("newest", "", 2**63),
        cursor_of("newest", "", True),
        cursor_of("name", "a", 1),
        cursor_of("newest"),
        base64.urlsafe_b64encode(b"[" * 5000).decode()[:480],
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/runs", "/"])
def test_a_cursor_that_is_none_is_422_also_on_the_page(monitor: Any, path: str, cursor: str) -> None:
    answer = monitor.get(path, params={"cursor": cursor})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert "cursor" in answer.json()["errors"][0]["field"]


def test_a_moment_in_a_cursor_that_is_none_is_422(monitor: Any) -> None:
    for key in ("yesterday", "0001-01-01T00:00:00+14:00"):
        answer = monitor.get(
            "/api/v1/runs", params={"sort": "changed", "cursor": cursor_of("changed", key, 1)}
        )
        assert answer.status_code == 422, key


def test_what_has_not_changed_is_304(monitor: Any, batch: Build) -> None:
    for seq, url in enumerate(("/api/v1/runs", "/api/v1/runs/demo"), start=1):
        tag = monitor.get(url).headers["etag"]
        assert monitor.get(url, headers={"If-None-Match": tag}).status_code == 304
        monitor.send(batch(seq, [seq], loss=[1.0]))
        assert monitor.get(url, headers={"If-None-Match": tag}).status_code == 200


def test_findings_are_listed_alone(monitor: Any, batch: Build) -> None:
    finding = {"type": "finding", "step": 1, "guard": "spike", "severity": "error", "message": "m"}
    monitor.send(batch(1, events=[INCIDENT, finding, {**finding, "severity": "info"}]))
    assert [one["type"] for one in monitor.tell("/findings")["items"]] == ["finding"] * 2
    assert len(monitor.tell("/findings?severity=info")["items"]) == 1


def test_the_last_telling_of_an_incident_counts_however_late_the_first_one_comes(
    monitor: Any, batch: Build
) -> None:
    first = {**INCIDENT, "time": "2026-03-01T12:00:00Z"}
    last = {
        **INCIDENT,
        "time": "2026-03-01T12:00:05Z",
        "outcome": "healed",
        "module": "unet.mid",
        "steps_lost": 7,
        "seconds_lost": 1.5,
        "reading": {"loss": "NaN"},
    }
    other = {**INCIDENT, "incident": "i-2", "time": "2026-03-01T12:00:09Z", "steps_lost": 1}
    monitor.send(batch(2, events=[last, other]))
    monitor.send(batch(1, events=[first]))
    told = monitor.tell("/incidents")
    assert [one["incident"]["incident"] for one in told["items"]] == ["i-2", "i-1"]
    healed = told["items"][1]
    assert (healed["tellings"], healed["incident"]["outcome"]) == (2, "healed")
    assert healed["incident"]["reading"] == {"loss": "NaN"}
    assert (healed["first_told"], healed["last_told"]) == ("2026-03-01T12:00:00Z", "2026-03-01T12:00:05Z")
    assert told["cost"] == {"incidents": 2, "open": 1, "steps_lost": 8, "seconds_lost": 1.5}
