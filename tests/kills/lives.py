"""Runs one program again and again as fresh processes that are cheap to start, because they may be killed.

    python tests/kills/lives.py monitor PORT DATABASE_URL
    python tests/kills/lives.py trainer URL FOLDER
    python tests/kills/lives.py obedient URL FOLDER

The first process imports everything and then only forks: one life for each line that it reads. It says the
life's process id, and ``ended`` when that is gone. Who kills, kills the life.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def monitor(port: str, url: str) -> Callable[[str], None]:
    """A monitor that compacts often, so that compaction is killed, too."""
    from monitor_service.__main__ import main

    quick = {
        "MAX_HOLD_S": "0",
        "COMPACT_INTERVAL_S": "0.1",
        "COMPACT_IDLE_S": "0.1",
        "WATCHDOG_INTERVAL_S": "0.2",
    }
    os.environ.update({f"TRAINHEALTH_{name}": value for name, value in quick.items()})

    def live(word: str) -> None:
        main(["serve", "--port", port, "--database-url", url])

    return live


def trainer(url: str, folder: str) -> Callable[[str], None]:
    """A training that reports a step and now and then a finding each millisecond; its life is its attempt."""
    from datetime import UTC, datetime

    from shared.events import Finding, Severity
    from shared.exchange import RunSpec
    from trainer.link import Link, LinkConfig

    def live(attempt: str) -> None:
        config = LinkConfig(
            url=url, flush_s=0.02, hold_s=0.0, answer_timeout_s=1.0, back_off_first_s=0.02, back_off_max_s=0.1
        )
        link = Link(config, "kills", RunSpec(started_at=datetime.now(UTC)), Path(folder))
        link.start()
        for step in range(10_000):
            link.record_step(int(attempt), step, time.time(), {"loss": float(step)})
            if step % 20 == 0:
                told = Finding(
                    step=step, guard="spike", severity=Severity.WARNING, message=f"{attempt}/{step}"
                )
                link.record_event(int(attempt), told)
            time.sleep(0.001)

    return live


def obedient(url: str, folder: str) -> Callable[[str], None]:
    """A training that does nothing but obey, with the trainer's own record, reports and link.

    A life's word is the moment at which it ends by SIGKILL. What it carries out it writes into ``done``.
    """
    from datetime import UTC, datetime
    from types import SimpleNamespace

    from shared.exchange import RunSpec
    from trainer.link import Link, LinkConfig
    from trainer.orders import Orders
    from trainer.record import RunRecord
    from trainer.reporting import Reporter

    path = Path(folder) / "record.json"
    config = LinkConfig(
        url=url, flush_s=0.02, hold_s=0.2, answer_timeout_s=2.0, back_off_first_s=0.02, back_off_max_s=0.1
    )

    def live(word: str) -> None:
        def at(moment: str) -> None:
            if moment and moment == word:
                os.kill(os.getpid(), signal.SIGKILL)

        class Watched(Reporter):
            def command(self, event: Any) -> None:
                at(f"before {event.state}")
                super().command(event)
                at(f"after {event.state}")
                time.sleep(0.3 if word == "once it is told" else 0.0)
                at("once it is told" if event.state == "succeeded" else "")

        def go_back(reason: str, trigger: str, *, command: str, at_most: int | None) -> None:
            at("before it is done")
            with (Path(folder) / "done").open("a") as done:
                done.write(f"{command}\n")
            at("while it is done")
            reporter.attempt(0, "rollback")

        record = RunRecord.take_up(path)
        spec = RunSpec(started_at=datetime.now(UTC), identity=record.identity)
        link = Link(config, "kills", spec, Path(folder) / "spool")
        reporter = Watched("kills", link, record, path)
        loop: Any = SimpleNamespace(state=SimpleNamespace(step=0), settle=lambda: None, go_back=go_back)
        link.start()
        reporter.attempt(0, "resume" if record.attempt else "start")
        orders = Orders(reporter)
        for step in range(100_000):
            link.record_step(record.attempt, step, time.time(), {"loss": 1.0})
            asked = link.commands()
            at("received" if asked else "")
            orders.carry_out(loop, asked)
            time.sleep(0.005)

    return live


def main(arguments: Sequence[str]) -> None:
    programs = {"monitor": monitor, "trainer": trainer, "obedient": obedient}
    live = programs[arguments[0]](*arguments[1:])
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            os.setsid()
            sys.stdin.close()
            try:
                live(line.strip())
            finally:
                os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        os.waitpid(pid, 0)
        sys.stdout.write("ended\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
