"""Every page passes the checks of axe-core, in light and in dark."""

import math
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe

from shared.exchange import Columns

PAGES = {
    "fleet": "/",
    "nothing found": "/?search=nobody",
    "run": "/runs/demo",
    "incident": "/runs/demo/incidents/step-00000120-1",
    "order": "/runs/demo/order?kind=stop",
    "order that may be": "/runs/open/order?to_step=50",
    "open run": "/runs/open",
    "incidents": "/runs/demo/incidents",
    "side by side": "/compare?run=demo&run=open",
    "nothing to compare": "/compare?run=demo",
    "no such run": "/runs/nobody",
    "sign in": "/login",
}


@pytest.fixture
def with_an_open_run(told: httpx.Client, teller: Any, kept: Any) -> httpx.Client:
    if told.get("/api/v1/runs/open").status_code == 404:
        run = teller(told, "open")
        run.register(600)
        run.start(1, 0, "start")
        run.train(0, 120)
        kept(run, range(50, 101, 50))
    return told


def suggest(run: Any, kept: Any) -> None:
    """A run for which the monitor suggests a rollback: its loss is not a number any more."""
    run.register(600)
    run.start(1, 0, "start")
    run.train(0, 120)
    kept(run, range(50, 101, 50))
    steps = list(range(120, 132))
    times = [run.moment().timestamp() + number for number in range(len(steps))]
    run.send(Columns(step=steps, time=times, series={"loss": [math.nan] * len(steps)}))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_mend(open_page: Any, with_an_open_run: httpx.Client, scheme: str) -> None:
    watched = open_page(1200, scheme)
    for name, address in PAGES.items():
        watched.page.goto(f"{with_an_open_run.base_url}{address}")
        if name in ("run", "incident", "open run", "side by side"):
            watched.page.wait_for_selector(".chart[data-drawn-after-ms]")
        check(watched, name)


def check(watched: Any, name: str) -> None:
    found = Axe().run(watched.page)
    assert found.violations_count == 0, f"{name}: {found.generate_report()}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nor_in_what_is_suggested_and_its_order(
    open_page: Any, client: httpx.Client, teller: Any, kept: Any, scheme: str
) -> None:
    suggest(teller(client, "sick"), kept)
    watched = open_page(1200, scheme)
    watched.open(f"{client.base_url}/runs/sick")
    check(watched, "run with a suggestion")
    watched.page.get_by_role("link", name="See what it costs").click()
    watched.page.get_by_role("button", name="Roll back to step 100").wait_for()
    check(watched, "order of what is suggested")
