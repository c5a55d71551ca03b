"""How long it takes from an event at the trainer to an order at the trainer.

policy   the monitor's own rule (TRAINHEALTH_POLICY=act): the order comes in the reply to the batch
alert    scrape, rule, Alertmanager, webhook, order, held reply: with the configuration that is shipped

A client stands for the trainer and posts what one would: a batch of healthy steps, then one whose losses are
NaN, at a random moment against the clocks of the others. A real trainer obeys at its next step boundary, so
add one step.

    python -m benchmarks.alert_latency --samples 20
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from uuid import uuid4

import httpx

from benchmarks.alerting import Alerting

HOLD_S = 1.0
PATIENCE_S = 60.0


class Client:
    """Speaks the exchange for one run, as a trainer without guards would."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=30)
        self._path, self._session, self._seq = f"/api/v1/runs/bench-{uuid4().hex[:8]}", uuid4().hex, 0
        self._http.put(self._path, json={"started_at": "2026-01-01T00:00:00Z"}).raise_for_status()

    def post(self, losses: list[float | str]) -> bool:
        """Send these steps, or none, and answer whether an order came back."""
        columns = {"step": [], "time": [], "series": {}}
        if losses:
            steps = range(self._seq * 10, self._seq * 10 + len(losses))
            columns = {"step": [*steps], "time": [time.time()] * len(losses), "series": {"loss": losses}}
        self._seq += 1
        batch = {"session": self._session, "seq": self._seq, "attempt": 1, "hold_s": HOLD_S * (not losses)}
        answer = self._http.post(f"{self._path}/exchange", json={**batch, "columns": columns, "events": []})
        answer.raise_for_status()
        return bool(answer.json()["commands"])

    def until_ordered(self) -> float:
        """Seconds from the NaN to the order."""
        began = time.perf_counter()
        is_ordered = self.post(["NaN"] * 5)
        while not is_ordered:
            assert time.perf_counter() - began < PATIENCE_S, "no order came"
            is_ordered = self.post([])
        return time.perf_counter() - began


@contextmanager
def monitor(folder: Path, **settings: str) -> Iterator[str]:
    """A monitor on SQLite in a process of its own; answers its address."""
    words = [sys.executable, "-m", "monitor_service", "serve", "--json", "--port", "0"]
    words += ["--database-url", f"sqlite:///{folder / 'monitor.db'}"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings})
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait(20)


def by_policy(folder: Path, samples: int) -> list[float]:
    """Through the monitor's own rule."""
    with monitor(folder, TRAINHEALTH_POLICY="act") as url:
        seconds = []
        for _ in range(samples):
            client = Client(url)
            client.post([1.0, 1.0])
            seconds.append(client.until_ordered())
        return seconds


def by_alert(folder: Path, samples: int) -> list[float]:
    """Through Prometheus and Alertmanager."""
    with monitor(folder) as url:
        alerting = Alerting(folder / "alerting", url.removeprefix("http://"))
        try:
            alerting.wait()
            seconds = []
            for _ in range(samples):
                client = Client(url)
                client.post([1.0, 1.0])
                time.sleep(2.5 + random.random())  # two scrapes, and a random phase against the next
                seconds.append(client.until_ordered())
            return seconds
        finally:
            alerting.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=20)
    samples = parser.parse_args().samples
    sys.stdout.write("| path | samples | median ms | worst ms |\n|---|---|---|---|\n")
    for name, measure in (("policy", by_policy), ("alert", by_alert)):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), samples)
        sys.stdout.write(f"| {name} | {samples} | {median(found) * 1e3:.0f} | {max(found) * 1e3:.0f} |\n")


if __name__ == "__main__":
    main()
