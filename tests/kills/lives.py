"""Runs one program again and again as fresh processes that are cheap to start, because they may be killed.

    python tests/kills/lives.py monitor PORT DATABASE_URL
    python tests/kills/lives.py trainer URL FOLDER

The first process imports everything and then only forks: one life for each line that it reads. It says the
life's process id, and ``ended`` when that is gone. Who kills, kills the life.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


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


def main(arguments: Sequence[str]) -> None:
    live = {"monitor": monitor, "trainer": trainer}[arguments[0]](*arguments[1:])
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
