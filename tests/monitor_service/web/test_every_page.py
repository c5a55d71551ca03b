"""What holds for every page, found by the routes themselves so that a new page cannot be forgotten."""

import importlib
import pkgutil
import re
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from monitor_service import web

VALUES = {"run": "demo", "incident": "step-00000120-1"}
QUERIES = {"/compare": "?run=demo&run=other"}
"""What a page's address must hold for it to be more than a refusal."""

REFUSED = {
    "no such run": ("/runs/nobody", 404),
    "no such page": ("/nowhere", 404),
    "no such incident": ("/runs/demo/incidents/nothing", 404),
    "too few to compare": ("/compare", 422),
    "a step that is none": ("/runs/demo/order?to_step=x", 422),
}


def page_routes() -> list[str]:
    """The paths of every GET route in the rooms of ``monitor_service.web``."""
    modules = [
        importlib.import_module(f"{web.__name__}.{one.name}") for one in pkgutil.iter_modules(web.__path__)
    ]
    routers = [module.router for module in modules if isinstance(getattr(module, "router", None), APIRouter)]
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return sorted({route.path for route in routes if "GET" in route.methods})


PAGES = page_routes()
ELSEWHERE = r"""(?:url\(\s*["']?|(?:@import|\bfrom|\bimport|fetch\()\s*["'])(?:https?:)?//"""


@pytest.fixture(scope="module")
def two_told(told: httpx.Client) -> httpx.Client:
    spec = {"started_at": "2026-03-01T12:00:00Z"}
    assert told.put("/api/v1/runs/other", json=spec).status_code in (200, 201)
    return told


def test_the_pages_that_are_known_are_found() -> None:
    assert {"/", "/compare", "/login", "/runs/{run}", "/runs/{run}/order"} <= set(PAGES)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_binds_the_browser_and_asks_nothing_of_others(two_told: httpx.Client, path: str) -> None:
    command = two_told.get("/api/v1/runs/demo/commands").json()["items"][0]["id"]
    answer = two_told.get(path.format(**VALUES, command=command) + QUERIES.get(path, ""))
    assert answer.status_code == 200
    check(answer)


@pytest.mark.parametrize(("address", "status"), REFUSED.values(), ids=REFUSED)
def test_so_does_the_page_of_a_refusal(two_told: httpx.Client, address: str, status: int) -> None:
    answer = two_told.get(address, headers={"Accept": "text/html"})
    assert answer.status_code == status
    check(answer)


def check(answer: httpx.Response) -> None:
    """Nothing inline, nothing of another site, and the headers that keep it so."""
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"].startswith("text/html")
    assert not re.search(r"\sstyle=|\son\w+=|<style", answer.text)
    scripts = re.findall(r"<script([^>]*)>", answer.text)
    assert all("src=" in script or "application/json" in script for script in scripts)
    assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", answer.text)


def test_no_file_of_ours_names_another_site() -> None:
    """Stylesheets and scripts load nothing from elsewhere."""
    static = Path(web.__path__[0]) / "static"
    ours = [file for file in static.rglob("*") if file.suffix in (".css", ".js")]
    assert len(ours) > 10
    for file in ours:
        asks = re.findall(ELSEWHERE, file.read_text())
        assert not asks, file.name
