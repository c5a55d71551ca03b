"""What one scrape of /metrics costs with 500 active runs, beside prometheus_client's own writer.

Then the same from outside: whether batches wait longer while somebody scrapes.

python -m benchmarks.monitor_metrics [--runs 500]
"""

import argparse
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from statistics import median

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from benchmarks.bare_http import Connection, request
from benchmarks.goals import Goal, say, table
from benchmarks.ingest import measure as measure_ingest
from benchmarks.ingest_targets import Ours
from benchmarks.monitor_reads import expect, load_runs
from monitor_service import runs
from monitor_service.batches import Incoming
from monitor_service.leading import Lead
from monitor_service.metrics import Meters
from monitor_service.opening import open_database
from monitor_service.run_series import FAMILIES
from monitor_service.scrape import Scraper
from monitor_service.settings import Settings
from monitor_service.store import Store, open_engine
from shared.base import utc_now
from shared.exchange import Batch, Columns, RunSpec

ROUNDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn of batches beside scrapes")
    arguments = parser.parse_args()
    count = arguments.runs
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/monitor.db"
        open_database(url)
        settings = Settings(database_url=url, metrics_max_runs=count)
        meters = Meters(CollectorRegistry())
        store = Store(open_engine(url), queue_size=10_000, observe=meters.note_commit, complain=lambda: None)
        store.start()
        lead = Lead(store, utc_now, 600.0)
        lead.renew()
        scraper = Scraper(store, settings, meters, lead, utc_now)
        try:
            for number in range(count):
                name = f"run-{number}"
                spec = RunSpec(started_at=utc_now() - timedelta(hours=1), checkpoint_interval_steps=100)
                store.write(lambda connection, n=name, s=spec: runs.register(connection, n, s, utc_now()))
            measure(scraper, store, settings, count)
        finally:
            store.close()
        say("")
        table(beside_ingest(Path(folder), count, arguments.seconds))


def measure(scraper: Scraper, store: Store, settings: Settings, count: int) -> None:
    """Between two scrapes every run sends a batch, as it would in the 15 s between them."""
    cpu, again = [], []
    for round_ in range(ROUNDS):
        for number in range(count):
            send(store, settings, f"run-{number}", round_)
        for costs in (cpu, again):
            began = time.thread_time()
            text, _ = scraper.answer("")
            costs.append(1000 * (time.thread_time() - began))
    lines = [line for line in text.decode().splitlines() if 'run="' in line and not line.startswith("#")]
    each = len(lines) / count
    say(f"{count} runs, {each:.0f} series each, {len(text) / 1e6:.1f} MB; CPU of the thread that answers\n")
    by_library, share = library(lines), 500 * 60 / len(lines)
    changed, same = median(cpu[1:]), median(again)
    table(
        [
            Goal("first scrape", cpu[0], "ms"),
            Goal("every run has sent something since the last", changed, "ms", at_most=20),
            Goal("no run has", same, "ms", at_most=20),
            Goal(
                "the same for 30,000 series (500 runs of 60), all changed", changed * share, "ms", at_most=20
            ),
            Goal("the same for 30,000 series, none changed", same * share, "ms", at_most=20),
            Goal("prometheus_client writing as many series", by_library, "ms"),
            Goal("ours, all changed, as a share of that", changed / by_library, ""),
        ]
    )


def send(store: Store, settings: Settings, run: str, round_: int) -> None:
    steps = list(range(100 * round_, 100 * round_ + 10))
    numbers = {name: [0.1 * round_ + step for step in steps] for name in ("loss", "grad_norm", "lr")}
    numbers |= {"fetch_seconds": [0.01] * 10, "step_seconds": [0.1] * 10}
    columns = Columns(step=steps, time=[time.time()] * 10, series=numbers)
    incoming = Incoming.of(Batch(session="s", seq=round_ + 1, attempt=1, columns=columns))
    store.write(
        lambda connection: runs.exchange(connection, run, incoming, utc_now(), settings, store.recall)
    )


def library(lines: list[str]) -> float:
    """CPU of the same series, each written by the library from families made anew."""
    began = time.thread_time()
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for family in FAMILIES:
        kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
        labels = ["project", "run", *family.labels]
        families[family.name] = kind(f"trainhealth_{family.name}", family.what, labels=labels)
    for line in lines:
        name, _, rest = line.removeprefix("trainhealth_").partition("{")
        values = rest.split('"')[1::2]
        families[name].add_metric(values, float(rest.rpartition(" ")[2]))
    registry = CollectorRegistry()
    registry.register(_Given(list(families.values())))
    generate_latest(registry)
    return 1000 * (time.thread_time() - began)


def beside_ingest(folder: Path, count: int, seconds: float) -> list[Goal]:
    """p99 of batches of 100 points of one run, in turns without a scrape and with one each second."""
    target = Ours("scraped", packed=True, TRAINHEALTH_METRICS_MAX_RUNS=f"{count + 99}")
    server, is_over = target.start(folder), threading.Event()
    try:
        load_runs(target, Connection(server.port), server.port, count)
        scraping = threading.Event()
        thread = threading.Thread(target=_scrape, args=(server.port, scraping, is_over))
        thread.start()
        found: dict[bool, list[float]] = {False: [], True: []}
        for round_ in range(6):
            is_scraped = bool(round_ % 2)
            (scraping.set if is_scraped else scraping.clear)()
            cell = measure_ingest(target, server, size=100, runs=1, seconds=seconds, ahead=4000)
            found[is_scraped].append(cell.p99_ms)
        is_over.set()
        thread.join()
    finally:
        is_over.set()
        server.stop()
    calm, scraped = median(found[False]), median(found[True])
    return [
        Goal("p99 of a batch, no scrape", calm, "ms"),
        Goal("p99 of a batch, a scrape each second", scraped, "ms"),
        Goal("the second as so many times the first", scraped / calm, "", at_most=1.5),
    ]


def _scrape(port: int, scraping: threading.Event, is_over: threading.Event) -> None:
    connection = Connection(port)
    while not is_over.wait(1.0):
        if scraping.is_set():
            expect(connection, request("GET", "/metrics"))


class _Given(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


if __name__ == "__main__":
    main()
