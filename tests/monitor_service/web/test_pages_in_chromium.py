"""The run page in a real browser: what the scripts make of it."""

import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


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
def watched(browser: Browser) -> Iterator[Watched]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    yield Watched(page)
    page.close()


def test_the_run_page_draws_the_story(watched: Watched, told: httpx.Client) -> None:
    watched.open(f"{told.base_url}/runs/demo")

    drawn = watched.chart("loss")
    assert json.loads(drawn["marks"]) == {
        "finding": 3,
        "skipped": 1,
        "rollback": 2,
        "checkpoint": 12,
        "not_finite": 1,
    }
    assert json.loads(watched.chart("grad_norm")["marks"]).get("not_finite") is None

    line = watched.values("loss", 1)
    assert line[180] is None, "a NaN must be a gap"
    assert line[119.5] is None, "a refused update leaves a gap before the step that was tried again"
    assert line[179] is not None
    assert 0 not in line.values()
    abandoned = watched.values("loss", 4)
    assert {step for step, value in abandoned.items() if value is not None} == {
        *range(240, 251),
        *range(350, 401),
    }
    assert watched.page.locator("#not-finite-legend").is_visible()

    origin = str(told.base_url)
    assert [url for url in watched.asked if not url.startswith(origin)] == []
    assert watched.complaints == []


def test_an_open_run_goes_on_before_the_readers_eyes(
    watched: Watched, client: httpx.Client, teller: Any
) -> None:
    run = teller(client, "live")
    run.register(600)
    run.start(1, 0, "start")
    run.train(0, 50)
    watched.open(f"{client.base_url}/runs/live")
    run.train(50, 80)
    watched.until("document.querySelector('.chart').uplot.data[0].at(-1) === 79")
    assert "79 of 600" in watched.page.inner_text("#key-numbers")
    asked = [url for url in watched.asked if "/series?" in url]
    assert "from_step=50" in asked[-1], "only the tail is asked for"
    assert watched.complaints == []


def test_a_dragged_stretch_is_shown_in_both_charts_and_a_key_brings_all_back(
    watched: Watched, told: httpx.Client
) -> None:
    watched.open(f"{told.base_url}/runs/demo")
    box = watched.page.locator(".chart").first.locator(".u-over").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    watched.page.mouse.move(box["x"] + box["width"] * 0.25, middle)
    watched.page.mouse.down()
    watched.page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    watched.page.mouse.up()
    shown = "[...document.querySelectorAll('.chart')].map(c => [c.uplot.scales.x.min, c.uplot.scales.x.max])"
    watched.until(f"{shown}.every(([first]) => first > 100)")
    first, second = watched.page.evaluate(shown)
    assert first == second == pytest.approx([150, 300], abs=5)

    watched.page.locator(".chart").first.focus()
    watched.page.keyboard.press("m")
    assert "Step" in watched.page.inner_text("#reading")
    watched.page.keyboard.press("0")
    watched.until(f"{shown}.every(([first]) => first === 0)")
    assert watched.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_no_page_is_wider_than_its_window(
    browser: Browser, told: httpx.Client, scheme: Any, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    watched = Watched(page)
    for address in ("/runs/demo", "/", "/runs/nobody"):
        page.goto(f"{told.base_url}{address}")
        assert watched.overflow() <= 0, f"{address} at {width} px"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 21, 23)") == (scheme == "dark")
    page.close()


def test_a_hundred_thousand_points_are_drawn_within_a_second(
    watched: Watched, client: httpx.Client, teller: Any
) -> None:
    run = teller(client, "long")
    run.register(100_000)
    run.start(1, 0, "start")
    run.train(0, 100_000)
    watched.open(f"{client.base_url}/runs/long")
    assert int(watched.chart("loss")["drawnAfterMs"]) < 1000
    steps = watched.values("loss", 1)
    assert max(steps) > 99_900
    assert len(steps) < 5_000, "more points than pixels were asked for"


def test_a_page_says_that_the_monitor_is_away_and_forgets_it_when_it_is_back(
    watched: Watched, told: httpx.Client
) -> None:
    watched.open(f"{told.base_url}/runs/demo")
    notice = watched.page.locator("#unheard")
    assert not notice.is_visible()
    watched.page.route("**/runs/demo", lambda route: route.abort())
    wake = "document.dispatchEvent(new Event('visibilitychange'))"
    watched.page.evaluate(wake)
    notice.wait_for(state="visible")
    watched.page.unroute("**/runs/demo")
    watched.page.evaluate(wake)
    notice.wait_for(state="hidden")


def test_the_tooltip_tells_what_a_mark_means_and_what_was_abandoned(
    watched: Watched, told: httpx.Client
) -> None:
    watched.open(f"{told.base_url}/runs/demo")
    box = watched.page.locator(".chart").first.locator(".u-over").bounding_box()
    assert box is not None
    watched.page.mouse.move(box["x"] + box["width"] * 250 / 600, box["y"] + 40)
    tooltip = watched.page.locator(".tooltip:visible")
    tooltip.wait_for()
    words = tooltip.inner_text()
    assert "Step\n250" in words
    assert "Loss, abandoned" in words
    assert "From step 250 back to 240 by a guard" in words
