"""What the guards of scalars would have said about a log: the same classes as in training, one row a step."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from shared.events import Finding, Severity
from trainer.guards.base import StepView, Vitals, Watched, finding
from trainer.guards.drift import Drift, DriftConfig
from trainer.logs import Row, read_log

_OBJECTIVE = "log"
_ALARMS = (Severity.WARNING, Severity.ERROR, Severity.CRITICAL)


@dataclass(frozen=True)
class Seen:
    """A finding, and the row of the log, from 0 on, at which it was made."""

    row: int
    step: float
    finding: Finding

    @property
    def is_alarm(self) -> bool:
        """``warning`` and above."""
        return self.finding.severity in _ALARMS

    def facts(self) -> dict[str, Any]:
        """Plain JSON; numbers that JSON has no word for travel as on the wire."""
        told = self.finding.model_dump_json(include={"guard", "severity", "message", "reading"})
        return {"row": self.row, "step": self.step, **json.loads(told)}


def replay_log(path: Path, loss: str | None = None) -> tuple[dict[str, Any], str]:
    """The findings about a log, as facts and in words.

    Raises:
        ConfigError: the file is no log that can be read.
    """
    rows = read_log(path, loss)
    seen = list(judge(rows))
    alarms = sum(one.is_alarm for one in seen)
    facts = {
        "file": str(path),
        "rows": len(rows),
        "alarms": alarms,
        "findings": [one.facts() for one in seen],
    }
    lines = [
        f"row {one.row:<7} step {one.step:<10g} {one.finding.guard:<10} {one.finding.severity:<8} "
        f"{one.finding.message}"
        for one in seen
    ]
    return facts, "\n".join([*lines, f"{path}: {len(rows)} rows, {alarms} alarms"])


def judge(rows: Sequence[Row]) -> Iterator[Seen]:
    """Each row in order; one whose loss was not logged says only what its gradient norm says."""
    drift, watched = Drift(_OBJECTIVE, DriftConfig(every=1)), Watched(nn.Module(), {})
    bad_norms, was_lost = 0, False
    for row in rows:
        view = StepView(_vitals(row), (), watched)
        bad_norms = bad_norms + 1 if row.grad_norm is not None and not math.isfinite(row.grad_norm) else 0
        is_lost = row.loss is not None and not math.isfinite(row.loss)
        if (is_lost and not was_lost) or bad_norms in (1, 2):
            yield Seen(row.number, row.step, _nonfinite(view, is_lost, bad_norms))
        was_lost = is_lost if row.loss is not None else was_lost
        found = drift.inspect(view) if row.loss is not None else None
        if found is not None:
            yield Seen(row.number, row.step, found)


def _nonfinite(view: StepView, is_lost: bool, bad_norms: int) -> Finding:
    """A single overflow is what a loss scaler looks for; a second one in a row is more than that."""
    vitals = view.vitals
    severity = Severity.ERROR if is_lost or bad_norms > 1 else Severity.INFO
    message = f"{vitals.objective}: loss is {vitals.loss}, gradient norm {vitals.grad_norm}"
    if not bad_norms and math.isnan(vitals.grad_norm):
        message = f"{vitals.objective}: loss is {vitals.loss}"
    reading = {"loss": vitals.loss, "grad_norm": vitals.grad_norm}
    return finding("nonfinite", view, severity, message, **reading)


def _vitals(row: Row) -> Vitals:
    """What was not logged is NaN, which no guard of scalars takes for a number."""
    loss, norm, lr = (math.nan if value is None else value for value in (row.loss, row.grad_norm, row.lr))
    return Vitals(
        objective=_OBJECTIVE,
        iteration=row.number,
        step=max(0, int(row.step)) if math.isfinite(row.step) else 0,
        loss=loss,
        parts={},
        grad_norm=norm,
        clip=1.0,
        lr=lr,
        refused=False,
        reason=None,
    )
