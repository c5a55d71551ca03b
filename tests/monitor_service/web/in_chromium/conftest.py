"""A real browser, and a page that remembers everything it says and asks."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from benchmarks import chromium


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "in_chromium" in str(item.path):
            item.add_marker(pytest.mark.slow)
            if chromium.PATH is None:
                reason = "no chromium on this machine: apt-get install chromium"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.started() as browser:
        yield browser


class Watched:
    """A page with everything that it says on its console and asks of the network."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.wait_for_selector(".chart[data-drawn-after-ms]")

    def chart(self, series: str) -> dict[str, Any]:
        """The chart's data attributes."""
        selector = f'.chart[data-series="{series}"]'
        data: dict[str, Any] = self.page.eval_on_selector(selector, "chart => ({...chart.dataset})")
        return data

    def values(self, series: str, column: int) -> dict[float, float | None]:
        """What uPlot was given in one column, by step; steps without a point are left out."""
        rows = self.page.eval_on_selector(
            f'.chart[data-series="{series}"]',
            "(chart, at) => chart.uplot.data[0].map((x, row) => [x, chart.uplot.data[at][row]])"
            ".filter(([, value]) => value !== undefined)",
            column,
        )
        return dict(rows)

    def until(self, expression: str) -> None:
        """Wait for a condition. (Playwright's own wait needs eval, which the pages forbid.)"""
        deadline = time.monotonic() + 10
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"never came true: {expression}"
            self.page.wait_for_timeout(50)

    def overflow(self) -> int:
        """How many pixels the page is wider than its window."""
        return int(
            self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        )


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Any]:
    """Open a window of a width, light or dark."""
    pages: list[Page] = []

    def open_(width: int = 1200, scheme: Any = "light", **more: Any) -> Watched:
        pages.append(browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, **more))
        return Watched(pages[-1])

    yield open_
    for page in pages:
        page.close()


@pytest.fixture
def watched(open_page: Any) -> Watched:
    page: Watched = open_page()
    return page
