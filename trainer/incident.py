"""Incidents: one record for each fault, from its onset to its outcome, with what it takes to see it again.

Findings of one fault make one incident: an alarm at most ten steps from the last one of an open incident, or
where the run passes again after going back, belongs to it. Each has a folder ``incidents/<id>`` beside the
run's checkpoints, which ``python -m trainer replay`` reads: ``incident.json``, ``origin.json`` (what the run
was built from), ``batch.safetensors``, ``random.safetensors``, ``model.safetensors``, and the vitals
before and after. The first finding of a corrupt state has no batch to keep.
"""

import json
import logging
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from shared.events import Incident, Rollback
from trainer.checkpoint import stage
from trainer.checkpoint.container import pieces
from trainer.checkpoint.tensors import on_host
from trainer.files import replace_file
from trainer.guards.base import Vitals
from trainer.precision import Precision
from trainer.reporting import Reporter
from trainer.section import Section

log = logging.getLogger(__name__)

Kind = Literal["transient", "data", "weights", "state", "hang", "process", "unknown"]

FOLDER = "incidents"
"""Where they lie in a stage's folder."""

_NEAR = 10
_CAUSES = {"unknown": 0, "state": 1}  # any other kind says more


class IncidentConfig(Section):
    """How long a fault stays open, and what is kept of it."""

    healed_after: int = Field(50, ge=1, description="Healthy steps after which a fault counts as healed.")
    keep: int = Field(20, ge=1, description="Folders kept; the oldest go first.")
    model_mb: float = Field(
        512, ge=0, description="Keep the model's tensors with an incident up to this size, MB of 10^6 bytes."
    )
    history: int = Field(100, ge=0, description="Vitals kept from before and after, steps.")


@dataclass
class Evidence:
    """What a refused step was made of: its batch, random states and weights, all on any device."""

    objective: str
    number: int
    batch: Mapping[str, Any]
    random: Mapping[str, Tensor]
    model: Mapping[str, Tensor] | None
    """A copy, since a replay that is applied changes the weights; None where it would be too large."""

    precision: Precision = "fp32"
    micro_batches: int = 1


@dataclass
class _Open:
    incident: Incident
    alarm_step: int
    healthy: int = 0
    after: list[dict[str, Any]] = field(default_factory=list)


