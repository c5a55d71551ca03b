"""What it costs the monitor to take a batch, beside other trackers, in turns in one run.

    python -m benchmarks.ingest [--rivals PYTHON] [--rounds 3] [--seconds 2]

``--rivals`` is an interpreter that can import mlflow and trackio (a virtual environment of their own). Every
server runs on loopback with all that it does by default; bodies are made beforehand. CPU is that of the
server's processes, from /proc.
"""

import argparse
import itertools
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bare_http import Connection, Server
from benchmarks.goals import say
from benchmarks.ingest_targets import RIVALS, Ours, Rows, installed

GOALS = {
    (100, 1): "200,000 points/s, 4 us, 30 x MLflow",
    (100, 8): "250,000 points/s, p99 15 ms",
    (1000, 1): "1,000,000 points/s",
    (1000, 8): "1,000,000 points/s",
}
"""By points in a batch and runs."""

HEAD = (
    "| target | points in a batch | runs | points/s | p50 ms | p99 ms | server CPU us/point"
    f" | {' | '.join(f'x {rival}' for rival in RIVALS)} | goal |\n{'|---' * (8 + len(RIVALS))}|"
)

AHEAD = 400
"""Requests encoded before the clock starts; when they are used up the measurement ends."""


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    points_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """Server CPU for each point."""


def measure(target: Any, server: Server, *, size: int, runs: int, seconds: float, ahead: int = AHEAD) -> Cell:
    """Send batches of ``size`` points from ``runs`` runs at once, one connection each."""
    prepared = [_prepare(target, server.port, size, ahead) for _ in range(runs)]
    times: list[list[float]] = [[] for _ in range(runs)]
    gate = threading.Barrier(runs + 1)
    threads = [
        threading.Thread(target=_send, args=(server.port, bodies, seconds, gate, mine))
        for bodies, mine in zip(prepared, times, strict=True)
    ]
    for thread in threads:
        thread.start()
    gate.wait()
    cpu, started = server.cpu_s(), time.perf_counter()
    for thread in threads:
        thread.join()
    took, cpu = time.perf_counter() - started, server.cpu_s() - cpu
    all_times = sorted(itertools.chain.from_iterable(times))
    points = size * len(all_times)
    return Cell(
        points / took,
        1e3 * statistics.median(all_times),
        1e3 * all_times[int(0.99 * (len(all_times) - 1))],
        1e6 * cpu / points,
    )


def _prepare(target: Any, port: int, size: int, ahead: int) -> list[bytes]:
    chance, run = random.Random(size), target.new_run(port)
    steps = max(1, size // 10)
    return [
        target.encode(run, seq, Rows.make((seq - 1) * steps, size, chance)) for seq in range(1, ahead + 1)
    ]


def _send(
    port: int, bodies: Sequence[bytes], seconds: float, gate: threading.Barrier, times: list[float]
) -> None:
    connection = Connection(port)
    gate.wait()
    end = time.perf_counter() + seconds
    for body in bodies:
        started = time.perf_counter()
        try:
            status, answer = connection.ask(body)
        except ConnectionError:  # MLflow replaces a worker that was slow
            connection.close()
            connection = Connection(port)
            status, answer = connection.ask(body)
        now = time.perf_counter()
        assert status in (200, 201), (status, answer[:500])
        times.append(now - started)
        if now > end:
            break
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rivals", default="", help="interpreter with mlflow and trackio")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="longest time of one measurement")
    parser.add_argument("--ahead", type=int, default=AHEAD, help="batches of one measurement at most")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000], help="points in a batch")
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 8], help="runs that send at once")
    arguments = parser.parse_args()
    ours = [
        Ours(),
        Ours("trainhealth-packed", packed=True),
        Ours("trainhealth-full", packed=True, TRAINHEALTH_DURABLE="full"),
    ]
    targets = [*ours, *(installed(arguments.rivals) if arguments.rivals else [])]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {}
        for target in list(targets):
            try:
                servers[target] = target.start(Path(folder))
            except RuntimeError as error:
                say(f"{target.name} is left out: {str(error)[:300]}")
                targets.remove(target)
                continue
            stack.callback(servers[target].stop)
            measure(target, servers[target], size=100, runs=2, seconds=1, ahead=50)  # warm up
        say(HEAD)
        for size, runs in itertools.product(arguments.sizes, arguments.runs):
            found: dict[Any, list[Cell]] = {target: [] for target in targets}
            for _ in range(arguments.rounds):
                for target in targets:
                    cell = measure(
                        target,
                        servers[target],
                        size=size,
                        runs=runs,
                        seconds=arguments.seconds,
                        ahead=arguments.ahead,
                    )
                    found[target].append(cell)
            by_name = {target.name: cells for target, cells in found.items()}
            for name in by_name:
                say(row(name, size, runs, by_name))


def row(name: str, size: int, runs: int, found: Mapping[str, Sequence[Cell]]) -> str:
    """One target at one size: medians, and its rate as so many times a rival's, round by round."""

    def middle(field: str) -> float:
        return statistics.median(getattr(cell, field) for cell in found[name])

    def times(rival: str) -> str:
        if rival not in found:
            return ""
        pairs = zip(found[name], found[rival], strict=True)
        return f"{statistics.median(mine.points_per_s / theirs.points_per_s for mine, theirs in pairs):.1f}"

    numbers = f"{middle('points_per_s'):,.0f} | {middle('p50_ms'):.2f} | {middle('p99_ms'):.1f}"
    ratios = " | ".join(times(rival) for rival in RIVALS)
    goal = GOALS.get((size, runs), "") if name.startswith("trainhealth") else ""
    return f"| {name} | {size} | {runs} | {numbers} | {middle('cpu_us'):.2f} | {ratios} | {goal} |"


if __name__ == "__main__":
    main()
