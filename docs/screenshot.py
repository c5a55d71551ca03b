"""Make the pictures of the monitor's pages in this folder, with Chromium.

    make run                                    in one terminal: the demo, and its monitor
    python -m docs.screenshot [URL] [--run demo] [--beside RUN] [--out docs]

Needs the Python packages ``playwright`` and ``pillow`` and a Chromium (``apt-get install chromium``).
"""

import argparse
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page

from benchmarks import chromium

COLOURS = 256
MOST_HEIGHT = 2_530
"""Of a picture, in pixels: the rest of a long page says nothing new."""


@dataclass(frozen=True)
class Shot:
    """One picture: which page, and in what kind of window."""

    name: str
    address: str
    width: int = 1200
    dark: bool = False


def shots(http: httpx.Client, run: str, beside: str | None) -> list[Shot]:
    """What there is to see of a run; the youngest incident that has a picture, else the youngest."""
    found = http.get(f"/api/v1/runs/{run}/incidents").raise_for_status().json()["items"]
    shown = http.get(f"/api/v1/runs/{run}/pictures?kind=sample").raise_for_status().json()["items"]
    with_picture = {one["incident"] for one in shown}
    names = [one["incident"]["incident"] for one in found]
    names.sort(key=lambda name: name not in with_picture)
    chosen = [
        Shot("fleet", "/"),
        Shot("run", f"/runs/{run}"),
        Shot("run-dark", f"/runs/{run}", dark=True),
        Shot("run-phone", f"/runs/{run}", width=390),
    ]
    if beside is not None:
        chosen.append(Shot("compare", f"/compare?run={run}&run={beside}"))
    return chosen + [Shot("incident", f"/runs/{run}/incidents/{name}") for name in names[:1]]


def wait_until_drawn(page: Page) -> None:
    """Charts say when they are drawn, and pictures come once they are in view."""
    for chart in page.locator(".chart").all():
        chart.locator("canvas, .message:visible:text('No steps yet')").first.wait_for()
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
    page.wait_for_timeout(1_000)  # for the pictures; the live stream never lets the network come to rest
    page.evaluate("document.querySelectorAll('.film').forEach(one => one.scrollLeft = 0); scrollTo(0, 0)")


def take(browser: Browser, url: str, shot: Shot, out: Path) -> None:
    """Save the page as a small PNG, cut where it is long."""
    page = browser.new_page(
        viewport={"width": shot.width, "height": 900}, color_scheme="dark" if shot.dark else "light"
    )
    answer = page.goto(f"{url}{shot.address}")
    if answer is None or not answer.ok:
        sys.exit(f"{url}{shot.address} answers {answer.status if answer else 'nothing'}")
    wait_until_drawn(page)
    taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    page.close()
    cut = taken.crop((0, 0, taken.width, min(taken.height, MOST_HEIGHT)))
    small = cut.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(out / f"{shot.name}.png", optimize=True)


def main() -> None:
    """Take all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8321")
    parser.add_argument("--run", default="demo")
    parser.add_argument("--beside", help="another run, for a picture of both side by side")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    with httpx.Client(base_url=options.url) as http, chromium.started() as browser:
        for shot in shots(http, options.run, options.beside):
            take(browser, options.url, shot, options.out)


if __name__ == "__main__":
    main()
