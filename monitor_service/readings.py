"""What ``/metrics`` tells about a run and no rule needs: newest numbers, smoothed ones, non-finite counts."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from pydantic import Field

from monitor_service.record import Record
from shared.events import CheckpointChanged, CheckpointState, Event, Finding, StepSkipped
from shared.exchange import Batch, Columns

Count = Annotated[int, Field(ge=0)]

LOSS, GRAD_NORM = "loss", "grad_norm"
TENSORS = ("input", "loss", "grad", "param", "optimizer", "ema", "metric")
KINDS = ("nan", "inf")

MAX_NAMED = 8
"""Loss parts and learning rates with a series of their own; further ones have none, for few labels."""

MEMORY_STEPS = 50
"""The smoothed loss is an average over about so many steps."""

_SINGLE = frozenset({LOSS, GRAD_NORM, "loss_scale", "param_norm"})


class Readings(Record):
    """Folded forward batch by batch, as the facts are. Moments are Unix seconds of the monitor's clock."""

    latest: dict[str, float] = Field(default_factory=dict, description="Newest value by series.")
    loss_ema: float | None = Field(None, description="Smoothed loss, over finite values only.")
    data_wait_ratio: float | None = None
    samples_total: float | None = None
    nonfinite: dict[str, Count] = Field(default_factory=dict, description="By ``tensor/kind``.")
    nonfinite_at: dict[str, float] = Field(default_factory=dict, description="When last, by tensor.")
    checkpoint_bytes: int | None = None
    checkpoint_save_seconds: float | None = None
    last_good_at: float | None = None

    def take(self, batch: Batch, now: datetime) -> None:
        """Fold one new batch in."""
        columns, at = batch.columns, now.timestamp()
        for name, values in columns.series.items():
            self._take_series(name, values, at)
        self._measure_wait(columns)
        clips = columns.series.get("clip", ())
        if clips or "clip" in self.latest:  # sent for clipped steps only
            self.latest["clip"] = (clips[-1] if clips else None) or 1.0
        for event in batch.events:
            self._take_event(event, at)

    def _take_series(self, name: str, values: Sequence[float | None], at: float) -> None:
        known = [value for value in values if value is not None] if None in values else values
        if not known:
            return
        total: float = sum(known)  # type: ignore[arg-type]
        if not math.isfinite(total):  # the sum of anything with a NaN or an infinity is not finite
            self._count_values(tensor_of(name), known, at)  # type: ignore[arg-type]
        if name == LOSS:
            self._smooth(known, total)  # type: ignore[arg-type]
        if name == "samples":
            self.samples_total = (self.samples_total or 0.0) + total
        if self._is_shown(name):
            self.latest[name] = known[-1]  # type: ignore[assignment]

    def _is_shown(self, name: str) -> bool:
        if name in _SINGLE or name in self.latest:
            return True
        stem = "loss/" if name.startswith("loss/") else "lr" if _group_of(name) is not None else None
        return stem is not None and sum(one.startswith(stem) for one in self.latest) < MAX_NAMED

    def _smooth(self, losses: Sequence[float], total: float) -> None:
        if not math.isfinite(total):
            losses = [loss for loss in losses if math.isfinite(loss)]
            total = sum(losses)  # too large for a double is not finite again
        if not losses or not math.isfinite(total):
            return
        before, share = self.loss_ema, 1 - (1 - 1 / MEMORY_STEPS) ** len(losses)
        mean = total / len(losses)
        self.loss_ema = mean if before is None else before + share * (mean - before)

    def _measure_wait(self, columns: Columns) -> None:
        """The share of the newest batch's time that went into waiting for data."""
        series = columns.series
        waited, whole = (
            sum(value for value in series.get(name, ()) if value is not None)
            for name in ("fetch_seconds", "step_seconds")
        )
        if whole > 0 and math.isfinite(waited):
            self.data_wait_ratio = min(waited / whole, 1.0)

    def _count_values(self, tensor: str, values: Sequence[float], at: float) -> None:
        nans = sum(1 for value in values if math.isnan(value))
        self._count(tensor, "nan", nans, at)
        self._count(tensor, "inf", sum(1 for value in values if math.isinf(value)), at)

    def _count(self, tensor: str, kind: str, count: int, at: float) -> None:
        if count:
            key = f"{tensor}/{kind}"
            self.nonfinite[key] = self.nonfinite.get(key, 0) + count
            self.nonfinite_at[tensor] = at

    def _take_event(self, event: Event, at: float) -> None:
        if isinstance(event, StepSkipped):
            self._count_values("loss", [event.loss], at)
            self._count_values("grad", [event.grad_norm], at)
        elif isinstance(event, Finding):
            self._take_finding(event, at)
        elif isinstance(event, CheckpointChanged):
            self._take_checkpoint(event, at)

    def _take_finding(self, finding: Finding, at: float) -> None:
        """A sample that was left out for its values, or tensors of the state that a scan found bad."""
        kind = "nan" if "nan" in finding.message.lower() else "inf"
        if finding.guard == "data" and "not finite" in finding.message:
            self._count("input", kind, 1, at)
        first, bad = finding.reading.get("first"), finding.reading.get("bad_tensors")
        if finding.guard == "nonfinite" and isinstance(first, str) and isinstance(bad, float | int):
            self._count(_kept_in(first), kind, int(bad) if math.isfinite(bad) else 1, at)

    def _take_checkpoint(self, event: CheckpointChanged, at: float) -> None:
        if event.size_bytes is not None:
            self.checkpoint_bytes = event.size_bytes
        if event.seconds is not None:
            self.checkpoint_save_seconds = event.seconds
        if event.state is CheckpointState.GOOD:
            self.last_good_at = at


def tensor_of(series: str) -> str:
    """What a series of the columns measures: ``loss``, ``grad``, or any other ``metric``."""
    objective, _, rest = series.partition("/")
    for name in (objective, rest):
        if name == LOSS:
            return "loss"
        if name == GRAD_NORM:
            return "grad"
    return "metric"


def group_values(latest: dict[str, float]) -> dict[str, float]:
    """Learning rates by group: ``default`` for the only or first objective, else its name."""
    groups = {_group_of(name): value for name, value in latest.items()}
    return {group: value for group, value in groups.items() if group is not None}


def loss_values(latest: dict[str, float]) -> dict[str, float]:
    """Losses by component; the whole is ``total``."""
    parts = {name.removeprefix("loss/"): value for name, value in latest.items() if name.startswith("loss/")}
    return ({"total": latest[LOSS]} if LOSS in latest else {}) | parts


def norm_values(latest: dict[str, float]) -> dict[str, float]:
    """Gradient norms by stage: as measured, and after the clip."""
    if GRAD_NORM not in latest:
        return {}
    raw = float(latest[GRAD_NORM])  # in JSON NaN and infinity are texts
    return {"raw": raw, "clipped": raw / float(latest.get("clip", 1.0))}


def _group_of(series: str) -> str | None:
    if series == "lr":
        return "default"
    return series.removesuffix("/lr") if series.endswith("/lr") else None


def _kept_in(tensor: str) -> str:
    """What kind of state a tensor is, by the name that the scan gives it."""
    if tensor.startswith("EMA "):
        return "ema"
    return "optimizer" if " optimizer " in tensor else "param"
