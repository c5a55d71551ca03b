"""Every page passes the checks of axe-core, in light and in dark."""

from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe

PAGES = {
    "fleet": "/",
    "nothing found": "/?search=nobody",
    "run": "/runs/demo",
    "incident": "/runs/demo/incidents/step-00000120-1",
    "order": "/runs/demo/order?kind=stop",
    "order that may be": "/runs/open/order?to_step=50",
    "open run": "/runs/open",
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_mend(open_page: Any, with_an_open_run: httpx.Client, scheme: str) -> None:
    watched = open_page(1200, scheme)
    for name, address in PAGES.items():
        watched.page.goto(f"{with_an_open_run.base_url}{address}")
        if name in ("run", "incident", "open run", "side by side"):
            watched.page.wait_for_selector(".chart[data-drawn-after-ms]")
        found = Axe().run(watched.page)
        assert found.violations_count == 0, f"{name}: {found.generate_report()}"
