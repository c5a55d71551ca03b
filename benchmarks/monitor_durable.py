"""How soon an alarm is safe, and what it costs when every answer waits for the disk.

    python -m benchmarks.monitor_durable [--alarms 500] [--rounds 3] [--seconds 2]

An alarm is a batch with one finding; its answer means that it is committed. ``full`` syncs each commit to the
disk, ``normal`` leaves that to SQLite's checkpoints. Both monitors run at once and take turns.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.bare_http import Connection, Server
from benchmarks.goals import Goal, table
from benchmarks.ingest import measure
from benchmarks.ingest_targets import Ours

SHARE = {1: 1 / 3, 8: 1 / 2}
"""Of the normal rate that is wanted with an fsync for every answer, by the runs that send."""


class Turns:
    """The two monitors."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.targets = {
            name: Ours(name, packed=True, TRAINHEALTH_DURABLE=name) for name in ("normal", "full")
        }
        self.servers: dict[str, Server] = {}
        for name, target in self.targets.items():
            self.servers[name] = target.start(folder)
            stack.callback(self.servers[name].stop)

    def alarms(self, count: int) -> list[Goal]:
        """Times of single alarms, one after another."""
        times: dict[str, list[float]] = {name: [] for name in self.targets}
        runs = {name: target.new_run(self.servers[name].port) for name, target in self.targets.items()}
        lines = {name: Connection(server.port) for name, server in self.servers.items()}
        for seq in range(1, count + 1):
            for name, target in self.targets.items():
                body = target.alarm(runs[name], seq)
                began = time.perf_counter()
                status, answer = lines[name].ask(body)
                times[name].append(1e3 * (time.perf_counter() - began))
                assert status == 200, (status, answer[:300])
        found = []
        for name, some in times.items():
            some.sort()
            goals = (1, 5) if name == "normal" else (None, None)
            found += [
                Goal(f"one alarm, {name}: p50", statistics.median(some), "ms", at_most=goals[0]),
                Goal(f"one alarm, {name}: p99", some[int(0.99 * (count - 1))], "ms", at_most=goals[1]),
            ]
        return found

    def shares(self, runs: int, rounds: int, seconds: float) -> list[Goal]:
        """The rate of batches of 100 with an fsync for each answer, as a share of the normal one."""
        rates: dict[str, list[float]] = {name: [] for name in self.targets}
        for _ in range(rounds):
            for name, target in self.targets.items():
                cell = measure(target, self.servers[name], size=100, runs=runs, seconds=seconds)
                rates[name].append(cell.points_per_s)
        shares = [full / normal for full, normal in zip(rates["full"], rates["normal"], strict=True)]
        return [
            Goal(f"{runs} runs, {name}", statistics.median(some), "points/s") for name, some in rates.items()
        ] + [
            Goal(
                f"{runs} runs, full as a share of normal", statistics.median(shares), "", at_least=SHARE[runs]
            )
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alarms", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        turns = Turns(Path(folder), stack)
        turns.alarms(20)  # warm up
        rows = turns.alarms(arguments.alarms)
        for runs in SHARE:
            rows += turns.shares(runs, arguments.rounds, arguments.seconds)
    table(rows)


if __name__ == "__main__":
    main()
