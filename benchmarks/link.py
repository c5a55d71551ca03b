"""What the link costs the trainer's thread, and how soon the spool of a two-hour outage is delivered.

    python -m benchmarks.link [--steps 200000] [--batches 72000] [--batch-steps 10]

The cost of a step is the CPU time of the very thread that calls ``record_step``: with a monitor that is
there, with none, and for comparison of a call that does nothing. While a monitor is away the link packs a
batch in two seconds, so two hours are 3,600; the goal is ten a second, so 72,000. They are written to the
spool as the link writes them and sent by ``trainer.link.delivery``; every step is counted afterwards.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.bare_http import Connection, Server, free_port, request
from benchmarks.goals import Goal, head, say
from benchmarks.ingest_targets import METRICS, NOON, Ours
from shared.exchange import OutboxCounts, RunSpec
from trainer.link import Link, LinkConfig
from trainer.link.delivery import deliver
from trainer.link.outbox import Address, Outbox
from trainer.link.packer import Packer
from trainer.link.recorder import Piece, Recorder, Row

SPEC = RunSpec(started_at=datetime(2026, 3, 1, 12, tzinfo=UTC))
BURST = 500
"""Steps in a row before the link's thread gets time to send them."""

DEADLINE_S = 570.0

Record = Callable[[int, int, float, Mapping[str, float]], None]


def nothing(attempt: int, step: int, time_s: float, values: Mapping[str, float]) -> None:
    """As cheap as a call with these arguments can be."""


def cost_us(record: Record, steps: int) -> float:
    """Thread CPU of one call, without that of the loop around it."""
    chance, spent = random.Random(1), 0.0
    for begin in range(0, steps, BURST):
        rows = [{name: chance.random() for name in METRICS} for _ in range(BURST)]
        began = time.thread_time()
        for step, values in enumerate(rows, begin):
            record(1, step, NOON + step, values)
        spent += time.thread_time() - began
        time.sleep(0.005)
    return 1e6 * spent / steps


def costs(folder: Path, server: Server, steps: int) -> list[Goal]:
    places = {
        "a monitor that is there": f"http://127.0.0.1:{server.port}",
        "no monitor": f"http://127.0.0.1:{free_port()}",
    }
    found = [Goal("a step, call that does nothing", cost_us(nothing, steps), "us")]
    for what, url in places.items():
        link = Link(
            LinkConfig(url=url, max_steps=steps), f"cost-{what.replace(' ', '-')}", SPEC, folder / what
        )
        link.start()
        found.append(
            Goal(f"a step in the trainer's thread, {what}", cost_us(link.record_step, steps), "us", at_most=5)
        )
        assert link.close(0.0).dropped_steps == 0
    return found


def spool(folder: Path, run: str, batches: int, batch_steps: int) -> None:
    """Batches that no monitor has taken, as the link leaves them."""
    outbox = Outbox(folder, LinkConfig().spool_limit_bytes)
    outbox.open()
    Address(run=run, spec=SPEC).save(folder)
    packer, chance = Packer(Recorder(max_steps=1, max_events=1), outbox), random.Random(2)
    for first in range(0, batches * batch_steps, batch_steps):
        rows = [
            Row(step, NOON + 0.01 * step, {name: chance.lognormvariate(0, 0.3) for name in METRICS})
            for step in range(first, first + batch_steps)
        ]
        assert outbox.has_room(for_steps=True), "the spool is full"
        packer.pack([Piece(1, rows)], OutboxCounts())
    outbox.close()


def drain(folder: Path, run: str, server: Server, batches: int, batch_steps: int) -> list[Goal]:
    place = folder / run
    spool(place, run, batches, batch_steps)
    size = sum(file.stat().st_size for file in place.iterdir())
    say(Goal(f"the spool of {batches:,} batches of {batch_steps} steps", size / 2**20, "MiB").line())
    config = LinkConfig(url=f"http://127.0.0.1:{server.port}")
    began, cpu = time.perf_counter(), server.cpu_s()
    left = deliver(place, config, deadline_s=DEADLINE_S)
    took, cpu = time.perf_counter() - began, server.cpu_s() - cpu
    points = batches * batch_steps * len(METRICS)
    assert left == OutboxCounts(), left
    return [
        Goal("drained in", took, "s", at_most=60),
        Goal("batches a second", batches / took, ""),
        Goal("points a second", points / took, ""),
        Goal("the monitor's CPU for a point", 1e6 * cpu / points, "us"),
        Goal("steps that are missing or twice there", abs(stored(server, run) - batches * batch_steps), ""),
        Goal("batches that are missing", missing(server, run, batches), ""),
    ]


def stored(server: Server, run: str) -> int:
    """Points of one series at the monitor, each step once."""
    asked = request("GET", f"/api/v1/runs/{run}/series?name=loss&attempt=1&buckets=1")
    status, answer = Connection(server.port).ask(asked)
    assert status == 200, answer[:300]
    return int(sum(json.loads(answer)["series"]["loss"]["count"]))


def missing(server: Server, run: str, batches: int) -> int:
    status, answer = Connection(server.port).ask(request("GET", f"/api/v1/runs/{run}/sessions"))
    assert status == 200, answer[:300]
    (session,) = json.loads(answer)["items"]
    return batches - int(session["received"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--batches", type=int, default=72_000)
    parser.add_argument("--batch-steps", type=int, default=10)
    parser.add_argument(
        "--usual-batches", type=int, default=3600, help="as the link packs by itself: one in 2 s"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Ours().start(folder)
        try:
            head()
            for row in costs(folder, server, arguments.steps):
                say(row.line())
            for run, batches in (("usual", arguments.usual_batches), ("goal", arguments.batches)):
                for row in drain(folder, run, server, batches, arguments.batch_steps):
                    say(row.line())
        finally:
            server.stop()


if __name__ == "__main__":
    main()
