"""From the click to the first line of a chart in Chromium: the pages of long runs, alone and side by side.

    python -m benchmarks.first_draw [--points 100000 1000000] [--rounds 5]

The monitor runs as ``serve`` starts it, on SQLite, compacted. Each round opens a fresh window, so nothing is
cached; what is told is the median. Needs the package ``playwright`` and a Chromium.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser

from benchmarks import chromium
from benchmarks.bare_http import Connection
from benchmarks.goals import Goal, say, table
from benchmarks.ingest_targets import Ours
from benchmarks.monitor_reads import load, wait_until_compacted

GOAL_S = 1.0


def main() -> None:
    """Print a row for each length, alone and side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, chromium.started() as browser:
        table(measured(Path(folder), browser, options.points, options.rounds))
    say("first draw: from the start of navigation to the drawn line, median of the rounds")


def measured(folder: Path, browser: Browser, lengths: list[int], rounds: int) -> Iterator[Goal]:
    """Two runs of each length in one monitor, whose pages are opened in turns."""
    target = Ours(packed=True, TRAINHEALTH_COMPACT_IDLE_S="1", TRAINHEALTH_COMPACT_INTERVAL_S="0.5")
    server = target.start(folder)
    try:
        connection, root = Connection(server.port), f"http://127.0.0.1:{server.port}"
        pairs = {many: [load(target, connection, server.port, many) for _ in range(2)] for many in lengths}
        wait_until_compacted(connection)
        for many, (one, other) in pairs.items():
            yield drawn(browser, f"{root}/runs/{one}", f"run of {many:,} points", rounds)
            both = f"{root}/compare?run={one}&run={other}"
            yield drawn(browser, both, f"two runs of {many:,} side by side", rounds)
    finally:
        server.stop()


def drawn(browser: Browser, address: str, what: str, rounds: int) -> Goal:
    seconds = [seconds_to_draw(browser, address) for _ in range(rounds)]
    return Goal(f"first draw: {what}", statistics.median(seconds), "s", at_most=GOAL_S)


def seconds_to_draw(browser: Browser, address: str) -> float:
    """The page itself notes when its first chart is drawn."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    try:
        page.goto(address)
        page.wait_for_selector(".chart[data-drawn-after-ms]", timeout=120_000)
        noted = page.eval_on_selector(
            ".chart[data-drawn-after-ms]", "chart => Number(chart.dataset.drawnAfterMs)"
        )
        return float(noted) / 1000
    finally:
        page.close()


if __name__ == "__main__":
    main()
