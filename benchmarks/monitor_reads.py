"""What it takes to ask the monitor: long series whole and in buckets, health, and the page of all runs.

    python -m benchmarks.monitor_reads [--points 1000000] [--runs 1000] [--rounds 30]

The monitor runs as ``serve`` starts it, on SQLite, with a million points in one series (float32 noise, which
compresses worst) and a thousand runs beside it. One connection asks, all questions in turns; CPU is that of
the monitor's process.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.bare_http import Connection, Server, request
from benchmarks.goals import Goal, say, table
from benchmarks.ingest_targets import NOON, Ours, Rows

STEPS = 10_000
"""Steps in a batch while loading."""

BURST = 200
"""Questions about health in a row, for their rate."""

API = "/api/v1/runs"


def load(target: Ours, connection: Connection, port: int, points: int) -> str:
    """A run with one series of so many points."""
    run, noise = target.new_run(port), np.random.default_rng(1)
    for seq, first in enumerate(range(0, points, STEPS), 1):
        steps = list(range(first, min(first + STEPS, points)))
        values = noise.lognormal(0, 0.3, len(steps)).astype("f4").astype("f8").tolist()
        rows = Rows(steps, [NOON + 0.2 * step for step in steps], {"loss": values})
        expect(connection, target.encode(run, seq, rows))
    return run


def load_runs(target: Ours, connection: Connection, port: int, count: int) -> None:
    """So many runs, each with a few steps."""
    noise = np.random.default_rng(2)
    for _ in range(count):
        run, steps = target.new_run(port), list(range(20))
        series = {name: noise.lognormal(0, 0.3, 20).tolist() for name in ("loss", "grad_norm", "lr")}
        expect(connection, target.encode(run, 1, Rows(steps, [NOON + step for step in steps], series)))


def expect(connection: Connection, asked: bytes) -> bytes:
    """The body of an answer of 200."""
    status, answer = connection.ask(asked)
    assert status == 200, (status, answer[:500])
    return answer


def wait_until_compacted(connection: Connection, within_s: float = 600) -> None:
    """Until every batch that was received is in a block."""
    deadline, scrape = time.monotonic() + within_s, request("GET", "/metrics")
    while b"\ntrainhealth_compaction_lag_seconds 0.0\n" not in expect(connection, scrape):
        assert time.monotonic() < deadline, "compaction does not come to an end"
        time.sleep(0.5)


Question = tuple[str, bytes, float, Callable[[bytes], bool]]
"""What is asked, the request, how many milliseconds it may take, and whether an answer is whole."""


def questions(long: str, short: str, points: int, num_short: int) -> list[Question]:
    def raw(answer: bytes) -> bool:
        return len(json.loads(answer)["series"]["loss"]["value"]) == num_short

    def bucketed(answer: bytes) -> bool:
        return 500 <= len(json.loads(answer)["series"]["loss"]["min"]) <= 1000

    series = "series?name=loss"
    return [
        (f"{num_short:,} points, JSON", get(f"{API}/{short}/{series}"), 15, raw),
        (
            f"{num_short:,} points, bytes",
            get(f"{API}/{short}/{series}&format=binary"),
            6,
            lambda answer: len(answer) > 16 * num_short,
        ),
        (f"1,000 buckets of {num_short:,} points", get(f"{API}/{short}/{series}&buckets=1000"), 10, bucketed),
        (f"1,000 buckets of {points:,} points", get(f"{API}/{long}/{series}&buckets=1000"), 10, bucketed),
        ("health of a run", get(f"{API}/{long}/health"), 1, lambda answer: b'"status"' in answer),
        ("50 of all runs (API)", get(f"{API}?limit=50"), 20, lambda answer: b'"items"' in answer),
        ("the page of all runs", get("/"), 20, lambda answer: b"</html>" in answer),
    ]


def get(path: str) -> bytes:
    return request("GET", path)


def ask_in_turns(server: Server, asked: list[Question], rounds: int) -> list[Goal]:
    """Median milliseconds of each question; the worst hundredth is told beside it."""
    connection = Connection(server.port)
    for what, text, _, is_whole in asked:
        assert is_whole(expect(connection, text)), f"{what}: the answer is not what was asked for"
    times: dict[str, list[float]] = {what: [] for what, *_ in asked}
    for _ in range(rounds):
        for what, text, *_ in asked:
            began = time.perf_counter()
            expect(connection, text)
            times[what].append(1e3 * (time.perf_counter() - began))
    for what, some in times.items():
        say(
            f"{what}: fastest {min(some):.2f} ms, median {statistics.median(some):.2f}, worst {max(some):.2f}"
        )
    return [Goal(what, statistics.median(times[what]), "ms", at_most=most) for what, _, most, _ in asked]


def health_rate(server: Server, run: str) -> list[Goal]:
    connection, asked = Connection(server.port), request("GET", f"{API}/{run}/health")
    cpu, began = server.cpu_s(), time.perf_counter()
    for _ in range(BURST):
        expect(connection, asked)
    took, cpu = time.perf_counter() - began, server.cpu_s() - cpu
    return [
        Goal("health of a run, one after another", BURST / took, "a second", at_least=1000),
        Goal("health of a run, CPU", 1e3 * cpu / BURST, "ms"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1_000_000, help="points of the long series")
    parser.add_argument("--runs", type=int, default=1000, help="runs beside it")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    num_short = min(100_000, arguments.points)
    with tempfile.TemporaryDirectory() as folder:
        target = Ours(packed=True, TRAINHEALTH_COMPACT_IDLE_S="1", TRAINHEALTH_COMPACT_INTERVAL_S="0.5")
        server = target.start(Path(folder))
        try:
            connection = Connection(server.port)
            long = load(target, connection, server.port, arguments.points)
            short = load(target, connection, server.port, num_short)
            load_runs(target, connection, server.port, arguments.runs)
            wait_until_compacted(connection)
            rows = ask_in_turns(server, questions(long, short, arguments.points, num_short), arguments.rounds)
            table([*rows, *health_rate(server, long)])
        finally:
            server.stop()


if __name__ == "__main__":
    main()
