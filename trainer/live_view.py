"""The live panel of a training on a terminal: how far, how well, how safe, and below it what was found."""

import time
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from shared.events import Finding, Severity
from trainer.loop import Loop
from trainer.passes import Phase

_PAUSE_S = 0.25
_SHOWN = 5
_STYLES = {
    Severity.INFO: "dim",
    Severity.WARNING: "yellow",
    Severity.ERROR: "red",
    Severity.CRITICAL: "bold red",
}


def bars(console: Console) -> Progress:
    """One line for each thing that is counted; the console refreshes it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


class LiveView:
    """Drawn anew four times a second at most; an observer of the loop."""

    def __init__(self, live: Live, progress: Progress) -> None:
        self._live, self._progress = live, progress
        self._tasks: dict[str, TaskID] = {}
        self._drawn_at = 0.0

    def __call__(self, phase: Phase, loop: Loop) -> None:
        """Called by the loop at the start of every phase."""
        now, is_last = time.monotonic(), loop.number >= loop.total_steps
        if phase is not Phase.REPORT or (now - self._drawn_at < _PAUSE_S and not is_last):
            return
        self._drawn_at = now
        run = loop.reporter.run
        if run not in self._tasks:
            self._tasks[run] = self._progress.add_task(run, total=loop.total_steps)
        self._progress.update(self._tasks[run], completed=loop.number)
        body = Group(self._progress, *lines(loop))
        self._live.update(Panel(body, title=f"{run}: {status(loop)}", title_align="left"))


def status(loop: Loop) -> str:
    """In a word, as the monitor would call it from what the trainer itself knows."""
    record = loop.reporter.record
    if not any(one.outcome == "open" for one in record.incidents):
        return "healthy"
    last = record.rollbacks[-1] if record.rollbacks else None
    is_back = last is not None and last.to_step <= loop.state.step < last.from_step
    return "recovering" if is_back else "suspect"


def lines(loop: Loop) -> Iterator[Text]:
    """Numbers, the way back, and the last findings."""
    record = loop.reporter.record
    if loop.last:
        vitals = loop.last[0]
        loss, norm, rate = loop.reporter.recent_loss, vitals.grad_norm, vitals.lr
        yield Text(f"loss {loss:.4g}  gradient norm {norm:.3g}  learning rate {rate:.3g}", style="bold")
    newest = next(iter(loop.recovery.ring.records()), None)
    kept = f"checkpoint of step {newest.step} ({newest.state})" if newest else "no checkpoint yet"
    yield Text(
        f"{kept}  attempt {record.attempt}  {record.skipped_steps} refused  {len(record.rollbacks)} rollbacks"
    )
    for finding in record.findings[-_SHOWN:]:
        yield _told(finding)


def _told(finding: Finding) -> Text:
    words = f"step {finding.step}  {finding.severity}  {finding.guard}: {finding.message}"
    return Text(words, style=_STYLES[finding.severity], no_wrap=True, overflow="ellipsis")
