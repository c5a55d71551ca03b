"""A thousand trainers whose replies are held: what each costs in memory, and how soon an order reaches one.

    python -m benchmarks.monitor_waiting [--trainers 1000] [--orders 200]

Then for two monitors on one database (PostgreSQL, if its programs are here): an order at one, a trainer
held by the other. On one SQLite file nobody tells, so there the other looks every 0.1 s.
"""

import argparse
import json
import resource
import select
import signal
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.bare_http import Connection, Server, request
from benchmarks.goals import Goal, head, say
from benchmarks.ingest_targets import Ours
from tests.conftest import find_postgres, running_postgres

HOLD_S = 30.0


class Trainer:
    """One connection that posts empty batches, each with a reply that may be held."""

    def __init__(self, target: Ours, port: int) -> None:
        self.run, self._seq = target.new_run(port), 0
        self.connection = Connection(port)

    def listen(self, events: list[dict[str, object]] | None = None, hold_s: float = HOLD_S) -> None:
        self._seq += 1
        batch = {"session": "bench", "seq": self._seq, "attempt": 1, "hold_s": hold_s, "events": events or []}
        path = f"/api/v1/runs/{self.run}/exchange"
        self.connection.send(request("POST", path, json.dumps(batch).encode()))

    def told(self) -> list[dict[str, str]]:
        status, answer = self.connection.receive()
        assert status == 200, (status, answer[:300])
        commands: list[dict[str, str]] = json.loads(answer)["commands"]
        return commands

    def settle(self, command: str) -> None:
        """Refuse the order, so that another may follow."""
        self.listen([{"type": "command", "step": 1, "command": command, "state": "refused"}], hold_s=0)
        self.told()


def order(connection: Connection, run: str) -> None:
    wish = json.dumps({"kind": "stop", "reason": "benchmark", "issued_by": "benchmark"}).encode()
    status, answer = connection.ask(request("POST", f"/api/v1/runs/{run}/commands", wish))
    assert status == 201, (status, answer[:300])


def wait_until_held(server: Server, count: int) -> None:
    connection, name = Connection(server.port), b'trainhealth_waiting_clients{channel="longpoll"}'
    wanted = name + f" {float(count)}\n".encode()
    deadline = time.monotonic() + 60
    while wanted not in connection.ask(request("GET", "/metrics"))[1]:
        assert time.monotonic() < deadline, f"not {count} replies are held"
        time.sleep(0.05)
    connection.close()


def wakes(orders: Server, holds: Server, trainers: list[Trainer], count: int) -> list[float]:
    """Milliseconds from posting an order until its trainer has the reply, one after another."""
    found, connection = [], Connection(orders.port)
    for number in range(count):
        trainer = trainers[number % len(trainers)]
        trainer.listen()
        time.sleep(0.02)  # the reply is held by then
        began = time.perf_counter()
        thread = threading.Thread(target=order, args=(connection, trainer.run))
        thread.start()
        commands = trainer.told()
        found.append(1e3 * (time.perf_counter() - began))
        thread.join()
        trainer.settle(commands[0]["id"])
    return found


def rows(what: str, times: list[float], *, middle: float, worst: float) -> list[Goal]:
    times = sorted(times)
    return [
        Goal(f"{what}: median", statistics.median(times), "ms", at_most=middle),
        Goal(f"{what}: p99", times[int(0.99 * (len(times) - 1))], "ms", at_most=worst),
    ]


def one_monitor(folder: Path, num_trainers: int, num_orders: int) -> list[Goal]:
    target = Ours(TRAINHEALTH_MAX_HOLD_S=f"{HOLD_S}", TRAINHEALTH_METRICS_MAX_RUNS="0")
    server = target.start(folder)
    try:
        trainers = [Trainer(target, server.port) for _ in range(num_trainers + 20)]
        held, ordered = trainers[:num_trainers], trainers[num_trainers:]
        wakes(server, server, ordered, len(ordered))  # warm up
        alone = wakes(server, server, ordered, num_orders)
        before = server.memory_mib()
        for trainer in held:
            trainer.listen()
        wait_until_held(server, num_trainers)
        memory = server.memory_mib() - before
        crowded = wakes(server, server, ordered, min(num_orders, 100))
        wait_until_held(server, num_trainers)  # nobody's time was up meanwhile
        released = release(server, held)
    finally:
        server.stop()
    return [
        *rows("order to reply, nobody else waits", alone, middle=10, worst=50),
        *rows(f"order to reply, {num_trainers} others wait", crowded, middle=10, worst=50),
        Goal(f"memory of {num_trainers} held replies", memory, "MiB", at_most=30 * num_trainers / 1000),
        Goal("memory of a held reply", 1024 * memory / num_trainers, "KiB", at_most=30),
        Goal(f"all {num_trainers} released at the server's end", released, "ms", at_most=250),
    ]


def release(server: Server, held: list[Trainer]) -> float:
    """Milliseconds from SIGTERM until the last trainer has its reply."""
    waiting = {trainer.connection.fileno(): trainer for trainer in held}
    began = time.perf_counter()
    server.signal(signal.SIGTERM)
    poll = select.poll()
    for number in waiting:
        poll.register(number, select.POLLIN)
    while waiting:
        ready = poll.poll(20_000)
        assert ready, f"{len(waiting)} trainers got no reply"
        for number, _ in ready:
            poll.unregister(number)
            assert waiting.pop(number).told() == []
    return 1e3 * (time.perf_counter() - began)


def two_monitors(folder: Path, url: str, num_orders: int, what: str) -> list[Goal]:
    with ExitStack() as stack:
        servers = []
        for name in ("one", "other"):
            target = Ours(name, TRAINHEALTH_DATABASE_URL=url)
            servers.append(target.start(folder))
            stack.callback(servers[-1].stop)
        trainers = [Trainer(target, servers[1].port) for _ in range(20)]
        wakes(*servers, trainers, 20)  # warm up
        return rows(what, wakes(*servers, trainers, num_orders), middle=100, worst=1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainers", type=int, default=1000)
    parser.add_argument("--orders", type=int, default=200)
    arguments = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the monitor inherits it
    head()
    with tempfile.TemporaryDirectory() as folder:
        for row in one_monitor(Path(folder), arguments.trainers, arguments.orders):
            say(row.line())
        url, count = f"sqlite:///{folder}/two.db", arguments.orders
        for row in two_monitors(Path(folder), url, count, "order at another monitor, SQLite, it looks"):
            say(row.line())
        if find_postgres() is None:
            say("\nno PostgreSQL here: install the package postgresql for the rows of two monitors")
            return
        with running_postgres() as postgres:
            url = postgres.url("postgres")
            for row in two_monitors(Path(folder), url, count, "order at another monitor, PostgreSQL tells"):
                say(row.line())


if __name__ == "__main__":
    main()
