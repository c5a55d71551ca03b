"""A watchdog beside a loop: what it tells of a phase that does not end, and how it says goodbye."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from shared.events import Finding, RunEnded, Severity
from trainer.config import Config
from trainer.loop import Loop
from trainer.watchdog import Hang, Watchdog, end_process

log = logging.getLogger(__name__)


@contextmanager
def watched(loop: Loop, config: Config) -> Iterator[None]:
    """Notice within this block when a phase of the loop does not end; see ``trainer.watchdog``."""
    reporter = loop.reporter

    def tell(hang: Hang) -> None:
        numbers = {"phase": hang.phase, "seconds": hang.seconds, "limit_s": hang.limit_s}
        reporter.finding(
            Finding(
                step=loop.state.step,
                guard="watchdog",
                severity=Severity.ERROR,
                message=str(hang),
                reading={**numbers, "stacks": hang.stacks},
            )
        )
        log.error("where each thread stands:\n%s", hang.stacks)

    def say_goodbye(hang: Hang) -> None:
        reporter.ended(RunEnded(step=loop.state.step, status="failed", message=f"{hang}; it can't be freed"))
        reporter.link.close(deadline_s=5)

    frees = not loop.state.ranks.are_many
    watchdog = Watchdog(config.watchdog, tell, end_process(say_goodbye), frees=frees)
    loop.observers.insert(0, lambda phase, loop: watchdog.enter(phase))
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()
