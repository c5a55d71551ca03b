"""How many bytes a stored point takes, and how much memory the monitor, at up to a hundred million points.

    python -m benchmarks.monitor_storage [--points 100000000] [--runs 100]

A hundred active runs send batches of 1,000 steps in ten series of float32 noise (which compresses worst), and
a finding with each. The file is looked at after compaction, at each power of ten; what counts at a large size
are the marginal bytes: those added since the row before.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import msgpack
import numpy as np

from benchmarks.bare_http import Connection, Server, request
from benchmarks.goals import Goal, head, say
from benchmarks.ingest_targets import METRICS, NOON, Ours
from benchmarks.monitor_reads import expect, wait_until_compacted

STEPS = 1000
SMALLEST = 1_000_000
FINDING = {"type": "finding", "time": "2026-03-01T12:00:00Z", "guard": "spike", "severity": "warning"}


class Writer:
    """Sends the next batch of each run in turn."""

    def __init__(self, target: Ours, port: int, num_runs: int) -> None:
        self._connection, self._noise = Connection(port), np.random.default_rng(3)
        self._runs = [target.new_run(port) for _ in range(num_runs)]
        self.num_points = self._num_batches = 0

    def send(self) -> None:
        seq, place = divmod(self._num_batches, len(self._runs))
        first = seq * STEPS
        step = np.arange(first, first + STEPS, dtype="<i8")
        moments = NOON + 0.2 * step + self._noise.normal(0, 0.002, STEPS)  # no step takes as long as the last
        series = {name: self._noise.lognormal(0, 0.3, STEPS).astype("f4").astype("<f8") for name in METRICS}
        columns = {
            "step": step.tobytes(),
            "time": moments.astype("<f8").tobytes(),
            "series": {name: values.tobytes() for name, values in series.items()},
        }
        finding = {**FINDING, "step": first, "message": f"loss {random.random():.3f} deviations too high"}
        batch = {"session": "bench", "seq": seq + 1, "attempt": 1, "columns": columns, "events": [finding]}
        path = f"/api/v1/runs/{self._runs[place]}/exchange"
        expect(self._connection, request("POST", path, msgpack.packb(batch), "application/msgpack"))
        self._num_batches += 1
        self.num_points += STEPS * len(METRICS)


def stored_bytes(connection: Connection) -> float:
    """Of the whole database, without free pages, as the monitor tells it."""
    text = expect(connection, request("GET", "/metrics")).decode()
    (line,) = [
        line for line in text.splitlines() if line.startswith('trainhealth_store_bytes{part="database"}')
    ]
    return float(line.rpartition(" ")[2])


def measure(server: Server, writer: Writer, sizes: list[int]) -> None:
    before = 0, 0.0
    for size in sizes:
        began, cpu = time.perf_counter(), server.cpu_s()
        while writer.num_points < size:
            writer.send()
        connection = Connection(server.port)  # an older one was idle for too long: the server has closed it
        wait_until_compacted(connection)
        took, cpu = time.perf_counter() - began, server.cpu_s() - cpu
        count, stored = writer.num_points, stored_bytes(connection)
        added = count - before[0]
        rows = [
            Goal("all bytes for each point, with events and indexes", stored / count, "bytes", at_most=6),
            Goal("marginal bytes for each point", (stored - before[1]) / added, "bytes", at_most=6),
            Goal("memory of the monitor", server.memory_mib(), "MiB", at_most=120),
            Goal("time to send and compact", took, "s"),
            Goal("CPU to store and compact a point", 1e6 * cpu / added, "us"),
        ]
        for row in rows:
            say(Goal(f"{count:,} points: {row.what}", row.found, row.unit, row.at_most).line())
        before = count, stored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100_000_000)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where the database goes; 0.6 GB for the default")
    arguments = parser.parse_args()
    sizes = [size for size in (SMALLEST * 10**n for n in range(9)) if size < arguments.points]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        target = Ours(TRAINHEALTH_COMPACT_IDLE_S="2", TRAINHEALTH_COMPACT_INTERVAL_S="1")
        server = target.start(Path(folder))
        try:
            writer = Writer(target, server.port, arguments.runs)
            say(f"with {arguments.runs} runs and no point: {server.memory_mib():.0f} MiB of memory\n")
            head()
            measure(server, writer, [*sizes, arguments.points])
        finally:
            server.stop()


if __name__ == "__main__":
    main()
