"""What people see of a training: a panel with the story above it on a terminal, plain lines elsewhere.

All of it goes to standard error; standard output is for a command's answer.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler

from trainer.live_view import LiveView, bars
from trainer.loop import Loop, Observer
from trainer.passes import Phase

log = logging.getLogger(__name__)

_EVERY = 50


@contextmanager
def narrated(is_terminal: bool | None = None, *, rank: int = 0) -> Iterator[Observer]:
    """Set up this process's log for people, and answer an observer that shows how far the loop is.

    Of several ranks the first tells the story; another one says only what goes wrong with itself.
    """
    if rank > 0:
        _log_to(logging.StreamHandler(sys.stderr), f"%(asctime)s rank {rank}: %(message)s")
        logging.getLogger().setLevel(logging.ERROR)
        logging.getLogger("trainer.reporting").disabled = True
        yield lambda phase, loop: None
    elif _is_terminal(is_terminal):
        console = _on_terminal()
        with Live(console=console, refresh_per_second=4) as live:
            yield LiveView(live, bars(console))
    else:
        _log_plainly()
        yield _tell


@contextmanager
def counted(is_terminal: bool | None = None) -> Iterator[Callable[[int, int], None]]:
    """Like ``narrated``, for work on maps: answers what to tell how many are done, and of how many."""
    if _is_terminal(is_terminal):
        with bars(_on_terminal()) as progress:
            task = progress.add_task("maps")
            yield lambda done, total: progress.update(task, completed=done, total=total)
    else:
        _log_plainly()
        yield lambda done, total: log.info("%d of %d maps drawn", done, total)


def _is_terminal(told: bool | None) -> bool:
    return sys.stderr.isatty() if told is None else told


def _on_terminal() -> Console:
    """The terminal, with the log above what is drawn there."""
    console = Console(stderr=True)
    _log_to(RichHandler(console=console, show_path=False, show_level=False, markup=False), "%(message)s")
    return console


def _log_plainly() -> None:
    _log_to(logging.StreamHandler(sys.stderr), "%(asctime)s %(message)s")


def _tell(phase: Phase, loop: Loop) -> None:
    if phase is Phase.FETCH and loop.state.step % _EVERY == 0 and loop.last:
        log.info(
            "run %s step %d of %d: %s", loop.reporter.run, loop.state.step, loop.total_steps, _vitals(loop)
        )


def _vitals(loop: Loop) -> str:
    if not loop.last:
        return ""
    return f"loss {loop.reporter.recent_loss:.4g}, gradient norm {loop.last[0].grad_norm:.3g}"


def _log_to(handler: logging.Handler, form: str) -> None:
    handler.setFormatter(logging.Formatter(form, datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
