"""Make a picture of a monitor page in Chromium.

    python docs/screenshot.py URL OUT.png [--dark] [--width 1200]

Needs the Python package ``playwright`` and a Chromium of the system (``apt-get install chromium``).
"""

import argparse
import shutil
import sys

from playwright.sync_api import Page, sync_playwright

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def wait_for_charts(page: Page) -> None:
    """Charts say when they are drawn; a page without points has none to wait for."""
    for chart in page.locator(".chart").all():
        chart.locator("canvas, .message:visible:text('No steps yet')").first.wait_for()
    page.evaluate("document.fonts.ready")


def take(url: str, target: str, *, dark: bool, width: int) -> None:
    """Save the whole page at ``url`` as a PNG, two pixels for each CSS pixel."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("no chromium found; install it, for example with apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(
            viewport={"width": width, "height": 800},
            device_scale_factor=2,
            color_scheme="dark" if dark else "light",
        )
        answer = page.goto(url)
        if answer is None or not answer.ok:
            sys.exit(f"{url} answers {answer.status if answer else 'nothing'}; is the monitor running?")
        wait_for_charts(page)
        page.screenshot(path=target, full_page=True)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url")
    parser.add_argument("target", help="the PNG file to write")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1200, help="CSS pixels; 390 for a phone")
    options = parser.parse_args()
    take(options.url, options.target, dark=options.dark, width=options.width)


if __name__ == "__main__":
    main()
