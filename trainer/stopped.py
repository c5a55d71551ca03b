"""The page that a stopped run leaves: why it stopped, what went before, and what would do."""

import logging
from collections.abc import Iterator
from pathlib import Path

from shared.events import Change, Incident, Rollback
from trainer.files import replace_file
from trainer.incident import Incidents
from trainer.record import RunRecord
from trainer.reporting import Reporter

log = logging.getLogger(__name__)

REPORT = "stopped.txt"
"""Its name in the stage's folder; ``record.json`` beside it holds the same for programs."""

_SHOWN = 20


def leave_report(incidents: Incidents, reporter: Reporter, step: int, reason: str) -> None:
    """Nothing is left to try: the run's open incidents end here, and there is one at least."""
    record = reporter.record
    guard = record.findings[-1].guard if record.findings else "recovery"
    incidents.alarm(step, guard, reason)
    incidents.end("stopped")
    if not reporter.is_heard:
        return
    try:
        write_report(incidents.folder, reporter.run, step, reason, record)
    except OSError as error:
        log.warning("run %s: cannot write %s: %s", reporter.run, REPORT, error)


def write_report(folder: Path, run: str, step: int, reason: str, record: RunRecord) -> None:
    """Write the page. Raises ``OSError``."""
    replace_file(folder / REPORT, "\n".join([*_lines(run, step, reason, record), ""]).encode())


def _lines(run: str, step: int, reason: str, record: RunRecord) -> Iterator[str]:
    yield f"Run {run} stopped at step {step}, in attempt {record.attempt}."
    yield f"Why: {reason}"
    yield ""
    yield f"Incidents ({len(record.incidents)}, the newest last):"
    yield from map(_incident, record.incidents[-_SHOWN:])
    yield f"Rollbacks ({len(record.rollbacks)}):"
    yield from map(_rollback, record.rollbacks[-_SHOWN:])
    yield f"Changes ({len(record.changes)}):"
    yield from map(_change, record.changes[-_SHOWN:])
    yield ""
    yield f"Refused steps: {record.skipped_steps}."
    yield f"Samples set aside: {', '.join(record.quarantined) or 'none'}."
    yield "Last findings:"
    yield from (f"  step {one.step}, {one.guard}: {one.message}" for one in record.findings[-5:])
    yield ""
    yield from _advice(record)


def _incident(one: Incident) -> str:
    named = f", module {one.module}" if one.module else ""
    did = f"{one.action or 'no action'}; it cost {one.steps_lost} steps and {one.seconds_lost:.1f} s"
    return f"  {one.incident}: {one.kind}{named}, {one.outcome}; {one.message}; {did}"


def _rollback(one: Rollback) -> str:
    return f"  from step {one.from_step} to {one.to_step} ({one.checkpoint or one.source}): {one.reason}"


def _change(one: Change) -> str:
    before = f"{one.previous} -> " if one.previous != "" else ""
    return f"  step {one.step}: {one.what} {before}{one.value} ({one.reason})"


def _advice(record: RunRecord) -> Iterator[str]:
    kinds = {one.kind for one in record.incidents if one.outcome == "stopped"}
    yield "What would do:"
    if "data" in kinds:
        yield "  look at the samples that were set aside, and at how they were made"
    if kinds & {"weights", "state"}:
        yield "  what corrupts the state comes again: test memory and device, or run elsewhere"
    yield "  see a fault again: python -m trainer replay RUN_FOLDER/incidents/ID"
    yield "  lower the learning rate and run the same command: it goes on from the newest trusted checkpoint"
    yield "  record.json keeps the spent budget; move it elsewhere to begin with a new one"