class Incidents:
    """Opens, follows and closes the incidents of a run; told as events, kept in its record.

    Args:
        folder: of the stage; its incidents lie in ``incidents`` there.
        origin: what ``replay`` builds the model from: ``run`` and ``config``.
    """

    def __init__(
        self, config: IncidentConfig, reporter: Reporter, folder: Path, origin: Mapping[str, Any]
    ) -> None:
        self.config, self.folder, self._reporter, self._origin = config, folder, reporter, origin
        self._root = folder / FOLDER
        self._before: deque[dict[str, Any]] = deque(maxlen=config.history)
        self._seconds: deque[float] = deque(maxlen=50)
        still_open = (one for one in reporter.record.incidents if one.outcome == "open")
        self._open = [_Open(one, one.step) for one in still_open]

    @property
    def current(self) -> str | None:
        """The latest one that is open."""
        return self._open[-1].incident.incident if self._open else None

    def alarm(
        self,
        step: int,
        guard: str,
        message: str,
        *,
        kind: Kind = "unknown",
        onset: int | None = None,
        evidence: Evidence | None = None,
        reading: Mapping[str, float | str] | None = None,
    ) -> str:
        """A fault was seen: the incident that it belongs to, opened if there is none. Answers its name."""
        known = next((one for one in reversed(self._open) if step <= one.alarm_step + _NEAR), None)
        if known is None:
            known = _Open(self._new(step, guard, message, onset, reading or {}), step)
            self._open.append(known)
            self._start_folder(known, evidence)
        known.alarm_step, known.healthy = max(known.alarm_step, step), 0
        if _CAUSES.get(known.incident.kind, 2) < _CAUSES.get(kind, 2) or known.incident.kind == "unknown":
            self._tell(known, kind=kind)
        else:
            self._tell(known)
        return known.incident.incident

    def note(
        self,
        name: str,
        *,
        kind: Kind | None = None,
        module: str | None = None,
        sample_ids: Sequence[str] = (),
        action: str = "",
        steps_lost: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """More is known about an open incident; what it cost is added up."""
        known = next((one for one in self._open if one.incident.incident == name), None)
        if known is None:
            return
        now = known.incident
        is_new = bool(action) and not now.action.endswith(action)
        per_step = sum(self._seconds) / len(self._seconds) if self._seconds else 0.0
        self._tell(
            known,
            kind=now.kind if kind in (None, "unknown") else kind,
            module=module or now.module,
            sample_ids=tuple(dict.fromkeys([*now.sample_ids, *sample_ids])),
            action="; ".join(one for one in (now.action, action) if one) if is_new else now.action,
            steps_lost=now.steps_lost + steps_lost,
            seconds_lost=now.seconds_lost + seconds + steps_lost * per_step,
        )

    def copy_of(self, model: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """The tensors on the host if they are worth keeping: one copy of the model, on an alarm only."""
        size = sum(tensor.nbytes for tensor in model.values())
        return stage({"model": model})["model"] if size <= self.config.model_mb * 1e6 else None

    def went_back(self, rollback: Rollback) -> None:
        """The run went back: part of the action of the latest open incident."""
        if self.current is not None and rollback.trigger == "guard":
            action = f"went back from step {rollback.from_step} to {rollback.to_step} ({rollback.source})"
            lost, seconds = rollback.steps_lost, rollback.seconds
            self.note(self.current, action=action, steps_lost=lost, seconds=seconds)

    def healthy(self, vitals: Sequence[Vitals], seconds: float) -> None:
        """A step was applied and nothing spoke against it. Costs a few appends."""
        row = {
            "step": vitals[0].step,
            "loss": vitals[0].loss,
            "grad_norm": vitals[0].grad_norm,
            "lr": vitals[0].lr,
        }
        self._before.append(row)
        self._seconds.append(seconds)
        for one in self._open[:]:
            one.healthy += 1
            if len(one.after) < self.config.history:
                one.after.append(row)
            if one.healthy >= self.config.healed_after:
                self._close(one, "healed")

    def end(self, outcome: Literal["healed", "stopped"]) -> None:
        """The run ended: finished in a sound state, or because nothing was left to try."""
        for one in self._open[:]:
            self._close(one, outcome)

    def _new(
        self, step: int, guard: str, message: str, onset: int | None, reading: Mapping[str, float | str]
    ) -> Incident:
        number = len(self._reporter.record.incidents) + 1
        return Incident(
            step=step,
            incident=f"step-{step:08d}-{number}",
            onset_step=step if onset is None else min(onset, step),
            guard=guard,
            kind="unknown",
            message=message,
            reading=dict(reading),
        )

    def _close(self, one: _Open, outcome: Literal["healed", "stopped"]) -> None:
        self._open.remove(one)
        self._tell(one, outcome=outcome)
        if one.incident.evidence is not None:
            self._write(one, "vitals-after.jsonl", _lines(one.after))

    def _tell(self, one: _Open, **changes: Any) -> None:
        told = one.incident
        one.incident = told.model_copy(update=changes)
        is_new = all(known.incident != told.incident for known in self._reporter.record.incidents)
        if is_new or one.incident != told:
            self._reporter.incident(one.incident)
            self._write(one, "incident.json", one.incident.model_dump_json(indent=1).encode())

    def _start_folder(self, one: _Open, evidence: Evidence | None) -> None:
        one.incident = one.incident.model_copy(update={"evidence": f"{FOLDER}/{one.incident.incident}"})
        if not self._reporter.is_heard:
            return
        self._let_go()
        with suppress(OSError):  # then each file's own line in the log says what is missing
            (self._root / one.incident.incident).mkdir(parents=True, exist_ok=True)
        step: dict[str, Any] = {}
        if evidence is not None:
            step = self._keep(one, evidence)
        origin = {**self._origin, "step": step}
        self._write(one, "origin.json", json.dumps(origin, indent=1).encode())
        before = [row for row in self._before if row["step"] < one.incident.step]
        self._write(one, "vitals-before.jsonl", _lines(before))

    def _keep(self, one: _Open, evidence: Evidence) -> dict[str, Any]:
        """Write what can be kept of a step; answers what is no tensor."""
        tensors = {key: value for key, value in evidence.batch.items() if isinstance(value, Tensor)}
        self._write(one, "batch.safetensors", _packed(tensors))
        self._write(one, "random.safetensors", _packed(evidence.random))
        if evidence.model is not None:
            self._write(one, "model.safetensors", _packed(evidence.model))
        other = {key: value for key, value in evidence.batch.items() if key not in tensors}
        return {
            "objective": evidence.objective,
            "number": evidence.number,
            "batch": json.loads(json.dumps(other, default=str)),
            "has_model": evidence.model is not None,
            "precision": evidence.precision,
            "micro_batches": evidence.micro_batches,
        }

    def _write(self, one: _Open, name: str, content: bytes) -> None:
        """Evidence is worth no training: what the disk refuses is missing, and the log says so."""
        if not self._reporter.is_heard:
            return
        folder = self._root / one.incident.incident
        try:
            if folder.is_dir():  # else it was let go
                replace_file(folder / name, content)
        except OSError as error:
            log.warning("cannot keep %s of incident %s: %s", name, one.incident.incident, error)

    def _let_go(self) -> None:
        if not self._reporter.is_heard:
            return
        names = [one.incident for one in self._reporter.record.incidents]
        for name in names[: max(len(names) + 1 - self.config.keep, 0)]:
            shutil.rmtree(self._root / name, ignore_errors=True)


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return b"".join(pieces(on_host({"": tensors})[""]))
