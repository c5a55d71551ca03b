"""Whoever opens a page gets a page, also where something is wrong; a program gets a problem document."""

from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize(
    ("address", "status", "heading", "words"),
    [
        ("/?cursor=nonsense", 422, "This address will not do", "send the next_cursor of the page before"),
        ("/?status=merry", 422, "This address will not do", "status"),
        ("/?sort=size", 422, "This address will not do", "sort"),
        ("/nothing", 404, "Not here", "There is no /nothing here"),
        ("/runs/nobody", 404, "No such run", "knows no run called"),
        ("/runs/demo/incidents/none", 404, "No such incident", "tells of no incident"),
        ("/runs/nobody/order", 404, "Not here", "No run &#39;nobody&#39;"),
        ("/runs/demo/order?kind=dance", 422, "This address will not do", "kind"),
        ("/runs/demo/order?to_step=-1", 422, "This address will not do", "to_step"),
    ],
)
def test_an_address_that_will_not_do_is_a_page_that_says_why(
    told: httpx.Client, address: str, status: int, heading: str, words: str
) -> None:
    answer = told.get(address, headers=BROWSER)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert f"<h1>{heading}</h1>" in answer.text
    assert words in answer.text


@pytest.mark.parametrize("address", ["/api/v1/runs/nobody", "/api/v1/nothing", "/?cursor=nonsense"])
def test_a_program_gets_a_problem_document(told: httpx.Client, address: str) -> None:
    headers = BROWSER if address.startswith("/api/") else {"Accept": "*/*"}
    answer = told.get(address, headers=headers)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("address", ["/", "/runs/demo"])
def test_a_database_that_is_away_is_a_page_that_calms(
    client: httpx.Client, teller: Any, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    teller(client, "demo").register(10)

    def fail(*arguments: Any, **more: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("the server closed the connection"))

    monkeypatch.setattr("monitor_service.web.fleet.list_runs", fail)
    monkeypatch.setattr("monitor_service.queries.run_detail", fail)
    answer = client.get(address, headers=BROWSER)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "cannot read its data now" in answer.text
    assert "Nothing is lost" in answer.text
    monkeypatch.undo()
    assert client.get(address, headers=BROWSER).status_code == 200


def test_a_mistake_of_ours_is_a_page_without_its_details(
    told: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr("monitor_service.web.fleet.list_runs", fail)
    answer = told.get("/", headers=BROWSER)
    assert answer.status_code == 500
    assert "<h1>Internal error</h1>" in answer.text
    assert "a secret" not in answer.text
    assert answer.headers["connection"] == "close"
    assert told.get("/healthz").status_code == 200
